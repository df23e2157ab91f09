"""A full run on the official files of real datasets: data, training and a question about an image."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.tiny import write_tiny

from model.training.sample_backbones import train_backbones
from pipelines.sample_corpus import write_sample

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory, prefect, forked_ranks, realdata) -> Path:
    from flows.train_honeybee import train_honeybee

    root = tmp_path_factory.mktemp("realdata")
    # There are too few real rows to train a language model on, so the backbones are trained on the sample corpus.
    write_sample(root / "corpus", scenes=60, held_out=4, seed=0)
    train_backbones(root / "corpus", root / "backbones", vision_steps=1, llm_steps=1)
    changes = {
        "name": "real",
        "sample": None,
        "paths": {"store": str(root / "store"), "runs": str(root / "runs"), "data": str(realdata / "corpus")},
        "backbones": {"vision": str(root / "backbones/vision"), "llm": str(root / "backbones/llm")},
        "datasets": {
            "blipcapfilt": {"annotations": "BLIP/blip_cc_sbu"},
            "coyo100m": {"annotations": "coyo/coyo100m"},
            "vqav2": {"annotations": "VQAv2", "images": "VQAv2/images", "max_turns": 10},
            "aokvqa": {"annotations": "A-OKVQA", "images": "coco/images"},
            "refcoco": {"annotations": "refcoco/annotations", "images": "coco/images/train2014"},
            "refcoco+": {"annotations": "refcoco/annotations", "images": "coco/images/train2014"},
            "refcocog": {"annotations": "refcoco/annotations", "images": "coco/images/train2014"},
            "llava150k": {"annotations": "llava_instruct", "images": "llava_instruct/images"},
        },
        "pretrain/data/max_text_tokens": 1024,
        "finetune/data/max_text_tokens": 1023,
        "finetune/data/weights": dict.fromkeys(
            ("coyo100m", "vqav2", "aokvqa", "refcoco", "refcoco+", "refcocog", "llava150k"), 1.0
        ),
        # Conversations are packed; there are three steps of two packs.
        "finetune/data/samples": 64,
        "finetune/train/packing": {"max_tokens": 1400, "window": 32},
        "finetune/train/global_batch": 2,
        "finetune/train/micro_batch": 1,
        # The default, ZeRO stage 2.
        "pretrain/train/zero_stage": None,
        "finetune/train/zero_stage": None,
        # There are no held-out questions about these images, so those of the sample corpus are used.
        "evaluation/benchmarks/pope": {"path": f"{root}/corpus/POPE", "images": f"{root}/corpus/POPE/images"},
        "evaluation/benchmarks/mmbench": None,
    }
    train_honeybee(str(write_tiny(root, changes)), "first")
    return root


def test_every_row_is_accounted_for(root):
    ledgers = {}
    for manifest in (root / "store/examples").glob("*/manifest.json"):
        content = json.loads(manifest.read_text())
        ledgers[content["dataset"], content["key"]["chat"][:4]] = content["rows"]
    read = {dataset: rows["read"] for (dataset, _), rows in ledgers.items()}
    assert read == {
        "blipcapfilt": 200,
        "coyo100m": 32,
        "vqav2": 73,
        "aokvqa": 26,
        "refcoco": 14,
        "refcoco+": 12,
        "refcocog": 4,
        "llava150k": 82,
    }
    for rows in ledgers.values():
        assert rows["read"] == rows["examples"] + rows["duplicates"] + sum(rows["rejects"].values())
    (vqav2,) = (rows for (dataset, _), rows in ledgers.items() if dataset == "vqav2")
    assert vqav2["rejects"] == {"image_missing": 20}  # the questions whose images are not included


def test_the_gallery_shows_real_images(root):
    results = root / "runs/real/latest"
    text = (results / "gallery-finetune.md").read_text()
    for dataset in ("coyo100m", "vqav2", "aokvqa", "refcoco", "refcoco+", "refcocog", "llava150k"):
        assert f"#### {dataset}, sample " in text
    assert len(list((results / "report").glob("finetune-*.png"))) >= 20


def test_a_question_about_a_real_image(root, tmp_path):
    from model.generation.chat import Chat

    shard = min((root / "runs/real/latest/data/finetune").glob("shard-*.parquet"))
    image = tmp_path / "image"
    image.write_bytes(pq.read_table(shard)["images"][0].as_py()[0]["bytes"])
    talk = Chat.load(root / "runs/real/latest/model")
    answer = "".join(talk.ask("What is in the image?", [image], max_new_tokens=8))
    assert talk.messages[1]["content"] == [{"type": "text", "text": answer.strip()}]
