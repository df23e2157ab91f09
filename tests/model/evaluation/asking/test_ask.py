"""Asking a small random model: batches, resuming, the shuffled-image control, unreadable images."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.judge_server import KEY, serving

from flows.launch.launch import launch
from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from model.evaluation.__main__ import main
from model.evaluation.asking.ask import PreparedQuestions, ask
from model.evaluation.asking.generator import Generator
from model.evaluation.asking.image_cache import ImageCache
from model.evaluation.asking.predictions import load, read_header
from model.evaluation.asking.shuffled_images import shuffle_images
from model.evaluation.benchmarks import mmbench, pope
from model.evaluation.interface import EvaluationError, Question, QuestionImage
from model.evaluation.prompts import Prompt, load_prompt
from model.evaluation.run import Job, evaluate
from pipelines.images.decode import decode
from pipelines.sample_corpus import write_sample

PROMPT = Prompt("{question} Say it shortly.", 6)


@pytest.fixture(scope="module")
def model(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as written by training, with weights so large that text and image affect the answer."""
    directory = tmp_path_factory.mktemp("model")
    processor = HoneybeeProcessor.from_backbones(tiny_backbones / "vision", tiny_backbones / "llm", 16)
    model = HoneybeeForConditionalGeneration.from_backbones(
        tiny_backbones / "vision", tiny_backbones / "llm", {"type": "linear", "num_tokens": 16}, processor.tokenizer
    )
    with torch.no_grad():
        for parameter in [*model.projector.parameters(), *model.llm.parameters()]:
            if parameter.ndim == 2:
                parameter.mul_(8)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sample")
    write_sample(directory, scenes=8, held_out=12, seed=0)
    return directory


@pytest.fixture(scope="module")
def questions(corpus: Path) -> list[Question]:
    return pope.read(corpus / "POPE", corpus / "POPE" / "images")


@pytest.fixture(scope="module")
def generator(model: Path) -> Generator:
    return Generator(model, "cpu")


@pytest.fixture
def put(generator: Generator, questions: list[Question]) -> Callable[..., None]:
    """A function that asks the questions with default settings."""

    def put(path: Path, batch_size: int = 16, prompt: Prompt = PROMPT, asked: list[Question] = questions, **header):
        ask(
            PreparedQuestions(generator, _inspected(generator, asked), asked, prompt),
            batch_size,
            path,
            {"benchmark": "pope", **header},
        )

    return put


def _inspected(generator: Generator, questions: list[Question]) -> ImageCache:
    cache = ImageCache(lambda image: generator.processor.preprocess([image])[0], threads=2)
    cache.inspect(questions)
    return cache


def _texts(path: Path) -> dict[str, str | None]:
    return {key: answer.text for key, answer in load(pope.BENCHMARK, path).answers.items()}


def test_answers_do_not_depend_on_the_batch_size(put, generator, questions, tmp_path):
    by_size = {}
    for size in (1, 7, 64):
        put(tmp_path / str(size), size)
        by_size[size] = _texts(tmp_path / str(size))
    assert set(by_size[1]) == {question.id for question in questions}
    assert len(set(by_size[1].values())) > 5, "with constant answers, this test would prove nothing"
    assert by_size[1] == by_size[7] == by_size[64]
    cache = _inspected(generator, questions)
    put(tmp_path / "shuffled", asked=shuffle_images(questions, cache.digests, 0))
    shuffled = _texts(tmp_path / "shuffled")
    assert sum(shuffled[key] != text for key, text in by_size[1].items()) > 5, "images must affect the answers too"


