"""Accounts for every row and turn of a partition (promise 1: no data is lost silently)."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.schema import DUPLICATES, REJECTS, WHOLE_ROW


class Ledger:
    """Collects rejects and duplicates, and reconciles them with the rows read."""

    def __init__(self) -> None:
        self.num_turns = 0
        self.num_unread = 0  # turns that de-duplication compared only for equality
        self._rejects: list[tuple[int, int, str, str | None]] = []
        self._duplicates: list[dict[str, Any]] = []

    def reject(self, row: int, turn: int, reason: str, detail: str | None) -> None:
        self._rejects.append((row, turn, reason, detail))

    def duplicate(self, **entry: Any) -> None:
        self._duplicates.append(entry)

    def counts(self, num_rows: int, kept_rows: np.ndarray) -> dict[str, Any]:
        """Counts rows and turns by outcome. kept_rows: (T,) the row of every turn that is in an example.

        A dialogue row with only some turns rejected counts as an example; its rejected turns are counted under turns.
        Raises RuntimeError if any row or turn is unaccounted for.
        """
        in_examples = np.unique(kept_rows)
        kept = set(in_examples.tolist()) if self._rejects or self._duplicates else set()
        duplicate_rows = {entry["row"] for entry in self._duplicates} - kept
        reason_of_row: dict[int, str] = {}
        for row, _, reason, _ in self._rejects:
            if row not in kept and row not in duplicate_rows:
                reason_of_row.setdefault(row, reason)
        turn_rejects = Counter(reason for _, turn, reason, _ in self._rejects if turn != WHOLE_ROW)
        rows = {
            "read": num_rows,
            "examples": len(in_examples),
            "duplicates": len(duplicate_rows),
            "rejects": dict(sorted(Counter(reason_of_row.values()).items())),
        }
        turns = {
            "read": self.num_turns,
            "examples": len(kept_rows),
            "duplicates": len(self._duplicates),
            "rejects": dict(sorted(turn_rejects.items())),
        }
        for unit, ledger in (("rows", rows), ("turns", turns)):
            check_ledger(unit, ledger)
        return {"rows": rows, "turns": turns, "compared_for_equality": self.num_unread}

    def rejects(self) -> pa.Table:
        entries = sorted(self._rejects, key=lambda entry: entry[:2])
        columns = zip(*entries, strict=True) if entries else ([], [], [], [])
        return pa.table(dict(zip(REJECTS.names, map(list, columns), strict=True)), REJECTS)

    def duplicates(self) -> pa.Table:
        return pa.Table.from_pylist(sorted(self._duplicates, key=lambda entry: entry["row"]), DUPLICATES)


def check_ledger(unit: str, ledger: dict[str, Any]) -> None:
    """Raises RuntimeError unless read = examples + duplicates + rejects, so that no data is lost silently."""
    accounted = ledger["examples"] + ledger["duplicates"] + sum(ledger["rejects"].values())
    if ledger["read"] != accounted:
        raise RuntimeError(f"{ledger['read']} {unit} read, but {accounted} accounted for: {ledger}")
