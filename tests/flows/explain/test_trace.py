"""Tracing: every trained token leads back to the row of the official file that it came from."""

import json
import shutil
import tarfile
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.tiny import write_tiny

from flows.data.stage_data import dataset_examples, stage_data
from flows.explain.trace import TraceError, lines, trace
from flows.recipe.recipe import load_recipe
from flows.report.duplicates import show
from flows.runs.find import RunError
from flows.runs.results import Results
from flows.runs.workspace import STAGES, open_workspace
from model.training.sample_backbones import train_backbones
from pipelines.jobs.tokenizer import prepare_tokenizer

WEIGHTS = {"vqav2": 0.4, "aokvqa": 0.2, "refcoco": 0.2, "llava150k": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run for which only the data has been built."""
    root = tmp_path_factory.mktemp("trace")
    datasets = {
        "vqav2": {"annotations": "VQAv2", "images": "VQAv2/images", "max_turns": 10},
        "aokvqa": {"annotations": "A-OKVQA", "images": "coco/images", "max_turns": 4, "dedup": {"rule": "answer"}},
        "llava150k": {"annotations": "llava_instruct", "images": "coco/images/train2017"},
    }
    changes = {f"datasets/{name}": entry for name, entry in datasets.items()}
    changes["finetune/data/weights"] = WEIGHTS
    recipe = load_recipe(write_tiny(root, changes))
    workspace = open_workspace(recipe, print)
    train_backbones(workspace.data, root / "backbones", vision_steps=1, llm_steps=1)
    tokenizer = prepare_tokenizer(workspace.store, str(root / "backbones/llm"))
    results = Results(recipe, "data")
    for stage in STAGES:
        data = stage_data(workspace, stage, tokenizer, partial(dataset_examples, log=print), print)
        results.link(f"data/{stage}", data.shards)
    return results.directory


def samples(run, stage):
    for number, path in enumerate(sorted((run / "data" / stage).glob("shard-*.parquet"))):
        for row, sample in enumerate(pq.read_table(path).to_pylist()):
            yield number, row, sample


def official(turn):
    """Returns the content of the official file at the traced row."""
    path, row = Path(turn["file"]), turn["row_in_file"]
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            names = list(dict.fromkeys(member.name.split(".")[0] for member in tar.getmembers()))
            return {"caption": tar.extractfile(f"{names[row]}.txt").read().decode()}
    content = json.loads(path.read_text())
    if path.name.startswith("v2_"):
        return {"question": content["questions"][row]["question"]}
    if path.name.startswith("finetune_"):
        return {"phrase": content["images"][row]["caption"]}
    if path.name.startswith("aokvqa"):
        entry = content[row]
        return {"question": entry["question"], "choices": entry["choices"], "answer_index": entry["correct_choice_idx"]}
    asked, said = content[row]["conversations"][2 * turn["turn_in_row"] :][:2]
    assert (asked["value"].replace("<image>", "").strip(), said["value"]) == (turn["user"], turn["assistant"])
    return {}


@pytest.mark.parametrize("stage", STAGES)
def test_every_turn_is_traced_to_its_official_row(run, stage):
    seen = set()
    for shard, row, sample in list(samples(run, stage))[:24]:
        found = trace(str(run), stage, shard, row)
        assert (found["dataset"], found["sample"]) == (sample["dataset"], sample["index"])
        for turn in found["turns"]:
            expected = official(turn)
            assert {name: turn["annotation"][name] for name in expected} == expected
            assert turn["template"]["id"].startswith((found["dataset"], "plain"))
            assert turn["supervised"]["text"].strip() == f"{turn['assistant']}</s>".strip()
        seen.add(found["dataset"])
    assert len(seen) >= 2


def test_a_moved_run_is_traced_from_another_directory(run, tmp_path, monkeypatch):
    here = trace(str(run), "finetune", 0, 0)
    moved = tmp_path / "moved"
    shutil.copytree(run, moved, symlinks=True)
    recipe = yaml.safe_load((moved / "recipe.yaml").read_text())
    recipe["paths"] |= {"store": "store", "data": "data"}  # as in a recipe whose paths start where `honeybee` ran
    (moved / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    assert trace(str(moved), "finetune", 0, 0) == here
    assert list(show(str(moved), "vqav2", limit=2)) == list(show(str(run), "vqav2", limit=2))


def test_every_token_belongs_to_exactly_one_turn(run):
    shard, row, sample = next(s for s in samples(run, "finetune") if len(s[2]["turns"]) > 1)
    turns = trace(str(run), "finetune", shard, row)["turns"]
    owners = [turn["turn"] for turn in turns for _ in range(*turn["tokens"])]
    assert len(owners) == sample["num_tokens"]
    for token in (0, 10, len(owners) // 2, len(owners) - 1):
        (turn,) = trace(str(run), "finetune", shard, row, token=token)["turns"]
        assert turn["turn"] == owners[token]


def test_the_deduplication_decision_is_shown(run):
    dropped = {}
    for path in sorted((run.parents[2] / "store/examples").glob("*/duplicates-*.parquet")):
        for entry in pq.read_table(path).to_pylist():
            dropped[json.loads((path.parent / "manifest.json").read_text())["dataset"], entry["kept_row"]] = entry
    for shard, row, sample in samples(run, "finetune"):
        for number, turn in enumerate(sample["turns"]):
            if (sample["dataset"], turn["row"]) in dropped:
                (found,) = trace(str(run), "finetune", shard, row, number)["turns"]
                assert f"row {dropped[sample['dataset'], turn['row']]['row']} " in str(found["deduplication"])
                return
    raise AssertionError("no sample has a turn with a dropped duplicate")


def test_a_trace_is_formatted_as_text(run):
    text = "\n".join(lines(trace(str(run), "finetune", 0, 0)))
    for word in ("Sample 0 of finetune", "row ", "template", "duplicates", "supervised"):
        assert word in text


def test_invalid_positions_are_reported(run, tmp_path):
    with pytest.raises(TraceError, match=r"there is no shard 99: .* counted from 0"):
        trace(str(run), "finetune", 99, 0)
    with pytest.raises(TraceError, match="there is no row 99999"):
        trace(str(run), "finetune", 0, 99999)
    with pytest.raises(TraceError, match="there is no turn 99"):
        trace(str(run), "finetune", 0, 0, turn=99)
    with pytest.raises(TraceError, match="there is no token 99999"):
        trace(str(run), "finetune", 0, 0, token=99999)
    with pytest.raises(TraceError, match="has no data of stage 'test'"):
        trace(str(run), "test", 0, 0)
    with pytest.raises(RunError, match="there is no run nowhere"):
        trace("nowhere", "finetune", 0, 0)
    with pytest.raises(RunError, match=r"has no recipe\.yaml"):
        trace(str(tmp_path), "finetune", 0, 0)


def test_dropped_turns_are_shown_with_the_kept_turns(run):
    text = list(show(str(run), "vqav2", limit=3))
    assert text[0].startswith("finetune, vqav2: dropped ") and text[0].endswith(" turns; the 3 most surprising:")
    rules, kept, dropped = text[1::3], text[2::3], text[3::3]
    assert len(rules) == len(kept) == len(dropped) == 3
    assert all(line.startswith("  semantic 0.") for line in rules)
    assert all(line.startswith("    kept     row ") for line in kept)
    assert all(line.startswith("    dropped  row ") for line in dropped)
    every = "\n".join(show(str(run), None, limit=1))
    assert "finetune, aokvqa: " in every and "pretrain, blipcapfilt: dropped 0 of " in every
    with pytest.raises(RunError, match="has no dataset 'gqa'; it has aokvqa"):
        list(show(str(run), "gqa", limit=1))
