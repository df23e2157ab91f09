"""Builds the real corpora from official files to examples: every row is in an example or is an expected reject."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.example_settings import settings_of

from pipelines.core.arrow_files import read_table
from pipelines.core.store import Store, read_manifest
from pipelines.dedup.settings import Dedup
from pipelines.examples.ledger import check_ledger
from pipelines.jobs.dataset import DatasetSpec, Tables
from pipelines.jobs.examples import build_examples
from pipelines.jobs.images import build_images

pytestmark = pytest.mark.realdata

# dataset → (annotations, images, rows), as listed in the README of the real data
CORPUS = {
    "vqav2": ("VQAv2", "VQAv2/images", 73),
    "aokvqa": ("A-OKVQA", "coco/images", 26),
    "vsr": ("VSR", "VSR/images", 21),
    "refcoco": ("refcoco/annotations", "coco/images/train2014", 14),
    "refcoco+": ("refcoco/annotations", "coco/images/train2014", 12),
    "refcocog": ("refcoco/annotations", "coco/images/train2014", 4),
    "scienceqa": ("ScienceQA", "ScienceQA/images", 300),
    "blipcapfilt": ("BLIP/blip_cc_sbu", "BLIP/blip_cc_sbu", 200),
    "coyo100m": ("coyo/coyo100m", "coyo/coyo100m", 32),
    "llava150k": ("llava_instruct", "llava_instruct/images", 82),
    "sharegpt": ("Vicuna", "Vicuna", 115),
}
TEXT = {  # without images
    "gqa": ("GQA/annotations", 12_578),
    "visual_genome": ("VisualGenome/metadata", 1_278),
}


def check_build(directory: Path, rows: int, rejects: dict[str, int]) -> None:
    """Compares a dataset's ledger with the contents of its files."""
    manifest = read_manifest(directory)
    ledger = manifest["rows"]
    check_ledger("rows", ledger)
    check_ledger("turns", manifest["turns"])
    assert (ledger["read"], ledger["rejects"]) == (rows, rejects)
    examples = pa.concat_tables([read_table(path) for path in sorted(directory.glob("examples-*.arrow"))])
    tables = {
        kind: pa.concat_tables([pq.read_table(path) for path in sorted(directory.glob(f"{kind}-*.parquet"))])
        for kind in ("rejects", "duplicates")
    }
    kept = {turn["row"] for turns in examples["turns"].to_pylist() for turn in turns}
    refused = {kind: set(table["row"].to_pylist()) - kept for kind, table in tables.items()}
    assert kept | refused["rejects"] | refused["duplicates"] == set(range(rows))
    assert len(kept) == ledger["examples"] and len(refused["duplicates"]) == ledger["duplicates"]


def test_the_real_corpus_builds_with_known_rejects(realdata, tmp_path, tokenizer_dir):
    store, corpus = Store(tmp_path), realdata / "corpus"
    specs = [
        DatasetSpec(name, name, corpus / annotations, corpus / images, max_turns=10, dedup=Dedup(rule="answer"))
        for name, (annotations, images, _) in CORPUS.items()
    ]
    images = build_images(store, specs, log=lambda line: None)
    for spec in specs:
        # The limit is high enough that no row is too long, even with this small tokenizer.
        settings = settings_of(spec, tokenizer_dir, max_text_tokens=40_000)
        directory = build_examples(store, spec, settings, Tables(images[spec.name]), log=lambda line: None)
        check_build(directory, CORPUS[spec.name][2], {"image_missing": 20} if spec.name == "vqav2" else {})


@pytest.mark.parametrize("name", sorted(TEXT))
def test_annotations_without_images(realdata, tmp_path, tokenizer_dir, name):
    folder, rows = TEXT[name]
    spec = DatasetSpec(
        name, name, realdata / "text" / folder, realdata / "text" / folder, 10, dedup=Dedup(rule="answer")
    )
    settings = settings_of(spec, tokenizer_dir, max_text_tokens=1023)
    directory = build_examples(Store(tmp_path), spec, settings, log=lambda line: None)
    check_build(directory, rows, {})
