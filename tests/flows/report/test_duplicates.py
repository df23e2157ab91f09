"""Tests of the table of dropped turns."""

from pathlib import Path

import pyarrow as pa

from flows.report.duplicates import most_surprising
from pipelines.core.arrow_files import write_parquet
from pipelines.core.integrity import write_manifest
from pipelines.schema import DUPLICATES


def test_each_pair_is_shown_once_with_its_count(tmp_path: Path):
    def drop(row: int, text: str, kept: str) -> dict:
        return {"row": row, "kept_row": row + 1, "similarity": 0.8, "rule": "semantic", "text": text, "kept_text": kept}

    far, near = ("Is there a dog? yes", "What animal is this? dog"), ("Is it red? yes", "Is it a red car? yes")
    drops = [drop(10 + 2 * k, *(far if k % 2 else far[::-1])) for k in range(10)]
    drops += [drop(100, *near), drop(2, *far), drop(4, "Is it red? yes", "Is it red? yes")]
    for part in range(2):
        table = pa.Table.from_pylist(drops[part::2], DUPLICATES)
        write_parquet(tmp_path / f"duplicates-{part:05d}.parquet", table)
    write_manifest(tmp_path, {})
    shown = most_surprising({"vqav2": tmp_path}, 2)
    assert [(row["times"], row["row"]) for row in shown] == [(11, 2), (1, 100)]
