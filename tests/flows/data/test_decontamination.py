"""Benchmarks that a recipe keeps out of its training data: checks, readers, overlaps and reports."""

import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.tiny import WriteRecipe, write_tiny

from flows.data.decontamination import read_items
from flows.data.stage_data import dataset_examples, stage_data
from flows.preflight.check import check_inputs, check_settings
from flows.recipe.recipe import RecipeError, load_recipe
from flows.report import overlaps
from flows.runs.find import RunError, open_run
from flows.runs.workspace import Workspace, locate_workspace, open_workspace
from model.training.sample_backbones import train_backbones
from pipelines.core.store import read_manifest
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.sample_corpus import write_sample


def quiet(line: str) -> None:
    pass


def listed(**benchmarks) -> dict:
    return {"benchmarks": benchmarks}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({}, "decontamination: .*list `benchmarks`, or set `evaluation: true`"),
        (listed(x={}), "decontamination.benchmarks.x: .*give `path` for official files, or `images` or `questions`"),
        (listed(x={"path": "a", "questions": "b"}), "decontamination.benchmarks.x: .*do not go together"),
        (listed(x={"images": "a", "reader": "pope"}), "decontamination.benchmarks.x: .*give their `path`"),
        (listed(x={"questions": "a"}) | {"questions": 0}, "nothing of x is compared"),
        (listed(x={"images": "a"}) | {"images": "skip"}, "nothing of x is compared"),
        (listed(x={"path": "a"}) | {"images": "skip", "questions": 0}, "nothing of x is compared"),
        (listed(x={"images": "a"}) | {"questions": 2}, "fewer than four words"),
        (listed(x={"images": "a"}) | {"distance": 30}, "decontamination.distance"),
        (
            listed(pope={"images": "a"}) | {"evaluation": True},
            r"names \['pope'\], which `evaluation: true` already adds",
        ),
    ],
)
def test_contradictory_or_useless_settings_are_rejected(write_recipe: WriteRecipe, part, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe({"decontamination": part}))


def test_images_cannot_be_compared_if_they_are_skipped(write_recipe):
    part = listed(pope={"path": "POPE"})
    with pytest.raises(RecipeError, match="compares images, but `images: skip` opens none"):
        load_recipe(write_recipe({"images": "skip", "decontamination": part}))
    load_recipe(write_recipe({"images": "skip", "decontamination": part | {"images": "skip"}}))


def test_evaluation_without_benchmarks_is_rejected(write_recipe):
    with pytest.raises(RecipeError, match="`evaluation` lists no benchmark"):
        load_recipe(write_recipe({"evaluation/benchmarks": {}, "decontamination": {"evaluation": True}}))


def test_an_unknown_reader_is_reported(write_recipe):
    part = listed(mmme={"path": "x"}, dev={"path": "y", "reader": "mmbench"})
    with pytest.raises(
        RecipeError, match=r"decontamination.benchmarks.mmme: no benchmark 'mmme'; known: .*mmb"
    ) as caught:
        check_settings(load_recipe(write_recipe({"decontamination": part})))
    assert "benchmarks.dev" not in str(caught.value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_sample(root, scenes=40, held_out=12, seed=0)
    return root


@pytest.fixture
def workspace(tmp_path, corpus):
    """workspace({"x": {"images": …}}) → the workspace of a recipe for the sample corpus that lists these benchmarks."""

    def make(benchmarks: dict, **part) -> Workspace:
        paths = {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs"), "data": str(corpus)}
        changes = {"sample": None, "paths": paths, "decontamination": {"benchmarks": benchmarks, **part}}
        return locate_workspace(load_recipe(write_tiny(tmp_path, changes)))

    return make


def problems(workspace: Workspace) -> str:
    with pytest.raises(RecipeError) as caught:
        check_inputs(workspace)
    return str(caught.value)


def test_missing_and_invalid_benchmarks_are_reported_before_the_build(workspace, corpus, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "bad.jsonl").write_text('{"question": "Why?"}\n{"q": "Why?"}\n')
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "README").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "elsewhere").symlink_to(tmp_path / "nothing")
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "a.JPG").symlink_to(tmp_path / "gone.jpg")
    text = problems(
        workspace(
            {
                "pope": {"path": "POPE", "images": "BLIP"},
                "mmbench": {"path": "nowhere.tsv"},
                "a": {"images": "nowhere"},
                "b": {"questions": f"{tmp_path}/empty.txt"},
                "c": {"questions": f"{tmp_path}/bad.jsonl"},
                "d": {"images": f"{tmp_path}/nothing"},
                "e": {"images": f"{tmp_path}/linked"},
                "f": {"images": f"{tmp_path}/dangling"},
                "g": {"questions": "nowhere.txt"},
            }
        )
    )
    for message in (
        "pope: 12 of 12 images below ",
        f"mmbench: {corpus}/nowhere.tsv does not exist",
        f"a: {corpus}/nowhere is not a directory",
        f"b: {tmp_path}/empty.txt contains no questions",
        f"c: {tmp_path}/bad.jsonl:2: has no string field `question` or `text`, only q",
        f"d: {tmp_path}/nothing contains no images",
        f"e: {tmp_path}/linked contains no images",
        f"f: {tmp_path}/dangling/a.JPG links to {tmp_path}/gone.jpg: No such file or directory",
        f"g: {corpus}/nowhere.txt is not a file",
    ):
        assert f"decontamination.benchmarks.{message}" in text


