"""Annotations with long texts: batches and partitions hold fewer rows, and no row is lost."""

import json

import pytest
from support.example_settings import settings_of

from pipelines.core.arrow_files import open_batches, read_table
from pipelines.core.store import Store, read_manifest
from pipelines.jobs import annotations, examples
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.dataset import DatasetSpec
from pipelines.jobs.examples import build_examples
from pipelines.sources import SourceError


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "data").mkdir()
    for file in range(3):
        rows = [
            {"conversations": [{"from": "human", "value": f"{file} {row}"}, {"from": "gpt", "value": "long " * row}]}
            for row in range(1, 41)
        ]
        (tmp_path / "data" / f"{file}.json").write_text(json.dumps(rows))
    return DatasetSpec("mine", "llava", tmp_path / "data", tmp_path / "data")


def test_small_batches_lose_no_rows(spec, tmp_path, tokenizer_dir, monkeypatch):
    whole = build_annotations(Store(tmp_path / "whole"), spec, log=print)
    monkeypatch.setattr(annotations, "BYTES_PER_BATCH", 2000)
    monkeypatch.setattr(examples, "BYTES_PER_PARTITION", 2000)
    store = Store(tmp_path / "cut")
    cut = build_annotations(store, spec, log=print)
    assert read_table(cut / "annotations-00000.arrow").equals(read_table(whole / "annotations-00000.arrow"))
    assert open_batches(cut / "annotations-00000.arrow").num_record_batches > 2
    built = read_manifest(build_examples(store, spec, settings_of(spec, tokenizer_dir, max_text_tokens=1023)))
    assert built["rows"] == {"read": 120, "examples": 120, "duplicates": 0, "rejects": {}}
    assert len(built["files"]) > 2


def test_an_empty_file_is_an_error(spec, tmp_path):
    (spec.annotations / "3.json").touch()
    with pytest.raises(SourceError, match=r"3\.json is empty"):
        build_annotations(Store(tmp_path / "store"), spec, log=print)
