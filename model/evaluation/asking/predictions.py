"""Honeybee's predictions file: a header line that records how the answers were generated, then one line per question.

A line contains its question without the image bytes, so a file can be scored and inspected by itself. Lines are
appended batch by batch in an order fixed before the first answer, so a killed evaluation resumes after the last
complete batch.
"""

import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.evaluation.files.jsonl import Fields, check_fields, parse_row, read_rows
from model.evaluation.interface import Answer, Benchmark, EvaluationError, Predictions, Question
from pipelines.core.files import write_atomic
from pipelines.schema import LETTERS

FORMAT = "honeybee predictions 1"
log = logging.getLogger(__name__)
_TEXT_OR_NONE = (str, type(None))
_LINE: Fields = {
    "id": str,
    "answer": _TEXT_OR_NONE,
    "error": _TEXT_OR_NONE,
    "truth": _TEXT_OR_NONE,
    "options": list,
    "fields": dict,
    "groups": dict,
    "images": list,
}


def load(benchmark: Benchmark, path: Path, truth: Path | None = None, questions: Path | None = None) -> Predictions:
    """Reads predictions in Honeybee's format or in one of the benchmark's official formats.

    truth, questions: what an official format needs in addition to the answers, see the benchmark's module. Honeybee's
    format needs neither; if `truth` is given, the official questions replace those in the file.
    Raises EvaluationError if the predictions are for another benchmark, incomplete or malformed.
    """
    header = read_header(path)
    if header is None:
        return benchmark.read_predictions(path, truth, questions)
    check_fields(f"{path}:1", header, {"benchmark": str, "num_questions": int, "settings": dict})
    if header["benchmark"] != benchmark.name:
        raise EvaluationError(f"{path}: contains predictions for {header['benchmark']}, not for {benchmark.name}")
    asked, answers = _read(benchmark, path, header["num_questions"])
    return Predictions(asked if truth is None else benchmark.read(truth, None), answers, header["settings"])


def read_header(path: Path) -> dict[str, Any] | None:
    """Returns the header of a file in Honeybee's format, None for other formats. Raises EvaluationError if there is no
    such file."""
    if not path.is_file() and not path.is_dir():
        raise EvaluationError(f"{path}: there is no such predictions file")
    if path.is_dir():  # some official formats are folders
        return None
    with path.open("rb") as file:
        try:
            header = parse_row(f"{path}:1", file.readline())
        except EvaluationError:
            return None
    return header if header.get("format") == FORMAT else None


def _read(benchmark: Benchmark, path: Path, num_questions: int) -> tuple[list[Question], dict[str, Answer]]:
    asked: list[Question] = []
    answers: dict[str, Answer] = {}
    rows = read_rows(path, {})
    next(rows)  # the header
    for where, row in rows:
        check_fields(where, row, _LINE)
        if row["id"] in answers:
            raise EvaluationError(f"{where}: question {row['id']} is answered twice")
        answers[row["id"]] = Answer(row["answer"], row["error"])
        asked.append(_asked(where, benchmark, row))
    if len(asked) != num_questions:
        raise EvaluationError(
            f"{path}: contains {len(asked)} of {num_questions} answers: the evaluation is unfinished; run it again to "
            "resume where it stopped"
        )
    return asked, answers


def _asked(where: str, benchmark: Benchmark, row: Mapping[str, Any]) -> Question:
    """Returns the question of a line. Raises EvaluationError if it has values that the benchmark cannot score."""
    for name, values in (("options", row["options"]), *((key, row[key].values()) for key in ("fields", "groups"))):
        if not all(isinstance(value, str) for value in values):
            raise EvaluationError(f"{where}: field `{name}` must contain only strings")
    if len(row["options"]) > len(LETTERS):
        raise EvaluationError(f"{where}: has {len(row['options'])} options, more than the {len(LETTERS)} letters")
    if missing := [name for name in benchmark.needs if name not in row["groups"]]:
        raise EvaluationError(f"{where}: field `groups` has no {', '.join(missing)}, which {benchmark.name} requires")
    truth = row["truth"]
    known = list(dict.fromkeys(choice.lower() for choice in benchmark.choices))
    if truth is not None and known and truth not in known:
        raise EvaluationError(f"{where}: field `truth` must be one of {', '.join(known)}, found {truth!r}")
    return Question(row["id"], row["fields"], truth, tuple(row["options"]), row["groups"])