def test_official_files_are_read_by_their_readers(workspace, corpus):
    listing = workspace(
        {
            "pope": {"path": "POPE", "images": "POPE/images"},
            "dev": {"path": "MMBench/mmbench_dev.tsv", "reader": "mmbench"},
            "mme": {"path": "MME"},
            "scienceqa": {"path": "ScienceQA-test"},
            "seed_bench": {"path": "SEED-Bench/SEED-Bench.json", "images": "SEED-Bench/SEED-Bench-image"},
        }
    )
    check_inputs(listing)
    pope, dev = read_items(listing, "pope"), read_items(listing, "dev")
    assert {image.item for image in pope.images} == {p.name for p in (corpus / "POPE/images").iterdir()}
    assert pope.questions[0][0].startswith(("adversarial/", "popular/", "random/"))
    rows = len((corpus / "MMBench/mmbench_dev.tsv").read_text().splitlines()) - 1
    assert 0 < len(dev.questions) < rows  # rotated copies of a question count once
    assert all(image.identity.startswith("sha256:") for image in dev.images)  # they are embedded in the file
    assert Image.open(io.BytesIO(dev.images[0].read())).size == (32, 32)
    for name, folder, suffix in (
        ("mme", "MME", ".jpg"),
        ("scienceqa", "ScienceQA-test", ".png"),
        ("seed_bench", "SEED-Bench/SEED-Bench-image", ""),
    ):
        items, root = read_items(listing, name), corpus / folder
        files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix == suffix}
        assert files and {image.item for image in items.images} == files
        assert not any(image.identity.startswith("sha256:") for image in items.images)  # identified by path and mtime
        assert items.questions


def test_every_benchmark_of_the_sample_has_images_and_questions(workspace):
    listing = workspace(
        {
            "llava_bench": {"path": "LLaVA-Bench", "images": "LLaVA-Bench/images"},
            "mm_vet": {"path": "MM-Vet", "images": "MM-Vet/images"},
            "mmmu": {"path": "MMMU"},
            "owleval": {"path": "OwlEval", "images": "OwlEval/cases"},
        }
    )
    check_inputs(listing)
    for name in ("llava_bench", "mm_vet", "mmmu", "owleval"):
        items = read_items(listing, name)
        assert items.questions and len(items.images) > 5, name
        assert all(Image.open(io.BytesIO(image.read())).size == (32, 32) for image in items.images)
    both = read_items(listing, "mmmu")
    assert any("#image_2:" in image.item for image in both.images), "all images of a question must be included"


