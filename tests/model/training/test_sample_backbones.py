"""Tests the sample backbones: they are saved like hub models, reproducible from the seed, and their losses fall."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPModel,
    LlamaForCausalLM,
)

from model.training.sample_backbones import read_captions, read_documents, train_backbones
from pipelines.sample_corpus import write_sample

pytestmark = pytest.mark.slow

STEPS = {"image_size": 32, "vision_steps": 12, "llm_steps": 30, "seed": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("backbones") / "corpus"
    write_sample(directory, scenes=64, held_out=4, seed=0)
    return directory


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("backbones") / "output"
    job = output.parent / "job.json"
    job.write_text(json.dumps({"corpus": str(corpus), "output": str(output), **STEPS}))
    command = [sys.executable, "-m", "model.training.sample_backbones", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "1"})
    (output / "log").write_text(done.stdout)
    return output


def test_both_load_like_hub_models(trained):
    vision, llm = AutoModel.from_pretrained(trained / "vision"), AutoModelForCausalLM.from_pretrained(trained / "llm")
    assert isinstance(vision, CLIPModel) and isinstance(llm, LlamaForCausalLM)
    processor = AutoImageProcessor.from_pretrained(trained / "vision")
    image = Image.fromarray(np.zeros((50, 70, 3), dtype=np.uint8))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    features = vision.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    assert features.shape == (1, 17, vision.config.vision_config.hidden_size)
    tokenizer = AutoTokenizer.from_pretrained(trained / "llm")
    assert llm.get_input_embeddings().num_embeddings == len(tokenizer)
    assert not list(trained.rglob("*.bin"))


def test_tokenizer_round_trips_any_text(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained / "llm")
    for text in ("Is there a red circle in the image?", "Où est l’œuvre? 漢字 🐝\n\tend ", "A. red\nB. top left"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    specials = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, "<image>"}
    assert len(specials) == 4
    assert all(len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1 for token in specials)
    assert len(tokenizer(" red circle at the top left", add_special_tokens=False)["input_ids"]) == 5


def test_logged_losses_fall(trained):
    text = (trained / "log").read_text()
    losses = {
        name: [float(line.split("loss ")[1].split()[0]) for line in text.splitlines() if f" {name} step " in line]
        for name in ("vision", "llm")
    }
    assert len(losses["vision"]) == 1 and len(losses["llm"]) == 2
    assert losses["llm"][1] < losses["llm"][0] - 0.5


def test_same_seed_gives_the_same_bytes(corpus, trained, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses = train_backbones(corpus, tmp_path, **STEPS)
    finally:
        torch.set_num_threads(threads)
    assert set(losses) == {"vision_loss", "llm_loss"}
    for name in ("vision/model.safetensors", "llm/model.safetensors", "llm/tokenizer.json"):
        first, second = ((root / name).read_bytes() for root in (trained, tmp_path))
        assert hashlib.sha256(first).hexdigest() == hashlib.sha256(second).hexdigest(), name


def test_invalid_rows_are_skipped(corpus):
    captions = list(read_captions(corpus / "BLIP"))
    assert len(captions) == 64 and all(caption for _, caption in captions)
    documents = read_documents(corpus)
    rows = json.loads((corpus / "manifest.json").read_text())["layouts"]["llava150k"]["rows"]
    conversations = sum(rows.values()) - 1  # one has an empty answer
    described = 64 + 1  # each image, and the missing one
    assert len(documents) == 2 * 64 + conversations + described and all(documents)
    assert not any("<image>" in text for text in documents)


def test_error_names_a_missing_file(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="aokvqa_v1p0_train"):
        list(read_documents(tmp_path))