def _line_ends(path: Path, ids: Sequence[str]) -> list[int]:
    """Returns the byte offsets at the end of the header and of each following line that is complete and answers the
    next of `ids`."""
    with path.open("rb") as file:
        file.readline()
        ends = [file.tell()]
        for expected in ids:
            line = file.readline()
            try:
                row = parse_row(str(path), line)
                check_fields(str(path), row, _LINE)
            except EvaluationError:
                break
            if not line.endswith(b"\n") or row["id"] != expected:
                break
            ends.append(file.tell())
    return ends


@dataclass(frozen=True)
class MergedFile:
    """A predictions file in its final state, once every rank has answered its batches: header and ids in order."""

    path: Path
    header: Mapping[str, Any]
    ids: Sequence[str]

    def is_complete(self) -> bool:
        if not self.path.is_file() or read_header(self.path) != {"format": FORMAT, **self.header}:
            return False
        return len(_line_ends(self.path, self.ids)) == len(self.ids) + 1

    def part(self, rank: int, world: int) -> tuple[Path, dict[str, Any]]:
        """Returns the path of the part file to which a rank writes its batches, and the header of that file."""
        path = self.path.with_suffix(f".rank-{rank:05d}{self.path.suffix}")
        return path, {**self.header, "part": [rank, world]}

    def merge(self, world: int) -> None:
        """Combines the part files of all ranks batch by batch, unless the file is already complete, and removes all
        part files, even of runs with another number of ranks. Raises EvaluationError if a part is incomplete."""
        if world > 1 and not self.is_complete():
            size = self.header["settings"]["batch_size"]
            batches = [self.ids[begin : begin + size] for begin in range(0, len(self.ids), size)]
            lines = [
                self._lines(rank, world, [key for batch in batches[rank::world] for key in batch])
                for rank in range(world)
            ]
            merged = [_line({"format": FORMAT, **self.header}).encode()]
            for index, batch in enumerate(batches):
                merged += itertools.islice(lines[index % world], len(batch))
            write_atomic(self.path, b"".join(merged))
        for part in self.path.parent.glob(f"{self.path.stem}.rank-*{self.path.suffix}"):
            part.unlink(missing_ok=True)

    def _lines(self, rank: int, world: int, ids: Sequence[str]) -> Iterator[bytes]:
        path, header = self.part(rank, world)
        if not MergedFile(path, header, ids).is_complete():
            raise EvaluationError(
                f"{path}: rank {rank} has not answered all of its questions: run the evaluation again"
            )
        return iter(path.read_bytes().splitlines(keepends=True)[1:])


class PredictionsFile:
    """Writes a predictions file. done: the number of leading questions that it already answered when it was opened."""

    def __init__(self, path: Path, header: Mapping[str, Any], ids: Sequence[str], batch_size: int):
        """Reuses the complete batches, in the order of `ids`, of an existing file with the same header and truncates
        the rest. A file with a different header (another model or other settings) is overwritten."""
        self.path = path
        first = {"format": FORMAT, **header}
        self.done = 0
        if path.is_file():
            if read_header(path) == first:
                self.done = self._truncate_to_batches(ids, batch_size)
                return
            log.warning("%s was written with another model or other settings and is overwritten", path)
        write_atomic(path, _line(first))

    def _truncate_to_batches(self, ids: Sequence[str], batch_size: int) -> int:
        start, *end_of = _line_ends(self.path, ids)
        done = len(end_of) if len(end_of) == len(ids) else len(end_of) // batch_size * batch_size
        os.truncate(self.path, end_of[done - 1] if done else start)
        return done

    def append(self, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Appends the lines of a batch and syncs them to disk."""
        lines = [
            _line(
                {
                    "id": question.id,
                    "answer": answer.text,
                    "error": answer.error,
                    "truth": question.truth,
                    "options": list(question.options),
                    "fields": dict(question.fields),
                    "groups": dict(question.groups),
                    "images": [image.name for image in question.images],
                }
            )
            for question, answer in zip(questions, answers, strict=True)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
