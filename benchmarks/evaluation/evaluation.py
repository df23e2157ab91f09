"""Answers per second of the evaluation loop, against a plain loop over `generate`.

    python -m benchmarks.evaluation.evaluation MODEL [--device cuda] [--wide] [--questions 256] [--rounds 5]

MODEL is a model directory, such as runs/sample/latest/model. POPE's questions about held-out scenes are asked in three
ways: by the evaluation loop in batches; by the loop one at a time; and as in transformers' manual: open the image,
processor, `generate`, decode, one question after the other. All three must give the same answers. Contenders alternate;
ratios are medians. `--wide` gives the language model random weights of a larger width, so that the model dominates the
cost; its answers are noise of a fixed length, and are compared all the same.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks import toy
from benchmarks.measure import parser, show, working
from model import HoneybeeConfig, HoneybeeForConditionalGeneration
from model.evaluation.asking.ask import PreparedQuestions, ask
from model.evaluation.asking.generator import Generator
from model.evaluation.asking.image_cache import ImageCache
from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import pope
from model.evaluation.interface import Question
from model.evaluation.prompts import Prompt, load_prompt
from pipelines.images.decode import decode
from pipelines.sample_corpus import write_sample

WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model", type=Path, nargs="?", metavar="MODEL")
    options_of.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options_of.add_argument("--wide", action="store_true")
    options_of.add_argument("--questions", type=int, default=256)
    options_of.add_argument("--batch-size", type=int, default=64)
    options_of.add_argument("--rounds", type=int, default=5)
    options = options_of.parse_args()
    with working(options) as workdir:
        here = workdir / "evaluation"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        if options.toy:
            options.model, options.device, options.rounds = toy.model(workdir), "cpu", 1
            options.questions, options.batch_size = 4, 4
            corpus = toy.realdata(workdir) / "text/POPE"
        elif options.model is None:
            options_of.error("MODEL is required")
        else:
            write_sample(here / "corpus", scenes=1, held_out=100, seed=0)
            corpus = here / "corpus/POPE"
        questions = pope.read(corpus, corpus / "images")[: options.questions]
        generator = Generator(options.model, options.device)
        if options.wide:
            generator.model = widened(generator)
        seconds, same = run(generator, questions, options.batch_size, options.rounds, here)
    first = next(iter(seconds))
    rows = []
    for name, took in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(seconds[first], took, strict=True))
        speed = len(questions) / statistics.median(took)
        rows.append({"way": name, "answers/s": f"{speed:.1f}", "this ÷ first": f"{ratio:.2f}"})
    what = "random weights, wide" if options.wide else str(options.model)
    show(f"Evaluation, {options.device}, {what}: {same} of {len(questions)} answers are the same in all ways", rows)


def run(
    generator: Generator, questions: list[Question], batch_size: int, rounds: int, here: Path
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each way in each round, and how many answers are the same in all ways."""
    prompt = load_prompt("pope")
    ways: dict[str, Callable[[Path], dict[str, str | None]]] = {
        f"the loop, batches of {batch_size}": lambda path: loop(generator, questions, prompt, batch_size, path),
        "the loop, one at a time": lambda path: loop(generator, questions, prompt, 1, path),
        "plain `generate`, one at a time": lambda path: plain(generator, questions, prompt),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    same = 0
    for round in range(rounds + 1):
        answers: list[dict[str, str | None]] = []
        for name, way in ways.items():
            start = time.perf_counter()
            answers.append(way(here / f"{round}-{len(answers)}.jsonl"))
            if round:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
        same = sum(all(other[key] == text for other in answers[1:]) for key, text in answers[0].items())
    return seconds, same


def loop(
    generator: Generator, questions: list[Question], prompt: Prompt, batch_size: int, path: Path
) -> dict[str, str | None]:
    images = ImageCache(lambda image: generator.processor.preprocess([image])[0])
    images.inspect(questions)
    ask(PreparedQuestions(generator, images, questions, prompt), batch_size, path, {"benchmark": "pope"})
    return {key: answer.text for key, answer in load(pope.BENCHMARK, path).answers.items()}


@torch.inference_mode()
def plain(generator: Generator, questions: list[Question], prompt: Prompt) -> dict[str, str | None]:
    processor, model = generator.processor, generator.model
    answers: dict[str, str | None] = {}
    for question in questions:
        content = [{"type": "image"}, {"type": "text", "text": prompt.render(question)}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=text, images=decode(question.images[0].read()), return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        output = model.generate(**inputs, max_new_tokens=prompt.max_new_tokens, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        answers[question.id] = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return answers


def widened(generator: Generator) -> HoneybeeForConditionalGeneration:
    torch.manual_seed(0)
    old = generator.model.config
    text = LlamaConfig(**{**old.text_config.to_diff_dict(), **WIDE, "head_dim": 64, "num_key_value_heads": 16})
    config = HoneybeeConfig(
        vision_config=old.vision_config,
        text_config=text,
        projector=old.projector,
        vision_layer=old.vision_layer,
        image_token_id=old.image_token_id,
    )
    model: Any = HoneybeeForConditionalGeneration(config)
    return model.to(generator.device, generator.model.dtype).eval()


if __name__ == "__main__":
    main()
