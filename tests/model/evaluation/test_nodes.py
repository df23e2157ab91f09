"""An evaluation on two hosts writes the same bytes as one with a single rank."""

import json
from pathlib import Path

import pytest
from support.namespaces import TwoHosts

from flows.launch.launch import launch
from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from pipelines.sample_corpus import write_sample

pytestmark = pytest.mark.slow


def test_two_hosts_write_the_same_files_as_one(tiny_backbones: Path, two_namespaces: TwoHosts, tmp_path: Path) -> None:
    vision, llm, model = tiny_backbones / "vision", tiny_backbones / "llm", tmp_path / "model"
    processor = HoneybeeProcessor.from_backbones(vision, llm, 16)
    projector = {"type": "linear", "num_tokens": 16}
    HoneybeeForConditionalGeneration.from_backbones(vision, llm, projector, processor.tokenizer).save_pretrained(model)
    processor.save_pretrained(model)
    write_sample(tmp_path / "corpus", scenes=1, held_out=12, seed=0)
    location = {"path": str(tmp_path / "corpus/POPE"), "images": str(tmp_path / "corpus/POPE/images")}
    job = {"model": str(model), "benchmarks": {"pope": location}, "batch_size": 8, "device": "cpu"}
    for name, cluster in (("one", None), ("two", two_namespaces.cluster)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**job, "output": str(tmp_path / name)}))
        launch("model.evaluation", path, threads=1, log=lambda line: None, cluster=cluster)
    assert two_namespaces.pids() == []
    for file in ("pope.predictions.jsonl", "scores.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
