"""Generated inputs for `--toy`, in the layout of the real ones. Each is written once into a working directory."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data.vqav2_rows import good_rows, train_tokenizer
from pipelines.core.store import Store
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.sample_corpus import write_sample

SCENES, HELD_OUT, PHOTOS = 24, 4, 8
LLM: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 1000,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 56,  # 16 features of an image of 224 px
}
PROJECTOR: dict[str, Any] = {
    "type": "c-abstractor",
    "num_tokens": 4,
    "settings": {"hidden_size": 32, "depth": 1},
}


def realdata(workdir: Path) -> Path:
    """The sample corpus as REALDATA: `text/` and `corpus/` are the same directory."""
    root = workdir / "realdata"
    text = root / "text"
    if (root / "corpus").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    write_sample(text, scenes=SCENES, held_out=HELD_OUT, seed=0)
    shutil.copytree(text / "COYO", text / "coyo/coyo100m")
    conversations = (text / "llava_instruct/conversation_58k.json").read_text()
    (text / "llava_instruct/conversation.json").write_text(conversations)
    (text / "LLaVA").mkdir()
    (text / "LLaVA/conversation_coco30.json").write_text(conversations)
    table = good_rows(text / "VQAv2")
    qas = table.select(["question", "answer"]).to_pylist()[:40]
    genome = [{"id": number, "qas": qas[number::4]} for number in range(4)]
    (text / "VisualGenome/metadata/question_answers.json").write_text(json.dumps(genome))
    (root / "corpus").symlink_to("text", target_is_directory=True)
    return root


def photos(workdir: Path) -> list[Path]:
    """JPEGs of smooth noise, which perceptual hashes tell apart as they do photographs."""
    directory = workdir / "photos"
    directory.mkdir(exist_ok=True)
    paths = [directory / f"{number}.jpg" for number in range(PHOTOS)]
    for number, path in enumerate(paths):
        coarse = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def labelled_pairs(workdir: Path) -> Path:
    """Pairs of turns, labelled by how they are made: the same question reworded, or another question."""
    path = workdir / "pairs.jsonl"
    table = good_rows(realdata(workdir) / "text/VQAv2").to_pylist()[:60]
    rows = []
    for number, (row, other) in enumerate(itertools.pairwise(table)):
        duplicate = number % 3 < 2
        question = f"Please tell me: {row['question']}" if duplicate else other["question"]
        b = {"question": question, "answer": row["answer"] if duplicate else other["answer"]}
        a = {"question": row["question"], "answer": row["answer"]}
        label = "dup" if duplicate else "distinct"
        rows.append({"source": "toy", "image": str(number % 12), "a": a, "b": b, "label": label})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def tokenizer(workdir: Path) -> Path:
    """An `llm/` directory that holds only a tokenizer, learned from the sample corpus."""
    if not (workdir / "llm").is_dir():
        train_tokenizer(good_rows(realdata(workdir) / "text/VQAv2"), workdir)
    return workdir / "llm"


def model(workdir: Path) -> Path:
    """A model directory with random weights."""
    from benchmarks.training.memory_world import write_backbones
    from model import HoneybeeForConditionalGeneration, HoneybeeProcessor

    directory = workdir / "model"
    if not directory.is_dir():
        backbones = workdir / "backbones"
        write_backbones(backbones, LLM, VISION, "float32")
        parts = backbones / "vision", backbones / "llm"
        words = prepare_tokenizer(Store(workdir / "store"), str(tokenizer(workdir)))
        made = HoneybeeForConditionalGeneration.from_backbones(*parts, PROJECTOR, words)
        made.save_pretrained(directory)
        HoneybeeProcessor.from_backbones(parts[0], words, num_image_tokens=PROJECTOR["num_tokens"]).save_pretrained(
            directory
        )
    return directory


def recipe(workdir: Path) -> Path:
    """A recipe of three datasets of the sample corpus, in both stages."""
    import yaml

    train = {"steps": 2, "global_batch": 2, "micro_batch": 2, "warmup_steps": 0}
    data = {"max_text_tokens": 256, "shard_mib": 0.05, "samples": 40}
    content = {
        "name": "toy",
        "paths": {"store": "store", "runs": "runs", "data": str(realdata(workdir) / "text")},
        "backbones": {"vision": "none", "llm": "none"},
        "model": {"projector": PROJECTOR},
        "datasets": {
            "blipcapfilt": {"annotations": "BLIP"},
            "vqav2": {"annotations": "VQAv2", "images": "VQAv2/images", "max_turns": 4, "dedup": {"rule": "answer"}},
            "refcoco": {"annotations": "refcoco/annotations", "images": "coco/images/train2014"},
        },
        "pretrain": {
            "data": {"weights": {"blipcapfilt": 1.0}, "templates": "plain", "chat": "caption", **data},
            "train": {"trains": ["projector"], **train},
        },
        "finetune": {"data": {"weights": {"vqav2": 0.5, "refcoco": 0.5}, **data}, "train": train},
    }
    path = workdir / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
