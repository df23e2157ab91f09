"""One partition of annotations → its examples, rejects, duplicates and counts: instructify, group, de-duplicate,
encode and prove, on columns."""

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.arrow_files import read_table
from pipelines.conversation import group_turns
from pipelines.dedup import deduplicate
from pipelines.embed import Embeddings
from pipelines.encode import Encoded, Encoder
from pipelines.instructify import LETTERS, Turns, instructify
from pipelines.schema import DUPLICATES, EXAMPLES, REJECTS
from pipelines.templates import read_templates
from pipelines.tokenizer import load_tokenizer

WHOLE_ROW = -1  # the turn number of a reject that means the whole row


@dataclass(frozen=True)
class RenderSettings:
    """All that rendering depends on, as plain values."""

    dataset: str
    task: str
    template_file: str
    chat: str
    tokenizer: str  # directory
    embeddings: str | None  # directory; None where de-duplication compares no vectors
    max_turns: int
    max_text_tokens: int
    dedup_rule: str
    dedup_compare: str
    dedup_threshold: float | None
    seed: int


@dataclass(frozen=True)
class Rendered:
    examples: pa.Table
    rejects: pa.Table
    duplicates: pa.Table
    counts: dict[str, Any]


class Renderer:
    """Loaded once in a process, then applied to one partition after another."""

    def __init__(self, settings: RenderSettings):
        self.settings = settings
        self.templates = read_templates(Path(settings.template_file), settings.task)
        self.encoder = Encoder(load_tokenizer(Path(settings.tokenizer)), settings.chat)
        self.embeddings = None
        if settings.embeddings is not None:
            self.embeddings = Embeddings(read_table(Path(settings.embeddings) / "embeddings.arrow"))

    @staticmethod
    @functools.lru_cache(maxsize=2)
    def of(settings: RenderSettings) -> "Renderer":
        return Renderer(settings)

    def render(self, annotations: pa.Table, images: pa.Table | None) -> Rendered:
        """annotations: rows of one partition, sorted by row; images: the measures of every image they name, or None
        for text-only work. Every row ends in an example, in `duplicates` or in `rejects`."""
        ledger = _Ledger()
        batch = annotations.combine_chunks().to_batches()[0] if annotations.num_rows else None
        conversations: list[_Conversation] = []
        if batch is not None:
            good = self._usable_rows(batch, images, ledger)
            if good.num_rows:
                conversations = self._converse(good, ledger)
        encoded = self._encode(conversations, ledger)
        examples = self._examples(encoded, images)
        counts = ledger.counts(annotations.num_rows, [turn for c, _ in encoded for turn in c.turns])
        counts |= {
            "num_examples": examples.num_rows,
            "num_tokens": sum(len(e.input_ids) for _, e in encoded),
            "num_supervised": int(sum(e.loss_mask.sum() for _, e in encoded)),
            "num_images": sum(e.num_images for _, e in encoded),
        }
        return Rendered(examples, ledger.rejects(), ledger.duplicates(), counts)

    def _usable_rows(self, batch: pa.RecordBatch, images: pa.Table | None, ledger: "_Ledger") -> pa.RecordBatch:
        """Sets aside the rows that the reader rejected or whose image cannot be used."""
        reason, detail = batch.column("reject"), batch.column("detail")
        if images is not None:
            found = pc.index_in(batch.column("image"), value_set=images["image"].combine_chunks())
            unmeasured = pc.and_(found.is_null(), batch.column("image").is_valid())
            if pc.any(pc.and_(unmeasured, reason.is_null())).as_py():
                missing = batch.column("image").filter(unmeasured)[0]
                raise RuntimeError(f"{self.settings.dataset}: image {missing} is not in the images table")
            detail = pc.coalesce(detail, images["detail"].combine_chunks().take(found))
            reason = pc.coalesce(reason, images["reject"].combine_chunks().take(found))
        if self.settings.task == "multiple_choice":
            many = pc.greater(pc.list_value_length(batch.column("choices")), len(LETTERS))
            reason = pc.coalesce(reason, pc.if_else(many, "too_many_choices", pa.scalar(None, pa.string())))
        bad = reason.is_valid()
        for row, why, what in zip(
            batch.column("row").filter(bad).to_pylist(),
            reason.filter(bad).to_pylist(),
            detail.filter(bad).to_pylist(),
            strict=True,
        ):
            ledger.reject(row, WHOLE_ROW, why, what)
        return batch.filter(reason.is_null())

    def _converse(self, batch: pa.RecordBatch, ledger: "_Ledger") -> list["_Conversation"]:
        """Turns, checked, grouped by image and without duplicates."""
        s = self.settings
        turns = instructify(batch, s.task, self.templates, s.dataset, s.seed)
        ledger.num_turns = len(turns.row)
        fine = np.fromiter((self._check_text(turns, i, ledger) for i in range(len(turns.row))), bool, len(turns.row))
        kept = np.flatnonzero(fine)
        image_of_row = batch.column("image")
        numbers = image_of_row.dictionary_encode()
        place = np.searchsorted(batch.column("row").to_numpy(), turns.row[kept])
        image = pc.fill_null(numbers.indices, -1).to_numpy()[place]
        groups = group_turns(
            turns.row[kept],
            turns.turn[kept],
            image,
            is_dialogue=s.task == "conversation",
            max_turns=s.max_turns,
            dataset=s.dataset,
            seed=s.seed,
        )
        order = kept[groups.order]
        images = numbers.dictionary.to_pylist()
        conversations = []
        keep = self._deduplicate(turns, order, groups.offsets, ledger)
        for begin, end in zip(groups.offsets[:-1], groups.offsets[1:], strict=True):
            members = [_Turn.of(turns, order[k]) for k in range(begin, end) if keep[k]]
            number = image[groups.order[begin]]
            conversations.append(_Conversation([images[number]] if number >= 0 else [], members))
        return conversations

    def _check_text(self, turns: Turns, i: int, ledger: "_Ledger") -> bool:
        reason = detail = None
        if not turns.assistant[i].strip():
            reason, detail = "empty_answer", "the answer is empty"
        elif special := self.encoder.forbidden_text(turns.user[i], turns.assistant[i]):
            reason, detail = "special_token_in_text", f"the text contains {special}"
        if reason is not None:
            ledger.reject(int(turns.row[i]), int(turns.turn[i]), reason, detail)
        return reason is None

    def _deduplicate(self, turns: Turns, order: np.ndarray, offsets: np.ndarray, ledger: "_Ledger") -> np.ndarray:
        s = self.settings
        if s.task == "conversation" or s.max_turns == 1:
            return np.ones(len(order), dtype=bool)
        questions, answers = [turns.question[i] for i in order], [turns.answer[i] for i in order]
        decisions = deduplicate(
            offsets, questions, answers, self.embeddings, s.dedup_rule, s.dedup_compare, s.dedup_threshold
        )
        for k in np.flatnonzero(~decisions.keep):
            partner = decisions.partner[k]
            similarity = decisions.similarity[k]
            ledger.duplicate(
                row=int(turns.row[order[k]]),
                kept_row=int(turns.row[order[partner]]),
                similarity=None if np.isnan(similarity) else float(similarity),
                rule=decisions.rule[k],
                text=f"{questions[k]} {answers[k]}",
                kept_text=f"{questions[partner]} {answers[partner]}",
            )
        return decisions.keep

    def _encode(self, conversations: list["_Conversation"], ledger: "_Ledger") -> list[tuple["_Conversation", Encoded]]:
        """Encodes; splits what is longer than max_text_tokens at turn boundaries; rejects single turns that are too
        long and examples whose loss mask is not proved."""
        done: list[tuple[_Conversation, Encoded]] = []
        waiting = conversations
        while waiting:
            again: list[_Conversation] = []
            encoded = self.encoder.encode([c.texts for c in waiting], [len(c.images) for c in waiting])
            for conversation, e in zip(waiting, encoded, strict=True):
                if e.error is not None:
                    for turn in conversation.turns:
                        ledger.reject(turn.row, turn.turn, "loss_mask_unproved", e.error)
                elif e.num_text_tokens <= self.settings.max_text_tokens:
                    done.append((conversation, e))
                elif len(conversation.turns) == 1:
                    detail = f"{e.num_text_tokens} text tokens, the limit is {self.settings.max_text_tokens}"
                    ledger.reject(conversation.turns[0].row, conversation.turns[0].turn, "too_long", detail)
                else:
                    head = self.encoder.head_tokens(e.num_images)
                    tokens = np.diff(e.turn_ends, prepend=head + e.num_images).tolist()
                    again += conversation.split(tokens, head, self.settings.max_text_tokens)
            waiting = again
        done.sort(key=lambda pair: (pair[0].turns[0].row, pair[0].turns[0].turn))
        return done

    def _examples(self, encoded: list[tuple["_Conversation", Encoded]], images: pa.Table | None) -> pa.Table:
        sha256 = dict(zip(images["image"].to_pylist(), images["sha256"].to_pylist(), strict=True)) if images else {}
        columns = {
            "images": [c.images for c, _ in encoded],
            "image_sha256": [[sha256.get(i) for i in c.images] for c, _ in encoded],
            "turns": [
                [{"user": t.user, "assistant": t.assistant, "template": t.template, "row": t.row} for t in c.turns]
                for c, _ in encoded
            ],
            "input_ids": [e.input_ids for _, e in encoded],
            "loss_mask": [e.loss_mask for _, e in encoded],
            "num_tokens": [len(e.input_ids) for _, e in encoded],
            "num_supervised": [int(e.loss_mask.sum()) for _, e in encoded],
        }
        return pa.table(columns, EXAMPLES)


