"""What a build passes over next to the rows, and links of the annotations directory."""

import json
from dataclasses import replace

import pytest

from pipelines.core.store import Store, read_manifest
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.dataset import DatasetSpec
from pipelines.sources import SourceError


def spec_of(tmp_path):
    return DatasetSpec("mine", "llava", tmp_path / "data", tmp_path / "data")


def test_what_was_skipped_is_in_the_manifest_and_the_log(tmp_path):
    talk = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    data = tmp_path / "data"
    for name in ("a.json", ".ipynb_checkpoints/a-checkpoint.json", "._a.json"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(json.dumps([{"conversations": [*talk, talk[0]]}]))
    lines = []
    manifest = read_manifest(build_annotations(Store(tmp_path / "store"), spec_of(tmp_path), lines.append))
    assert (manifest["num_rows"], manifest["files_rows"]) == (1, [["a.json", 0]])
    assert {reason: each["count"] for reason, each in manifest["skipped"].items()} == {
        "hidden_file": 2, "unanswered_end": 1,
    }  # fmt: skip
    assert "mine: 2 hidden_file skipped, such as ._a.json, .ipynb_checkpoints" in lines


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_links_to_outside_are_read_or_refused_by_name(tmp_path, kind):
    talk = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    for name in ("data", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(json.dumps([{"conversations": talk}]))
    target = "../elsewhere" if kind == "directory" else "../elsewhere/elsewhere.json"
    link = tmp_path / "data" / ("part1" if kind == "directory" else "part1.json")
    link.symlink_to(target)
    assert read_manifest(build_annotations(Store(tmp_path / "store"), spec_of(tmp_path), print))["num_rows"] == 2
    with pytest.raises(SourceError, match=r"data/part1.* is, through a link, outside .*image_links"):
        build_annotations(Store(tmp_path / "store"), replace(spec_of(tmp_path), image_links="refuse"), print)