def test_plain_files_are_read(workspace, tmp_path):
    (tmp_path / "shown" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.JPEG"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "shown" / name)
    (tmp_path / "shown" / "LICENSE").touch()
    (tmp_path / "q.txt").write_text("Why?\n\nWho are they?\n")
    (tmp_path / "q.jsonl").write_text('{"question": "Why?"}\n{"text": "Who are they?"}\n')
    listing = workspace(
        {
            "a": {"images": f"{tmp_path}/shown", "questions": f"{tmp_path}/q.txt"},
            "b": {"questions": f"{tmp_path}/q.jsonl"},
        }
    )
    a, b = read_items(listing, "a"), read_items(listing, "b")
    assert [image.item for image in a.images] == ["a.png", "deep/b.JPEG"]
    assert a.ignored_files == ["LICENSE"]
    assert a.questions == [("q.txt:1", "Why?"), ("q.txt:3", "Who are they?")]
    assert b.questions == [("q.jsonl:1", "Why?"), ("q.jsonl:2", "Who are they?")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A store with the sample corpus, a tokenizer, and five images of its VQAv2 under different names."""
    root = tmp_path_factory.mktemp("run")
    data = open_workspace(load_recipe(write_tiny(root, {})), quiet).data
    train_backbones(data, root / "models", vision_steps=1, llm_steps=1)
    (root / "shown").mkdir()
    for number, path in enumerate(sorted((data / "VQAv2/images").glob("*5.jpg"))[:5]):
        shutil.copy(path, root / "shown" / f"{number}.jpg")
    return root


def build(root: Path, **part) -> dict[str, Any]:
    """Builds a recipe that lists those images as a benchmark, links the data from `results`, and returns the manifest
    of VQAv2's examples."""
    part = {"benchmarks": {"ours": {"images": str(root / "shown")}}, "evaluation": True, **part}
    link_data(root, root / "results", {"decontamination": part})
    return read_manifest(open_run(root / "results").examples_of("finetune")["vqav2"])


def link_data(root: Path, results: Path, changes: dict) -> None:
    """Builds the fine-tuning data of a recipe and links it from a results directory, as a run does."""
    workspace = open_workspace(load_recipe(write_tiny(root, changes)), quiet)
    check_inputs(workspace)
    tokenizer = prepare_tokenizer(workspace.store, str(root / "models/llm"))
    data = stage_data(workspace, "finetune", tokenizer, partial(dataset_examples, log=quiet), quiet)
    link = results / "data" / "finetune"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(data.shards)
    (results / "recipe.yaml").touch()


def entries(root: Path) -> set[str]:
    return {str(path.parent.relative_to(root / "store")) for path in (root / "store").glob("*/*/manifest.json")}


@pytest.mark.slow
def test_overlaps_are_dropped_reported_and_rebuilt_when_the_benchmark_changes(root):
    manifest = build(root)
    gone = manifest["rows"]["rejects"]["benchmark"]
    assert manifest["overlaps"]["ours"]["bytes"] == 5
    assert manifest["overlaps"]["ours"]["rows"] == gone > 5
    lines = "\n".join(overlaps.report(str(root / "results")))
    for text in ("vqav2    ours", "dropped", "COCO_train2014_", "0.jpg", "overlaps-*.parquet"):
        assert text in lines

    before = entries(root)
    build(root)
    assert entries(root) == before

    reported = build(root, action="report")
    assert "benchmark" not in reported["rows"]["rejects"]
    assert reported["overlaps"] == manifest["overlaps"]
    assert "reported only" in "\n".join(overlaps.report(str(root / "results")))
    assert sorted(kind(name) for name in entries(root) - before) == ["examples", "examples", "shards"]

    before = entries(root)
    (root / "shown" / "4.jpg").unlink()
    assert 0 < build(root)["rows"]["rejects"]["benchmark"] < gone
    new = sorted(entries(root) - before)
    assert [kind(name) for name in new] == ["benchmark_items", "examples", "examples", "shards"]
    assert read_manifest(root / "store" / new[0])["num_pictures"] == 4


def kind(entry: str) -> str:
    return entry.split("/")[0]


@pytest.mark.slow
def test_a_run_without_decontamination_has_no_overlap_report(root, tmp_path):
    link_data(root, tmp_path, {})
    with pytest.raises(RunError, match="has no `decontamination`"):
        list(overlaps.report(str(tmp_path)))
    with pytest.raises(RunError, match="no run "):
        list(overlaps.report(str(tmp_path / "nowhere")))