def test_answers_match_the_unwrapped_model(put, questions, model, tmp_path):
    put(tmp_path / "p.jsonl")
    texts = _texts(tmp_path / "p.jsonl")
    processor = HoneybeeProcessor.from_pretrained(model)
    plain = HoneybeeForConditionalGeneration.from_pretrained(model)
    for question in questions[::17]:
        content = [{"type": "image"}, {"type": "text", "text": PROMPT.render(question)}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=text, images=decode(question.images[0].read()), return_tensors="pt")
        output = plain.generate(**inputs, max_new_tokens=PROMPT.max_new_tokens, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(new, skip_special_tokens=True).strip() == texts[question.id]


class Counting(Generator):
    """Counts the questions that reach the model."""

    asked = 0

    def generate(self, prompts, pixels, max_new_tokens):
        self.asked += len(prompts)
        return super().generate(prompts, pixels, max_new_tokens)


@pytest.mark.parametrize("kept_lines", [0, 1, 17, 40, 1000])
def test_a_killed_evaluation_resumes_after_the_last_complete_batch(put, model, questions, tmp_path, kept_lines):
    complete, cut = tmp_path / "complete.jsonl", tmp_path / "cut.jsonl"
    put(complete)
    lines = complete.read_bytes().splitlines(keepends=True)
    kept = lines[: 1 + kept_lines]
    half = lines[1 + kept_lines][:-9] if kept_lines + 1 < len(lines) else b""
    cut.write_bytes(b"".join(kept) + half)
    counting = Counting(model, "cpu")
    ask(PreparedQuestions(counting, _inspected(counting, questions), questions, PROMPT), 16, cut, {"benchmark": "pope"})
    assert cut.read_bytes() == complete.read_bytes()
    done = len(questions) if kept_lines >= len(questions) else kept_lines // 16 * 16
    assert counting.asked == len(questions) - done


def test_questions_from_a_damaged_line_on_are_asked_again(put, tmp_path):
    path = tmp_path / "p.jsonl"
    put(path)
    complete = path.read_bytes()
    lines = complete.splitlines(keepends=True)
    lines[20] = b'{"id": "some other"}\n'
    path.write_bytes(b"".join(lines))
    put(path)
    assert path.read_bytes() == complete


def test_predictions_with_different_settings_are_not_reused(put, model, questions, tmp_path, caplog):
    path = tmp_path / "p.jsonl"
    put(path)
    first = path.read_bytes()
    put(path)
    assert path.read_bytes() == first
    assert "is overwritten" not in caplog.text
    put(path, prompt=Prompt("{question} At length.", 6))
    assert "was written with another model or other settings and is overwritten" in caplog.text
    assert json.loads(path.read_text().splitlines()[0])["settings"]["prompt"] == "{question} At length."

    put(path)
    flipped = dataclasses.replace(questions[0], truth="no" if questions[0].truth == "yes" else "yes")
    put(path, asked=[flipped, *questions[1:]])
    truths = {question.id: question.truth for question in load(pope.BENCHMARK, path).questions}
    assert truths[flipped.id] == flipped.truth

    other = tmp_path / "other"
    trained = HoneybeeForConditionalGeneration.from_pretrained(model)
    with torch.no_grad():
        next(trained.projector.parameters()).add_(1)
    trained.save_pretrained(other)
    HoneybeeProcessor.from_pretrained(model).save_pretrained(other)
    counting = Counting(other, "cpu")
    ask(
        PreparedQuestions(counting, _inspected(counting, questions), questions, PROMPT), 16, path, {"benchmark": "pope"}
    )
    assert counting.asked == len(questions)

    HoneybeeForConditionalGeneration.from_pretrained(model).save_pretrained(other)
    padding = HoneybeeProcessor.from_pretrained(model)
    padding.image_processor.fit = "pad"
    padding.save_pretrained(other)
    put(path)
    counting = Counting(other, "cpu")
    ask(
        PreparedQuestions(counting, _inspected(counting, questions), questions, PROMPT), 16, path, {"benchmark": "pope"}
    )
    assert counting.asked == len(questions)


def test_settings_are_in_the_header(put, tmp_path):
    put(tmp_path / "p.jsonl", batch_size=5, control={"seed": 3})
    header = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert header["control"] == {"seed": 3}
    settings = header["settings"]
    assert (settings["batch_size"], settings["max_new_tokens"], settings["decoding"]) == (5, 6, "greedy")
    assert (settings["precision"], settings["device"]) == ("fp32", "cpu")
    assert len(settings["model"]) == 16


def test_questions_with_unusable_images_are_reported_and_not_asked(put, questions, corpus, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((corpus / "POPE" / "images" / questions[0].fields["image"]).read_bytes()[:300])
    rows = [
        {"question_id": i, "image": image, "text": "Is it?", "label": "yes"}
        for i, image in enumerate(["broken.jpg", "gone.jpg", "../secret.jpg"])
    ]
    path = tmp_path / "coco_pope_random.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [*questions[:3], *pope.read(path, tmp_path)]
    put(tmp_path / "p.jsonl", asked=asked, batch_size=2)
    predictions = load(pope.BENCHMARK, tmp_path / "p.jsonl")
    scores = pope.score(predictions)
    assert scores["num_scored"] == 3
    reasons = {key: error.split(":")[0] for key, error in scores["not_asked"]["errors"].items()}
    assert reasons == {
        "random/0": "image_corrupt",
        "random/1": "image_missing",
        "random/2": "image_outside_root",
    }


def test_a_batch_may_mix_zero_one_and_two_images(put, questions, tmp_path):
    first, second = questions[0].images[0], questions[-1].images[0]
    asked = [
        Question("random/none", {"question": "Is it?"}, "yes", groups={"split": "random"}),
        Question("random/two", {"question": "Are they?"}, "yes", groups={"split": "random"}, images=(first, second)),
        Question("random/one", {"question": "Is it?"}, "yes", groups={"split": "random"}, images=(second,)),
    ]
    put(tmp_path / "3", asked=asked, batch_size=3)
    put(tmp_path / "1", asked=asked, batch_size=1)
    assert _texts(tmp_path / "3") == _texts(tmp_path / "1")


def test_a_question_that_contains_the_image_token_is_an_error(put, tmp_path):
    asked = [Question("random/1", {"question": "What is <image>?"}, "yes")]
    with pytest.raises(EvaluationError, match="contains the image token <image>: 'What is"):
        put(tmp_path / "p.jsonl", asked=asked)


def _with_image(key: int, name: str) -> Question:
    return Question(str(key), {}, None, images=(QuestionImage(name, bytes),))


@pytest.mark.parametrize("seed", range(5))
def test_shuffling_gives_no_question_its_own_image_or_an_equal_one(seed):
    names = ["a", "b", "c", "c", "d", "e", "e", "a2", "c"] * 3
    digests = {name: name[0] for name in names}  # a2 is a different file with the same bytes as a
    asked = [*(_with_image(i, name) for i, name in enumerate(names)), _with_image(99, "bad"), Question("100", {}, None)]
    shuffled = shuffle_images(asked, digests, seed)
    assert [q.id for q in shuffled] == [q.id for q in asked]
    for before, after in zip(asked[:-2], shuffled[:-2], strict=True):
        assert digests[before.images[0].name] != digests[after.images[0].name]
    assert sorted(q.images[0].name for q in shuffled[:-2]) == sorted(names), "must be a permutation"
    assert shuffled[-2:] == asked[-2:]
    assert shuffled == shuffle_images(asked, digests, seed)
    assert shuffled != shuffle_images(asked, digests, seed + 1)


def test_shuffling_fails_if_more_than_half_of_the_questions_share_an_image():
    half = [_with_image(i, name) for i, name in enumerate("aabc")]
    shuffled = shuffle_images(half, {name: name for name in "abc"}, 0)
    assert {q.images[0].name for q in shuffled[:2]} == {"b", "c"}
    with pytest.raises(EvaluationError, match="3 of 5 questions have the same image"):
        shuffle_images([*half, _with_image(5, "a")], {name: name for name in "abc"}, 0)


def test_shuffling_preserves_the_number_of_images_per_question(caplog):
    asked = [_with_image(i, name) for i, name in enumerate("abcabc")]
    pairs = [
        dataclasses.replace(_with_image(10 + i, "a"), images=_images(names)) for i, names in enumerate(("ab", "ba"))
    ]
    lone = dataclasses.replace(_with_image(20, "a"), images=_images("abc"))
    shuffled = shuffle_images([*asked, *pairs, lone], {name: name for name in "abc"}, 0)
    assert [len(q.images) for q in shuffled] == [1] * 6 + [2, 2, 3]
    assert [q.images for q in shuffled[6:8]] == [_images("ba"), _images("ab")]
    assert shuffled[8] == lone and "1 questions with 3 images keep their own images" in caplog.text


def _images(names: str) -> tuple[QuestionImage, ...]:
    return tuple(_with_image(0, name).images[0] for name in names)


def test_evicted_pixels_are_decoded_again(generator, questions, monkeypatch):
    monkeypatch.setattr("model.evaluation.asking.image_cache.CACHE_BYTES", 3 * 32 * 32 * 4 * 2)
    cache = _inspected(generator, questions)
    images = [question.images[0] for question in questions[:10]]
    pixels = cache.pixels(images)
    for image, tensor in zip(images, pixels, strict=True):
        assert torch.equal(tensor, generator.processor.preprocess([decode(image.read())])[0])
    assert cache._num_bytes <= 3 * 32 * 32 * 4 * 2


def _job(model: Path, corpus: Path, output: Path) -> dict:
    return {
        "model": str(model),
        "benchmarks": {
            "pope": {"path": str(corpus / "POPE"), "images": str(corpus / "POPE" / "images")},
            "mmbench": {"path": str(corpus / "MMBench" / "mmbench_dev.tsv")},
        },
        "batch_size": 64,
        "shuffled_control": True,
        "seed": 0,
        "output": str(output),
        "device": "cpu",
    }


def test_the_job_asks_and_scores_benchmarks_and_their_control(model, corpus, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(_job(model, corpus, tmp_path / "out")))
    main([str(tmp_path / "job.json")])
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores) == {"pope", "mmbench", "shuffled", "settings"}
    assert set(scores["pope"]["splits"]) == {"random", "popular", "adversarial", "relation"}
    assert set(scores["shuffled"]) == {"pope", "mmbench"}
    assert scores["settings"]["mmbench"]["batch_size"] == 64
    assert scores["mmbench"]["num_scored"] == scores["mmbench"]["num_rows"]
    assert scores["mmbench"]["circular"] is not None

    asked = {q.id: q for q in mmbench.read(corpus / "MMBench" / "mmbench_dev.tsv", None)}
    control = tmp_path / "out" / "mmbench.shuffled.predictions.jsonl"
    names = {row["id"]: row["images"][0] for row in map(json.loads, control.read_text().splitlines()[1:])}
    assert set(names) == set(asked)
    assert all(name != asked[key].images[0].name for key, name in names.items())

    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(before) == {
        "scores.json",
        *(f"{name}{kind}.predictions.jsonl" for name in ("pope", "mmbench") for kind in ("", ".shuffled")),
    }
    evaluate(Job.model_validate(_job(model, corpus, tmp_path / "out")))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_job_asks_a_judge(model, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HONEYBEE_JUDGE_KEY", KEY)
    folders = {
        "llava_bench": "LLaVA-Bench/images",
        "mm_vet": "MM-Vet/images",
        "mmmu": "MMMU",
        "owleval": "OwlEval/cases",
    }
    benchmarks = {}
    for name, folder in folders.items():
        benchmarks[name] = {"path": str(corpus / folder.partition("/")[0]), "images": str(corpus / folder)}
    job = _job(model, corpus, tmp_path / "out") | {"benchmarks": benchmarks}

    def short(name: str) -> Prompt:
        return dataclasses.replace(load_prompt(name), max_new_tokens=4)

    monkeypatch.setattr("model.evaluation.run.load_prompt", short)
    unjudged = evaluate(Job.model_validate(job))
    assert "score" not in unjudged["mm_vet"] and unjudged["llava_bench"]["judge"].startswith("none")
    assert unjudged["mmmu"]["accuracy"] is not None and unjudged["owleval"]["num_answered"] > 10
    with serving(lambda body: "8 4" if "Assistant 1" in str(body) else "0.5") as server:
        judge = {"url": server.url, "model": "judge"}
        scores = evaluate(Job.model_validate(job | {"judge": judge}))
        asked = len(server.requests)
        assert evaluate(Job.model_validate(job | {"judge": judge})) == scores
        assert len(server.requests) == asked, "replies are cached next to the answers"
    assert (scores["mm_vet"]["score"], scores["llava_bench"]["score"]) == (50, 50)
    assert scores["mm_vet"]["judge"] | judge == scores["mm_vet"]["judge"]
    assert "score" not in scores["shuffled"]["mm_vet"]
    assert not any(KEY in path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": 1}, "temperature"),
        ({"benchmarks": {"mme9": {"path": "x"}}}, "no benchmark 'mme9'; known: llava_bench, mm_vet, mmbench, mme, "),
        ({"benchmarks": {"pope": {"path": "/nowhere/coco_pope_random.json"}}}, "image root /nowhere is "),
        ({"benchmarks": {"mmbench": {"path": "/nowhere/dev.tsv"}}}, "there is no such file"),
        ({"model": "/nowhere"}, "/nowhere: there is no such model directory"),
    ],
)
def test_invalid_jobs_exit_with_a_clear_message(model, corpus, tmp_path, changes, message):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(_job(model, corpus, tmp_path / "out") | changes))
    with pytest.raises(SystemExit, match=message):
        main([str(path)])
    assert not (tmp_path / "out" / "scores.json").exists()


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_write_the_same_file_as_one(put, generator, questions, tmp_path, world):
    put(tmp_path / "one.jsonl")
    path = tmp_path / "together.jsonl"
    asked = PreparedQuestions(generator, _inspected(generator, questions), questions, PROMPT)
    for rank in range(world):
        complete = ask(asked, 16, path, {"benchmark": "pope"}, rank, world)
    complete.merge(world)
    assert path.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one.jsonl", "together.jsonl"]
    counting = Counting(generator.directory, "cpu")
    for rank in range(world):  # the file is already complete
        again = ask(
            PreparedQuestions(counting, asked.images, questions, PROMPT), 16, path, {"benchmark": "pope"}, rank, world
        )
    again.merge(world)
    assert counting.asked == 0 and path.read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_part_files_of_a_killed_run_are_never_mistaken_for_complete_ones(put, generator, questions, tmp_path):
    put(tmp_path / "one.jsonl")
    expected = (tmp_path / "one.jsonl").read_bytes()
    path = tmp_path / "together.jsonl"
    asked = PreparedQuestions(generator, _inspected(generator, questions), questions, PROMPT)
    header = {"benchmark": "pope"}
    complete = ask(asked, 16, path, header, 0, 2)
    with pytest.raises(EvaluationError, match="rank 1 has not answered all of its questions"):
        complete.merge(2)  # rank 1 has not started
    ask(asked, 16, path, header, 1, 2)
    parts = sorted(tmp_path.glob("together.rank-*"))
    complete.merge(2)
    assert path.read_bytes() == expected
    parts[1].write_text("left when the merging process was killed after it had removed the first part")
    ask(asked, 16, path, header, 1, 2).merge(2)
    assert path.read_bytes() == expected and not list(tmp_path.glob("together.rank-*"))

    path.unlink()
    ask(asked, 16, path, header, 0, 2)  # killed, then resumed with a single rank
    ask(asked, 16, path, header).merge(1)
    assert path.read_bytes() == expected and not list(tmp_path.glob("together.rank-*"))


