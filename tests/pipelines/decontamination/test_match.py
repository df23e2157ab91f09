"""Tests that rows overlapping with a benchmark are found, listed, dropped or kept, and counted in the ledger."""

import dataclasses
import hashlib
import tempfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.example_settings import example_settings
from support.images import encode, noise

from pipelines.core.arrow_files import read_table, write_batches
from pipelines.core.integrity import write_manifest
from pipelines.core.store import Store
from pipelines.decontamination.match import Decontamination
from pipelines.examples.beam_job import ExamplesJob, run_examples_job
from pipelines.examples.ledger import check_ledger
from pipelines.examples.render import Renderer
from pipelines.images.references import ImageRoot
from pipelines.images.table import images_table
from pipelines.jobs.benchmark_items import BenchmarkImage, BenchmarkItems, BenchmarkItemsError, build_benchmark_items
from pipelines.schema import ANNOTATIONS, IMAGES
from pipelines.templates.sets import load_templates

BEAM = ["--runner=FnApiRunner"]
LONG = "What is the tall man with the red umbrella doing beside the old yellow bus, please?"
ROWS = 60
NUM_IMAGES = 20  # row r shows image r % 20


def benchmark_image(name: str, data: bytes) -> BenchmarkImage:
    return BenchmarkImage(name, hashlib.sha256(data).hexdigest(), partial(bytes, data))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def benchmarks(store):
    """Two benchmarks with training image 3, byte for byte; the first also has image 5, resized and re-encoded."""
    shown = [
        benchmark_image("val/three.png", encode(noise(3))),
        benchmark_image("val/five.jpg", encode(noise(5).resize((100, 90)), "JPEG", quality=40)),
        benchmark_image("val/other.png", encode(noise(500))),
    ]
    one = BenchmarkItems("pope", shown, [("random/1", "Is there a dog?"), ("random/2", LONG)])
    two = BenchmarkItems("mme", shown[:1], [])
    return tuple((items.name, str(build_benchmark_items(store, items, print))) for items in (one, two))


@pytest.fixture
def job(tmp_path, tokenizer_dir, benchmarks):
    for name in ("annotations", "images", "out", "pictures"):
        (tmp_path / name).mkdir()
    for k in range(NUM_IMAGES):
        (tmp_path / "pictures" / f"{k}.png").write_bytes(encode(noise(k)))
    rows = [
        {"row": r, "image": f"{r % NUM_IMAGES}.png", "question": "Is there a dog?", "answer": "no"} for r in range(ROWS)
    ]
    rows[10]["question"] = f"Tell me: {LONG.upper().replace(',', ' —')}"
    rows[23]["question"] = LONG  # shows image 3, so both image and question overlap
    rows[11]["answer"] = " "
    table = pa.Table.from_pylist(rows, ANNOTATIONS["open_question"])
    write_batches(tmp_path / "annotations" / "annotations-00000.arrow", table.schema, table.to_batches(25))
    measured = images_table(tmp_path / "pictures", [f"{k}.png" for k in range(NUM_IMAGES)])
    write_batches(tmp_path / "images" / "images.arrow", IMAGES, measured.to_batches())
    settings = example_settings(
        tokenizer_dir, max_turns=3, decontamination=Decontamination(benchmarks, "perceptual", 8, 13, "drop")
    )
    for name in ("annotations", "images"):
        write_manifest(tmp_path / name, {})
    return ExamplesJob(tmp_path / "annotations", tmp_path / "images", None, settings, 3, tmp_path / "out")


def changed(job: ExamplesJob, tmp_path, **changes) -> ExamplesJob:
    """The job with different decontamination settings and its own output directory."""
    settings = dataclasses.replace(job.settings.decontamination, **changes)
    out = Path(tempfile.mkdtemp(dir=tmp_path))
    return dataclasses.replace(job, settings=dataclasses.replace(job.settings, decontamination=settings), out=out)


def parts(job: ExamplesJob, kind: str) -> list[dict]:
    tables = [pq.read_table(job.part(kind, p, "parquet")) for p in range(job.partitions)]
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda entry: (entry["row"], entry["turn"]))


def rows_in_examples(job: ExamplesJob) -> set[int]:
    tables = [read_table(job.part("examples", p, "arrow")) for p in range(job.partitions)]
    return {turn["row"] for example in pa.concat_tables(tables).to_pylist() for turn in example["turns"]}