@dataclass(frozen=True)
class _Turn:
    row: int
    turn: int
    user: str
    assistant: str
    template: str

    @staticmethod
    def of(turns: Turns, i: int) -> "_Turn":
        return _Turn(int(turns.row[i]), int(turns.turn[i]), turns.user[i], turns.assistant[i], turns.template[i])


@dataclass(frozen=True)
class _Conversation:
    images: list[str]
    turns: list[_Turn]

    @property
    def texts(self) -> list[str]:
        return [text for turn in self.turns for text in (turn.user, turn.assistant)]

    def split(self, turn_tokens: list[int], head_tokens: int, limit: int) -> list["_Conversation"]:
        """At least two pieces of whole turns; each repeats the head (system sentence and images) and, where turns
        allow, has at most `limit` text tokens."""
        cuts = [0]
        used = head_tokens
        for i, tokens in enumerate(turn_tokens):
            if i > cuts[-1] and used + tokens > limit:
                cuts.append(i)
                used = head_tokens
            used += tokens
        if len(cuts) == 1:  # the counts, taken turn by turn, were a token short
            cuts.append(len(self.turns) // 2)
        bounds = zip(cuts, [*cuts[1:], len(self.turns)], strict=True)
        return [_Conversation(self.images, self.turns[begin:end]) for begin, end in bounds]


class _Ledger:
    """What became of every row and turn of a partition."""

    def __init__(self) -> None:
        self.num_turns = 0
        self._rejects: list[tuple[int, int, str, str | None]] = []
        self._duplicates: list[dict[str, Any]] = []

    def reject(self, row: int, turn: int, reason: str, detail: str | None) -> None:
        self._rejects.append((row, turn, reason, detail))

    def duplicate(self, **entry: Any) -> None:
        self._duplicates.append(entry)

    def counts(self, num_rows: int, kept: list[_Turn]) -> dict[str, Any]:
        """Rows and turns by fate. A dialogue row of which some turns are rejected counts as kept; its rejected turns
        stand in the count of turns. Raises RuntimeError if anything is unaccounted for."""
        in_examples = {turn.row for turn in kept}
        duplicate_rows = {entry["row"] for entry in self._duplicates} - in_examples
        reason_of_row: dict[int, str] = {}
        for row, _, reason, _ in self._rejects:
            if row not in in_examples and row not in duplicate_rows:
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
            "examples": len(kept),
            "duplicates": len(self._duplicates),
            "rejects": dict(sorted(turn_rejects.items())),
        }
        for unit, ledger in (("rows", rows), ("turns", turns)):
            check_ledger(unit, ledger)
        return {"rows": rows, "turns": turns}

    def rejects(self) -> pa.Table:
        entries = sorted(self._rejects, key=lambda entry: entry[:2])
        columns = zip(*entries, strict=True) if entries else ([], [], [], [])
        return pa.table(dict(zip(REJECTS.names, map(list, columns), strict=True)), REJECTS)

    def duplicates(self) -> pa.Table:
        return pa.Table.from_pylist(sorted(self._duplicates, key=lambda entry: entry["row"]), DUPLICATES)


def check_ledger(unit: str, ledger: dict[str, Any]) -> None:
    """Promise: nothing is lost. Raises RuntimeError unless read = examples + duplicates + rejects."""
    told = ledger["examples"] + ledger["duplicates"] + sum(ledger["rejects"].values())
    if ledger["read"] != told:
        raise RuntimeError(f"{ledger['read']} {unit} read, but {told} accounted for: {ledger}")