def test_the_likeliest_choice_matches_the_unwrapped_model(model, generator, questions, tmp_path):
    few = questions[:24]
    choices = [("Yes", "No", "a dog")[: 2 + i % 2] for i in range(len(few))]
    for batch_size in (1, 7):
        path = tmp_path / f"{batch_size}.jsonl"
        asked = PreparedQuestions(generator, _inspected(generator, few), few, PROMPT, choices)
        ask(asked, batch_size, path, {"benchmark": "pope"})
    texts = _texts(tmp_path / "7.jsonl")
    assert texts == _texts(tmp_path / "1.jsonl")
    assert read_header(path)["settings"]["choices"] == "likeliest"
    processor = HoneybeeProcessor.from_pretrained(model)
    plain = HoneybeeForConditionalGeneration.from_pretrained(model).eval()
    for question, own in zip(few, choices, strict=True):
        losses = []
        for choice in own:
            content = [{"type": "image"}, {"type": "text", "text": PROMPT.render(question)}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": choice}]
            text = processor.apply_chat_template(messages)
            prompt = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
            inputs = processor(text=text, images=decode(question.images[0].read()), return_tensors="pt")
            short = processor(text=prompt, images=decode(question.images[0].read()), return_tensors="pt")
            labels = inputs["input_ids"].clone()
            labels[:, : short["input_ids"].shape[1]] = -100
            count = (labels != -100).sum()
            with torch.no_grad():
                losses.append(float(plain(**inputs, labels=labels).loss * count))
        assert texts[question.id] == own[losses.index(min(losses))]


def test_the_job_supports_several_ranks_and_likelihood(model, corpus, tmp_path):
    location = {"path": str(corpus / "POPE"), "images": str(corpus / "POPE/images")}
    job = {"model": str(model), "benchmarks": {"pope": location}, "choose_by": "likelihood", "device": "cpu"}
    for name, ranks in (("one", 1), ("two", 2)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**job, "output": str(tmp_path / name)}))
        launch("model.evaluation", path, ranks=ranks, threads=1, log=lambda line: None)
    for file in ("pope.predictions.jsonl", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    scores = json.loads((tmp_path / "two/scores.json").read_text())["pope"]
    assert scores["unclear_answers"]["count"] == 0  # Yes and No are the only choices