def test_rows_that_overlap_with_a_benchmark_are_dropped(job):
    counts = run_examples_job(job, BEAM)
    rejects = {(e["row"], e["turn"]): (e["reason"], e["detail"]) for e in parts(job, "rejects")}
    same = "3.png is byte-identical to pope, val/three.png"
    alike = {d for (row, _), (_, d) in rejects.items() if row % NUM_IMAGES == 5}
    assert {key: why for key, why in rejects.items() if key[0] % NUM_IMAGES not in (3, 5)} == {
        (10, 0): (
            "benchmark",
            "the question shares 'what is the tall man with the red umbrella doing beside the old' with pope, random/2",
        ),
        (11, 0): ("empty_answer", "the answer is empty"),
    }
    assert [rejects[row, -1] for row in (3, 23, 43)] == [("benchmark", same)] * 3
    assert len(alike) == 1 and alike.pop().startswith("5.png looks like pope, val/five.jpg (")
    assert rows_in_examples(job) == {r for r in range(ROWS) if r % NUM_IMAGES not in (3, 5) and r not in (10, 11)}
    for part in counts:
        check_ledger("rows", part["rows"])
    assert sum(part["rows"]["rejects"].get("benchmark", 0) for part in counts) == 7


def test_every_overlap_is_listed_whether_dropped_or_not(job, tmp_path):
    report = changed(job, tmp_path, action="report")
    counts = [run_examples_job(each, BEAM) for each in (job, report)]
    listed = parts(job, "overlaps")
    assert listed == parts(report, "overlaps")
    entries = [(e["row"], e["turn"], e["benchmark"], e["item"], e["kind"]) for e in listed]
    assert entries[0] == (3, -1, "pope", "val/three.png", "bytes")
    assert sorted(entries) == sorted(
        [(r, -1, name, "val/three.png", "bytes") for r in (3, 23, 43) for name in ("pope", "mme")]
        + [(r, -1, "pope", "val/five.jpg", "perceptual") for r in (5, 25, 45)]
        + [(r, 0, "pope", "random/2", "question") for r in (10, 23)]
    )
    assert {e["distance"] for e in listed if e["kind"] == "bytes"} == {0}
    assert rows_in_examples(report) == set(range(ROWS)) - {11}
    for each in counts:
        total = {
            name: {key: sum(part["overlaps"][name][key] for part in each) for key in each[0]["overlaps"][name]}
            for name in ("pope", "mme")
        }
        assert total == {
            "pope": {"bytes": 1, "perceptual": 1, "question": 2, "rows": 7},
            "mme": {"bytes": 1, "perceptual": 0, "question": 0, "rows": 3},
        }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"images": "exact"}, {3, 23, 43, 10}), ({"images": "skip"}, {10, 23}), ({"words": 0}, None)],
)
def test_each_comparison_can_be_switched_off(job, tmp_path, changes, expected):
    job = changed(job, tmp_path, **changes)
    run_examples_job(job, BEAM)
    dropped = {e["row"] for e in parts(job, "rejects") if e["reason"] == "benchmark"}
    assert dropped == ({r for r in range(ROWS) if r % NUM_IMAGES in (3, 5)} if expected is None else expected)


def test_output_bytes_do_not_depend_on_batches(job, tmp_path):
    def outputs(job):
        return {p.name: hashlib.sha256(p.read_bytes()).digest() for p in sorted(job.marker(0).parent.iterdir())}

    run_examples_job(job, BEAM)
    table = read_table(tmp_path / "annotations" / "annotations-00000.arrow")
    (tmp_path / "other").mkdir()
    write_batches(tmp_path / "other" / "annotations-00000.arrow", table.schema, table.slice(40).to_batches(7))
    write_batches(tmp_path / "other" / "annotations-00001.arrow", table.schema, table.slice(0, 40).to_batches(11))
    write_manifest(tmp_path / "other", {})
    again = dataclasses.replace(job, annotations=tmp_path / "other", out=tmp_path / "again")
    run_examples_job(again, BEAM)
    assert outputs(again) == outputs(job)


