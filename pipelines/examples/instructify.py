"""Renders annotations with templates into turns, on Arrow columns (paper section 4, instructization)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.hashing import mix64, seed64
from pipelines.schema import LETTERS
from pipelines.templates.sets import Template


@dataclass(frozen=True)
class Turns:
    """Rendered turns as columns of equal length. `question` and `answer` are the raw texts that deduplication compares.

    A conversation row yields several turns with the same `row` and increasing `turn`; every other row yields one turn.
    """

    row: np.ndarray  # int64
    turn: np.ndarray  # int32
    user: pa.Array  # this and the following columns: strings
    assistant: pa.Array
    template: pa.Array
    question: pa.Array
    answer: pa.Array


def instructify(batch: pa.RecordBatch, task: str, templates: Sequence[Template], dataset: str, seed: int) -> Turns:
    """Renders annotation rows that are not rejected. The template of a turn and the order of its options depend only
    on (seed, dataset, row, turn)."""
    rows, turn, fields, question, answer = _FIELDS_OF[task](batch, dataset, seed)
    fields["dataset"] = pa.repeat(dataset, len(rows))
    key = mix64(rows.astype(np.uint64) * np.uint64(1 << 20) + turn.astype(np.uint64), seed64("template", dataset, seed))
    choice = (key % np.uint64(len(templates))).astype(np.int64)
    user, assistant = [], []
    for index, template in enumerate(templates):
        chosen = pa.array(np.flatnonzero(choice == index))
        picked = {name: column.take(chosen) for name, column in fields.items()}
        user.append(_render(template.parts("user"), picked, len(chosen)))
        assistant.append(_render(template.parts("assistant"), picked, len(chosen)))
    back = pa.array(np.argsort(np.argsort(choice, kind="stable"), kind="stable"))
    ids = pa.array([template.id for template in templates], pa.string()).take(pa.array(choice))
    return Turns(
        rows, turn, pa.concat_arrays(user).take(back), pa.concat_arrays(assistant).take(back), ids, question, answer
    )


def raw_texts(batch: pa.RecordBatch, task: str) -> tuple[pa.Array, pa.Array]:
    """Returns the questions and answers of rows that are not rejected, as deduplication compares them."""
    *_, question, answer = _FIELDS_OF[task](batch, "", 0)
    return question, answer


def _render(parts: list[tuple[str, str | None]], fields: dict[str, pa.Array], length: int) -> pa.Array:
    columns: list[pa.Array | pa.Scalar] = []
    for literal, field in parts:
        columns.append(pa.scalar(literal))
        if field is not None:
            columns.append(fields[field])
    if not any(isinstance(column, pa.Array) for column in columns):
        return pa.repeat("".join(literal for literal, _ in parts), length)
    return pc.binary_join_element_wise(*columns, "")


def _text(column: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(column)


def _rows(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    rows = batch.column("row").to_numpy()
    return rows, np.zeros(len(rows), dtype=np.int32)


def _caption(batch: pa.RecordBatch, dataset: str, seed: int):
    caption = _text(batch.column("caption"))
    return *_rows(batch), {"caption": caption}, pa.repeat("", len(caption)), caption


def _open_question(batch: pa.RecordBatch, dataset: str, seed: int):
    question, answer = _text(batch.column("question")), _text(batch.column("answer"))
    return *_rows(batch), {"question": question, "answer": answer}, question, answer


def _multiple_choice(batch: pa.RecordBatch, dataset: str, seed: int):
    rows, turn = _rows(batch)
    options, letters, answers = [], [], []
    key = seed64("options", dataset, seed)
    for row, choices, right in zip(
        rows.tolist(), batch.column("choices").to_pylist(), batch.column("answer_index").to_pylist(), strict=True
    ):
        ids = np.arange(len(choices), dtype=np.uint64) + np.uint64(row * len(LETTERS))
        order = np.argsort(mix64(ids, key), kind="stable").tolist()
        options.append("\n".join(f"{LETTERS[i]}. {choices[old].strip()}" for i, old in enumerate(order)))
        letters.append(LETTERS[order.index(right)])
        answers.append(choices[right].strip())
    question = _text(batch.column("question"))
    context = pc.fill_null(pc.binary_join_element_wise(_text(batch.column("context")), "\n", ""), "")
    fields = {"question": question, "context": context}
    fields |= {"options": pa.array(options, pa.string()), "letter": pa.array(letters, pa.string())}
    fields["answer"] = pa.array(answers, pa.string())
    return rows, turn, fields, question, fields["answer"]


def _referring(batch: pa.RecordBatch, dataset: str, seed: int):
    phrase = _text(batch.column("phrase"))
    boxes = pa.array([",".join(f"{x:.3f}" for x in box) for box in batch.column("box").to_pylist()], pa.string())
    return *_rows(batch), {"phrase": phrase, "box": boxes}, phrase, boxes


def _conversation(batch: pa.RecordBatch, dataset: str, seed: int):
    turns = batch.column("turns")
    parent = pc.list_parent_indices(turns).to_numpy()
    rows = batch.column("row").to_numpy()[parent]
    starts = np.searchsorted(parent, parent)
    flat = turns.flatten()
    user, assistant = _text(flat.field("user")), _text(flat.field("assistant"))
    turn = (np.arange(len(parent)) - starts).astype(np.int32)
    return rows, turn, {"user": user, "assistant": assistant}, user, assistant


_FIELDS_OF = {
    "caption": _caption,
    "open_question": _open_question,
    "multiple_choice": _multiple_choice,
    "referring": _referring,
    "conversation": _conversation,
}
