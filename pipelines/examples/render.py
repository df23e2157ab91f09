"""Renders one partition of annotations into examples, rejects, duplicates and counts. The columnar steps are
instructify, group, deduplicate, encode and check the loss mask."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import read_table
from pipelines.core.ragged import flat_indices, offsets_of, segment_sums
from pipelines.decontamination.match import REASON, Benchmarks, Overlaps
from pipelines.dedup.decide import deduplicate
from pipelines.dedup.embeddings import Embeddings
from pipelines.examples.annotated_sizes import contradictions
from pipelines.examples.grouping import Grouping, group_turns, split
from pipelines.examples.image_slots import (
    TurnImages,
    first_unusable,
    image_counts,
    images_of_turns,
    inline_images,
    more_images,
)
from pipelines.examples.instructify import LETTERS, Turns, instructify
from pipelines.examples.ledger import Ledger
from pipelines.examples.settings import ExampleSettings
from pipelines.schema import EXAMPLES, IMAGE_TOKEN, TURN, WHOLE_ROW
from pipelines.tokens.encode import EncodedTurns, Encoder
from pipelines.tokens.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Rendered:
    examples: pa.Table
    rejects: pa.Table
    duplicates: pa.Table
    overlaps: pa.Table | None  # with benchmarks; None without decontamination
    counts: dict[str, Any]


class Renderer:
    """Renders partitions. It is loaded once per process and applied to one partition after another."""

    def __init__(self, settings: ExampleSettings, embeddings: Path | None = None):
        """embeddings: a directory of `build_embeddings`; None if no vectors are compared."""
        self.settings = settings
        self.encoder = Encoder(load_tokenizer(settings.tokenizer), settings.chat)
        self.embeddings = None
        if embeddings is not None:
            self.embeddings = Embeddings(read_table(embeddings / "embeddings.arrow"))
        self.benchmarks = Benchmarks(settings.decontamination) if settings.decontamination else None

    @staticmethod
    @functools.lru_cache(maxsize=2)
    def of(settings: ExampleSettings, embeddings: Path | None) -> "Renderer":
        return Renderer(settings, embeddings)

    def render(self, annotations: pa.Table, images: pa.Table | None) -> Rendered:
        """Renders one partition. annotations: its rows, sorted by row. images: the images table rows of all images that
        they refer to, or None for a text-only run. Every row ends up in an example, in `duplicates` or in `rejects`."""
        ledger = Ledger()
        examples = EXAMPLES.empty_table()
        overlaps = self.benchmarks.nothing() if self.benchmarks else None
        if annotations.num_rows:
            good = self._usable_rows(annotations.combine_chunks().to_batches()[0], images, ledger)
            if self.benchmarks and good.num_rows:
                overlaps = self.benchmarks.find(good, self.settings.task, images)
                good = _outside_benchmarks(good, overlaps, ledger)
            if good.num_rows:
                examples = self._examples(good, images, overlaps, ledger)
        turns = examples["turns"].combine_chunks().flatten()
        counts = ledger.counts(annotations.num_rows, turns.field("row").to_numpy())
        counts |= {
            "num_examples": examples.num_rows,
            "num_tokens": pc.sum(examples["num_tokens"], min_count=0).as_py(),
            "num_supervised": pc.sum(examples["num_supervised"], min_count=0).as_py(),
            "num_images": len(examples["images"].combine_chunks().flatten()),
        }
        if overlaps is not None:
            counts["overlaps"] = overlaps.counts()
        table = None if overlaps is None else overlaps.table
        return Rendered(examples, ledger.rejects(), ledger.duplicates(), table, counts)

    def _usable_rows(self, batch: pa.RecordBatch, images: pa.Table | None, ledger: Ledger) -> pa.RecordBatch:
        """Rejects the rows that the reader rejected and those with an unusable image; returns the other rows."""
        reason, detail = batch.column("reject"), batch.column("detail")
        if images is not None:
            found = pc.index_in(batch.column("image"), value_set=images["image"].combine_chunks())
            unmeasured = pc.and_(found.is_null(), batch.column("image").is_valid())
            if pc.any(pc.and_(unmeasured, reason.is_null())).as_py():
                missing = batch.column("image").filter(unmeasured)[0]
                raise RuntimeError(f"{self.settings.dataset}: image {missing} is not in the images table")
            try:
                of_more = first_unusable(more_images(batch), images)
            except LookupError as error:
                raise RuntimeError(f"{self.settings.dataset}: image {error} is not in the images table") from None
            other_size = contradictions(batch, images)
            detail = pc.coalesce(detail, images["detail"].combine_chunks().take(found), of_more[1], other_size[1])
            reason = pc.coalesce(reason, images["reject"].combine_chunks().take(found), of_more[0], other_size[0])
        if self.settings.task == "multiple_choice":
            many = pc.greater(pc.list_value_length(batch.column("choices")), len(LETTERS))
            reason = pc.coalesce(reason, pc.if_else(many, "too_many_choices", pa.scalar(None, pa.string())))
        many = pa.array(image_counts(batch) > self.settings.max_images)
        reason = pc.coalesce(reason, pc.if_else(many, "too_many_images", pa.scalar(None, pa.string())))
        limit = f"more images than the stage's data.max_images, {self.settings.max_images}"
        detail = pc.coalesce(detail, pc.if_else(many, limit, pa.scalar(None, pa.string())))
        bad = reason.is_valid()
        for row, why, what in zip(
            batch.column("row").filter(bad).to_pylist(),
            reason.filter(bad).to_pylist(),
            detail.filter(bad).to_pylist(),
            strict=True,
        ):
            ledger.reject(row, WHOLE_ROW, why, what)
        return batch.filter(reason.is_null())

    def _examples(
        self, batch: pa.RecordBatch, images: pa.Table | None, overlaps: Overlaps | None, ledger: Ledger
    ) -> pa.Table:
        s = self.settings
        turns = instructify(batch, s.task, s.templates, s.dataset, s.seed)
        ledger.num_turns = len(turns.row)
        inline = inline_images(batch, turns, s.task)
        fine = self._check_texts(turns, inline, ledger)
        overlapping = overlaps.turns(turns.row, turns.turn) if overlaps is not None else {}
        for i, why in overlapping.items():
            if fine[i]:
                fine[i] = False
                ledger.reject(int(turns.row[i]), int(turns.turn[i]), REASON, why)
        turn_images = images_of_turns(batch, turns, inline, fine, images)
        kept = np.flatnonzero(fine)
        groups = group_turns(
            turns.row[kept],
            turns.turn[kept],
            turn_images.first[kept],
            is_dialogue=s.task == "conversation",
            max_turns=s.max_turns,
            dataset=s.dataset,
            seed=s.seed,
        )
        grouping = Grouping(kept[groups.order], groups.offsets)
        grouping = grouping.without(~self._deduplicate(turns, grouping, ledger))
        parts = self._encode(turns, grouping, turn_images, ledger)
        tables = [_table(turns, *part, turn_images, self.encoder.closing) for part in parts]
        table = pa.concat_tables([EXAMPLES.empty_table(), *tables]).combine_chunks()
        if len(parts) == 1:
            return table
        position = np.empty(len(turns.row), np.int64)
        position[grouping.order] = np.arange(len(grouping.order))
        firsts = np.concatenate([np.zeros(0, np.int64), *(position[part.first] for part, _ in parts)])
        return table.take(pa.array(np.argsort(firsts)))

    def _check_texts(self, turns: Turns, inline: np.ndarray, ledger: Ledger) -> np.ndarray:
        """(T,) bool: the turns whose texts are usable; the others are rejected. inline: as returned by
        `inline_images`; the placeholders of these turns are not checked as text."""
        empty = pc.equal(pc.utf8_trim_whitespace(turns.assistant), "")
        user = turns.user
        if inline.any():
            user = pc.if_else(pa.array(inline > 0), pc.replace_substring(user, IMAGE_TOKEN, " "), user)
        special = pc.coalesce(self.encoder.forbidden_text(user), self.encoder.forbidden_text(turns.assistant))
        bad = pc.or_(empty, special.is_valid()).to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(bad).tolist():
            reason, detail = "empty_answer", "the answer is empty"
            if not empty[i].as_py():
                found = special[i].as_py()
                reason = "role_name_in_text" if found in self.encoder.role_markers else "special_token_in_text"
                detail = f"the text contains {found!r}"
            ledger.reject(int(turns.row[i]), int(turns.turn[i]), reason, detail)
        return ~bad

    def _deduplicate(self, turns: Turns, grouping: Grouping, ledger: Ledger) -> np.ndarray:
        """(T,) bool over `grouping.order`: True for the turns that are kept."""
        s, order = self.settings, grouping.order
        if not s.compares:
            return np.ones(len(order), dtype=bool)
        questions, answers = (column.take(pa.array(order)).to_pylist() for column in (turns.question, turns.answer))
        decisions = deduplicate(grouping.offsets, questions, answers, self.embeddings, s.dedup)
        ledger.num_unread = int(decisions.unread.sum())
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

    def _encode(
        self, turns: Turns, waiting: Grouping, turn_images: TurnImages, ledger: Ledger
    ) -> list[tuple[Grouping, EncodedTurns]]:
        """Encodes conversations and splits those longer than max_text_tokens at turn boundaries. Rejects single turns
        that are too long and conversations whose loss mask fails its check. The turns of each pair match one to one."""
        limit, done = self.settings.max_text_tokens, []
        while len(waiting):
            images = np.full(len(waiting.order), -1)
            images[waiting.offsets[:-1]] = turn_images.before[waiting.first]
            chosen = pa.array(waiting.order)
            encoded = self.encoder.encode(turns.user.take(chosen), turns.assistant.take(chosen), images)
            tokens = encoded.lengths - np.maximum(images, 0) - turn_images.inline[waiting.order]
            text_tokens = segment_sums(tokens, waiting.offsets) + len(self.encoder.closing)
            unproved = segment_sums(np.isin(np.arange(len(tokens)), list(encoded.errors)), waiting.offsets) > 0
            too_long = ~unproved & (text_tokens > limit)
            good = np.flatnonzero(~unproved & ~too_long)
            members = waiting.members(good)
            done.append((waiting.take(good), encoded.take(members)))
            _reject_unproved(turns, waiting, unproved, encoded, ledger)
            self._reject_too_long(turns, waiting, np.where(too_long, text_tokens, 0), ledger)
            long = np.flatnonzero(too_long & (waiting.sizes > 1))
            members = waiting.members(long)
            waiting = waiting.take(long)
            heads = self._head_tokens(turn_images.before[waiting.order])
            tokens = tokens[members]
            tokens[waiting.offsets[:-1]] -= heads[waiting.offsets[:-1]]
            waiting = split(waiting, tokens, heads, limit)
        return done

    def _head_tokens(self, num_images: np.ndarray) -> np.ndarray:
        """(n,) int64: the number of text tokens of a head with each number of images."""
        distinct, index = np.unique(num_images, return_inverse=True)
        return np.array([self.encoder.head_tokens(n) for n in distinct.tolist()], np.int64)[index]

    def _reject_too_long(self, turns: Turns, grouping: Grouping, lengths: np.ndarray, ledger: Ledger) -> None:
        """Rejects conversations of one turn that are too long. lengths: (C,) text tokens, 0 for those that fit."""
        for c in np.flatnonzero((lengths > 0) & (grouping.sizes == 1)).tolist():
            turn = grouping.first[c]
            detail = f"{lengths[c]} text tokens, but the limit is {self.settings.max_text_tokens}"
            ledger.reject(int(turns.row[turn]), int(turns.turn[turn]), "too_long", detail)


def _reject_unproved(
    turns: Turns, grouping: Grouping, unproved: np.ndarray, encoded: EncodedTurns, ledger: Ledger
) -> None:
    """Rejects the turns of conversations whose loss mask is not proved. unproved: (C,) bool."""
    for c in np.flatnonzero(unproved).tolist():
        members = range(grouping.offsets[c], grouping.offsets[c + 1])
        error = next(encoded.errors[k] for k in members if k in encoded.errors)
        for turn in grouping.order[members.start : members.stop]:
            ledger.reject(int(turns.row[turn]), int(turns.turn[turn]), "loss_mask_unproved", error)


def _outside_benchmarks(batch: pa.RecordBatch, overlaps: Overlaps, ledger: Ledger) -> pa.RecordBatch:
    """Rejects the rows whose image is also in a benchmark; returns the other rows."""
    found = overlaps.rows()
    for row, why in found.items():
        ledger.reject(row, WHOLE_ROW, REASON, why)
    return batch.filter(pc.invert(pc.is_in(batch.column("row"), value_set=pa.array(list(found), pa.int64()))))


def _table(
    turns: Turns, grouping: Grouping, encoded: EncodedTurns, turn_images: TurnImages, closing: np.ndarray
) -> pa.Table:
    """Returns conversations as an examples table. closing: the tokens that follow each conversation's last turn."""
    chosen = pa.array(grouping.order)
    columns = {"user": turns.user, "assistant": turns.assistant, "template": turns.template}
    fields = {name: column.take(chosen) for name, column in columns.items()}
    fields |= {"row": pa.array(turns.row[grouping.order]), "turn": pa.array(turns.turn[grouping.order])}
    struct = pa.StructArray.from_arrays([fields[field.name] for field in TURN], fields=list(TURN))
    shown, image_offsets = (pa.array(part) for part in turn_images.of(grouping))
    image_offsets = image_offsets.cast(pa.int32())
    lengths = segment_sums(encoded.lengths, grouping.offsets) + len(closing)
    token_offsets = offsets_of(lengths)
    conversation = np.repeat(np.arange(len(grouping)), grouping.sizes)
    ids, mask = np.empty(token_offsets[-1], np.int32), np.zeros(token_offsets[-1], bool)
    at = flat_indices(encoded.offsets[:-1] + conversation * len(closing), encoded.lengths)
    ids[at], mask[at] = encoded.ids, encoded.loss_mask()
    ids[flat_indices(token_offsets[1:] - len(closing), np.full(len(grouping), len(closing)))] = np.tile(
        closing, len(grouping)
    )
    offsets = pa.array(token_offsets, pa.int32())
    return pa.table(
        [
            pa.ListArray.from_arrays(image_offsets, turn_images.names.take(shown)),
            pa.ListArray.from_arrays(image_offsets, turn_images.sha256.take(shown)),
            pa.ListArray.from_arrays(image_offsets, turn_images.num_bytes.take(shown)),
            pa.ListArray.from_arrays(image_offsets, turn_images.side.take(shown)),
            pa.ListArray.from_arrays(pa.array(grouping.offsets, pa.int32()), struct),
            pa.ListArray.from_arrays(offsets, pa.array(ids)),
            pa.ListArray.from_arrays(offsets, pa.array(mask)),
            pa.array(lengths, pa.int32()),
            pa.array(segment_sums(encoded.num_supervised, grouping.offsets), pa.int32()),
        ],
        schema=EXAMPLES,
    )