def test_only_the_overlapping_turn_of_a_conversation_is_dropped(job):
    turns = [{"user": text, "assistant": "yes"} for text in ("Hello.", LONG, "And now?")]
    rows = [{"row": 4, "turns": turns}, {"row": 9, "turns": turns[1:2]}]
    table = pa.Table.from_pylist(rows, ANNOTATIONS["conversation"])
    settings = dataclasses.replace(
        job.settings,
        dataset="llava150k",
        task="conversation",
        templates=load_templates("fine", "llava150k", "conversation"),
    )
    rendered = Renderer(settings).render(table, IMAGES.empty_table())
    [example] = rendered.examples.to_pylist()
    assert [(turn["row"], turn["turn"]) for turn in example["turns"]] == [(4, 0), (4, 2)]
    assert [(e["row"], e["turn"]) for e in rendered.overlaps.to_pylist()] == [(4, 1), (9, 0)]
    assert rendered.counts["rows"] == {"read": 2, "examples": 1, "duplicates": 0, "rejects": {"benchmark": 1}}
    assert rendered.counts["turns"]["rejects"] == {"benchmark": 2}


def test_every_image_of_a_row_is_compared(job):
    table = pa.table(
        {
            "row": pa.array([0, 1, 2, 3], pa.int64()),
            "image": ["1.png", "2.png", None, "3.png"],
            "turns": [[{"user": "Hello.", "assistant": "Hello."}]] * 4,
            "more_images": pa.array([["4.png", "3.png"], None, ["5.png"], []], pa.list_(pa.string())),
        }
    )
    images = read_table(job.marker(0).parent.parent / "images" / "images.arrow")
    [batch] = table.to_batches()
    found = Renderer(job.settings, job.embeddings).benchmarks.find(batch, "conversation", images)
    entries = [(e["row"], e["image"], e["item"]) for e in found.table.to_pylist() if e["benchmark"] == "pope"]
    assert entries == [(0, "3.png", "val/three.png"), (2, "5.png", "val/five.jpg"), (3, "3.png", "val/three.png")]
    assert set(found.rows()) == {0, 2, 3}


def test_the_nearest_of_several_similar_images_is_named(store, job, tmp_path):
    near = [
        benchmark_image("cropped.png", encode(noise(7).crop((2, 2, 158, 118)))),
        benchmark_image("same pixels.bmp", encode(noise(7), "BMP")),
    ]
    entry = str(build_benchmark_items(store, BenchmarkItems("near", near, []), print))
    job = changed(job, tmp_path, benchmarks=(("near", entry),), images="perceptual")
    run_examples_job(job, BEAM)
    assert {(e["item"], e["distance"]) for e in parts(job, "overlaps")} == {("same pixels.bmp", 0)}


def test_an_unreadable_image_stops_the_build(store, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(encode(noise(1), "JPEG")[:-300])
    root = ImageRoot(tmp_path)
    shown = [
        benchmark_image("good.png", encode(noise(2))),
        BenchmarkImage("cut.jpg", "x", partial(root.read, "cut.jpg")),
        BenchmarkImage("gone.jpg", "y", partial(root.read, "gone.jpg")),
    ]
    with pytest.raises(BenchmarkItemsError, match=r"ours: 2 of 3 images .*cut.jpg: image_corrupt.*gone.jpg: image_mis"):
        build_benchmark_items(store, BenchmarkItems("ours", shown, []), print)
    assert not list((store.root / "benchmark_items").glob("*/manifest.json"))


def test_a_store_entry_depends_on_the_images_and_questions_but_not_on_the_name(store):
    def built(images, questions, name="ours"):
        return build_benchmark_items(store, BenchmarkItems(name, images, questions), print)

    one, other = benchmark_image("a.png", encode(noise(1))), benchmark_image("a.png", encode(noise(2)))
    first = built([one], [("1", LONG)])
    assert built([one], [("1", LONG)], "another name") == first
    assert len({first, built([other], [("1", LONG)]), built([one], [("1", LONG + "!")]), built([one], [])}) == 4


def test_a_missing_images_table_is_an_error(job):
    table = read_table(job_file(job))
    with pytest.raises(ValueError, match="images cannot be compared"):
        Renderer(job.settings, job.embeddings).render(table, None)


def job_file(job: ExamplesJob):
    return job.marker(0).parent.parent / "annotations" / "annotations-00000.arrow"
