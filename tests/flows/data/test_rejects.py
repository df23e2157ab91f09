"""A build that rejects most of a dataset fails."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.data.rejects import TooManyRejects, check_rejects
from pipelines.core.integrity import write_manifest
from pipelines.decontamination.match import REASON
from pipelines.schema import REJECTS, SKIPS


@pytest.fixture
def examples(tmp_path):
    """examples(rows, turns) → a store entry with these ledgers and one reject per reason."""

    def make(rows: dict[str, Any], turns: dict[str, Any] | None = None) -> Path:
        nothing = {"read": 0, "examples": 0, "duplicates": 0, "rejects": {}}
        content = {"rows": nothing | rows, "turns": nothing | (turns or {})}
        reasons = [*rows["rejects"], *(turns or nothing)["rejects"]]
        listed = [{"row": 7, "turn": -1, "reason": reason, "detail": f"why {reason}"} for reason in reasons]
        pq.write_table(pa.Table.from_pylist(listed, REJECTS), tmp_path / "rejects-00000.parquet")
        write_manifest(tmp_path, content)
        return tmp_path

    return make


def test_too_many_rejected_rows_fail_with_reasons_and_file(examples):
    directory = examples({"read": 100, "examples": 49, "rejects": {"too_long": 2, "image_missing": 49}})
    with pytest.raises(TooManyRejects) as caught:
        check_rejects({"vqav2": directory}, {"vqav2": 0.5})
    text = str(caught.value)
    assert text.startswith(
        "datasets.vqav2: 51 of 100 rows (51%) were rejected, more than the 50% that max_rejects allows:"
    )
    assert text.index("49 image_missing, e.g. row 7: why image_missing") < text.index("2 too_long, e.g. row 7")
    assert f"{directory}/rejects-*.parquet" in text and "raise datasets.vqav2.max_rejects" in text
    check_rejects({"vqav2": directory}, {"vqav2": 0.51})


def test_skips_and_duplicates_do_not_count(examples):
    assert REASON in SKIPS
    usual = {"read": 1000, "examples": 10, "duplicates": 40}
    check_rejects({"a": examples({**usual, "rejects": {"other_split": 800, "benchmark": 101, "bad": 49}})}, {"a": 0.5})
    mostly = examples({**usual, "duplicates": 0, "rejects": {"other_split": 800, "benchmark": 101, "bad": 89}})
    with pytest.raises(TooManyRejects, match=r"89 of 99 rows \(90%\)"):
        check_rejects({"a": mostly}, {"a": 0.5})


def test_rejected_turns_count_as_well(examples):
    directory = examples({"read": 10, "examples": 10, "rejects": {}}, {"read": 40, "rejects": {"empty_answer": 30}})
    with pytest.raises(TooManyRejects, match=r"30 of 40 turns \(75%\)"):
        check_rejects({"a": directory}, {"a": 0.5})
    check_rejects({"a": directory}, {"a": 1.0})


def test_a_dataset_without_its_images_fails_before_shards_are_built(recipe_of, build_data):
    changes = {"datasets/vqav2/images": "BLIP", "datasets/refcoco/images": "BLIP", "max_rejects": 0.9}
    with pytest.raises(TooManyRejects, match=r"datasets\.refcoco: [\s\S]*67 image_missing[\s\S]*datasets\.vqav2: "):
        build_data(recipe_of(changes))
    assert recipe_of(changes | {"datasets/vqav2/max_rejects": 1}).max_rejects_of("vqav2") == 1
