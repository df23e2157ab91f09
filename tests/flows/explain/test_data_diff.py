"""`honeybee diff` reports what changed between two builds, and nothing else."""

import json
import re
import shutil
from pathlib import Path

import pytest

from flows.explain.data_diff import _changes, compare, describe
from flows.runs.find import RunError
from flows.runs.results import Results
from pipelines.templates import sets


@pytest.fixture
def run(recipe_of, build_data):
    """run("a", changes) → the results directory of a finished build."""

    def make(run_id: str, changes: dict | None = None) -> str:
        recipe = recipe_of(changes)
        results = Results(recipe, run_id)
        for stage, data in build_data(recipe).items():
            results.link(f"data/{stage}", data.shards)
        results.write("report.md", "")
        return str(results.directory)

    return make


def test_the_same_recipe_has_no_differences(run):
    found = compare(run("a"), run("b"))
    assert found["recipe"] == found["stages"] == {}
    assert list(describe(found))[-1] == "No differences: both runs have the same recipe and the same shards."


def test_a_changed_weight_is_reported(run):
    found = compare(run("a"), run("b", {"finetune/data/weights/vqav2": 0.25}))
    assert found["recipe"] == {"finetune.data.weights.vqav2": [0.75, 0.25]}
    assert list(found["stages"]) == ["finetune"]
    stage = found["stages"]["finetune"]
    assert stage["datasets"]["vqav2"]["inputs"] == {}
    assert stage["datasets"]["vqav2"]["numbers"]["share"] == [0.75, 0.5]
    assert stage["datasets"]["refcoco"]["numbers"]["samples"] == [6, 12]
    assert stage["shards"]["new"] == stage["shards"]["b"] > 1
    assert 6 <= stage["samples"]["other"] <= 24
    assert stage["samples"]["built_anew"] == 0
    json.dumps(found)
    text = "\n".join(describe(found))
    assert "finetune.data.weights.vqav2  0.75 → 0.25" in text
    assert "75.00% → 50.00%" in text
    assert "Data of pretrain: identical shards" in text


def test_a_changed_template_is_reported(run, tmp_path, monkeypatch):
    one = run("a")
    shutil.copytree(sets.ROOT, tmp_path / "templates")
    file = tmp_path / "templates/fine/vqav2.yaml"
    file.write_text(file.read_text().replace("{question}", "Look: {question}"))
    monkeypatch.setattr(sets, "ROOT", tmp_path / "templates")
    found = compare(one, run("b"))
    assert found["recipe"] == {}
    stage = found["stages"]["finetune"]
    assert list(stage["datasets"]) == ["vqav2"]
    inputs = stage["datasets"]["vqav2"]["inputs"]
    assert set(inputs) == {f"templates.{t.id}.user" for t in sets.load_templates("fine", "vqav2", "open_question")}
    assert all(new == old.replace("{question}", "Look: {question}") for old, new in inputs.values())
    assert any(re.search(r'  template \S+, user +"[^"]*" → "[^"]*Look: ', line) for line in describe(found))
    assert stage["samples"] == {"a": 24, "b": 24, "other": 0, "built_anew": 18}
    assert "18 have the same example, rebuilt" in list(describe(found))[-1]


def test_added_and_removed_datasets_and_changed_settings_are_reported(run):
    weights = {"vqav2": 0.5, "coyo100m": 0.5}
    changes = {"finetune/data/weights": weights, "datasets/vqav2/max_turns": 2, "finetune/data/max_text_tokens": 60}
    stage = compare(run("a"), run("b", changes))["stages"]["finetune"]
    assert stage["datasets"]["coyo100m"]["added"]["samples"] == 12
    assert stage["datasets"]["refcoco"]["removed"]["samples"] == 6
    vqav2 = stage["datasets"]["vqav2"]
    assert vqav2["inputs"] == {"max_turns": [4, 2], "max_text_tokens": [256, 60]}
    assert vqav2["numbers"]["examples"][0] < vqav2["numbers"]["examples"][1]


def test_a_changed_annotation_file_is_reported(run, corpus, tmp_path):
    shutil.copytree(corpus / "data", tmp_path / "data")
    paths = {"store": str(corpus / "store"), "runs": str(tmp_path / "runs"), "data": str(tmp_path / "data")}
    one = run("a", {"paths": paths})
    path = tmp_path / "data/VQAv2/v2_OpenEnded_mscoco_train2014_questions.json"
    path.write_text(path.read_text().replace("circle", "round thing"))
    text = "\n".join(describe(compare(one, run("b", {"paths": paths}))))
    assert f"annotation file {path.name}  " in text
    assert "v2_mscoco_train2014_annotations.json" not in text


def test_runs_that_cannot_be_compared(run, recipe_of, tmp_path):
    one = run("a")
    with pytest.raises(RunError, match="there is no run tiny/none: give its directory"):
        compare(one, "tiny/none")
    with pytest.raises(RunError, match=r"is not a run: it has no recipe\.yaml"):
        compare(one, str(tmp_path))
    with pytest.raises(RunError, match=rf"it has no recipe\.yaml; existing runs: {re.escape(str(one))}"):
        compare(str(one), str(Path(one).parent))
    unfinished = Results(recipe_of(), "started")
    with pytest.raises(RunError, match=r"started has no data yet: run it again with --run-id started"):
        compare(one, str(unfinished.directory))
    unfinished.link("data/pretrain", Path(one) / "data/pretrain")
    with pytest.raises(RunError, match=r"not finished \(data/finetune not built\).*--run-id started"):
        compare(one, str(unfinished.directory))
    unfinished.link("data/pretrain", tmp_path / "gone")
    with pytest.raises(RunError, match=r"data/pretrain: the store no longer has what .*/gone; .* recorded its store"):
        compare(one, str(unfinished.directory))


def test_rounding_of_shares_is_not_a_change():
    # Normalising by a different sum of weights can change the last digit.
    assert _changes({"share": 0.03, "samples": 3}, {"share": 0.030000000000000002, "samples": 3}) == {}
    assert _changes({"share": 0.03}, {"share": 0.0300001}) == {"share": [0.03, 0.0300001]}
