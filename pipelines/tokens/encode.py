"""Converts turns to token ids and a loss mask. This is the only module that tokenises training text.

A tokenizer first splits a text at its special tokens. Every answer ends with one, so the tokens of a conversation are
the concatenated tokens of its turns; the first turn includes the text that precedes it.
"""

import functools
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.ragged import flat_indices, offsets_of, segment_sums
from pipelines.schema import IMAGE_TOKEN
from pipelines.tokens import word_cache
from pipelines.tokens.chat_style import BEGIN, END, ChatStyle, ChatTemplate
from pipelines.tokens.plain_text import unknown_token
from pipelines.tokens.tokenizer import PreparedTokenizer

_CHECKED = 8  # turns per batch that are tokenised both by words and as complete texts


@dataclass(frozen=True)
class EncodedTurns:
    """Tokenised turns: turn t is ids[offsets[t] : offsets[t + 1]], supervised from ids[supervised[t]] to its end."""

    ids: np.ndarray  # int32
    offsets: np.ndarray  # int64 (T + 1,)
    supervised: np.ndarray  # int64 (T,)
    errors: dict[int, str]  # turn → why the check of its loss mask failed

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def num_supervised(self) -> np.ndarray:
        return self.offsets[1:] - self.supervised

    def take(self, turns: np.ndarray) -> "EncodedTurns":
        """Returns only the given turns, in the given order, without errors."""
        lengths = self.lengths[turns]
        offsets = offsets_of(lengths)
        ids = self.ids[flat_indices(self.offsets[:-1][turns], lengths)]
        return EncodedTurns(ids, offsets, offsets[:-1] + (self.supervised - self.offsets[:-1])[turns], {})

    def loss_mask(self) -> np.ndarray:
        """Returns the loss mask, (tokens,) bool: True where a token is supervised."""
        mask = np.zeros(len(self.ids), dtype=bool)
        mask[flat_indices(self.supervised, self.num_supervised)] = True
        return mask


class Encoder:
    """Encodes turns in one chat style with one tokenizer."""

    def __init__(self, prepared: PreparedTokenizer, chat: ChatTemplate):
        self.prepared = prepared
        self.style = ChatStyle(chat, prepared.bos_token, prepared.eos_token)
        self.closing = np.array(self._ids(self.style.wording.closing), np.int32)  # follows the last turn
        self._words = word_cache.WordTokenizer(prepared)
        self._special = "|".join(map(re.escape, sorted(prepared.special_tokens, key=len, reverse=True)))
        self._control = _control_ids(prepared)
        # The strings that start a turn in this style; inside a text they would look like a new turn.
        around = (self.style.later(0).rstrip(), self.style.wording.middle.rstrip())
        self.role_markers = tuple(mark for mark in around if mark.strip())

    def forbidden_text(self, texts: pa.Array) -> pa.Array:
        """Returns the first special token (which includes the image token) or role marker in each text, else null."""
        pattern = "|".join([self._special, BEGIN, END, *map(re.escape, self.role_markers)])
        bad = pc.match_substring_regex(texts, pattern)
        found = pc.extract_regex(texts.filter(bad), f"(?P<token>{pattern})")
        return pc.replace_with_mask(pa.nulls(len(texts), pa.string()), bad, pc.struct_field(found, "token"))

    def encode(self, user: pa.Array, assistant: pa.Array, images: np.ndarray) -> EncodedTurns:
        """Tokenises T turns. user, assistant: texts without special tokens, except for the `<image>` placeholders of
        inline images in a user text. images: (T,) integers, the number of images at the head of the conversation for a
        turn that starts one, −1 for every other turn."""
        inline = pc.count_substring(user, IMAGE_TOKEN).to_numpy()
        leading, user = _without_leading_images(user)
        kinds = np.where(images >= 0, images + leading, -1 - leading)
        lead, wording = self._leads(kinds), self.style.wording
        texts = pc.binary_join_element_wise(lead, user, wording.middle, assistant, wording.end, "")
        known = self._words_before_answer(lead, user)
        by_words = (known >= 0) & (inline == leading) & self._words.can_encode(texts)
        ids, lengths, before = self._encode_pieces(texts, by_words, known, lead, user, self._has_special(kinds))
        turns = self._verify(assistant, np.maximum(images, 0) + inline, self._with_heads(kinds, ids, lengths, before))
        self._verify_control(kinds, inline - leading, turns)
        return turns

    def head_tokens(self, num_images: int) -> int:
        """Estimates how many more text tokens a turn has at the start of a conversation than at a later position."""
        text = self.style.lead(num_images)
        return len(self._ids(text)) - num_images - len(self._ids(self.style.later(0)))

    # A `kind` encodes what precedes a turn's text. n ≥ 0: the start of a conversation and n images. n < 0: the end of
    # the previous turn and −1 − n images.

    @functools.cache  # noqa: B019 (an encoder lives as long as its process)
    def _head(self, kind: int) -> tuple[np.ndarray, str]:
        """Returns the tokens up to the last special token before the user text, and the lead text that follows them."""
        lead = self.style.lead(kind) if kind >= 0 else self.style.later(-1 - kind)
        special = [match.end() for match in re.finditer(self._special, lead)]
        cut = special[-1] if special else 0
        anchor = self.prepared.eos_token if kind < 0 else ""
        ids = self._ids(anchor + lead[:cut])[len(self._ids(anchor)) :]
        return np.array(ids, np.int32), lead[cut:]

    def _ids(self, text: str) -> list[int]:
        return self.prepared.tokenizer.encode(text, add_special_tokens=False).ids

    def _leads(self, kinds: np.ndarray) -> pa.Array:
        distinct, index = np.unique(kinds, return_inverse=True)
        return pa.array([self._head(kind)[1] for kind in distinct.tolist()], pa.string()).take(pa.array(index))

    def _has_special(self, kinds: np.ndarray) -> np.ndarray:
        """(T,) bool: whether a special token precedes the turn's own text."""
        distinct, index = np.unique(kinds, return_inverse=True)
        return np.array([kind < 0 or len(self._head(kind)[0]) > 0 for kind in distinct.tolist()], dtype=bool)[index]

    def _words_before_answer(self, lead: pa.Array, user: pa.Array) -> np.ndarray:
        """(T,) int64: the number of words (pieces of a text split before each space) that precede the supervised text,
        or −1 if that text does not start at a word boundary."""
        middle = self.style.wording.middle
        if re.search(r"\S $", middle):
            counts = pc.add(pc.count_substring(lead, " "), pc.count_substring(user, " "))
            return counts.to_numpy().astype(np.int64) + middle.count(" ")
        nothing_before = pc.equal(pc.binary_join_element_wise(lead, user, ""), "").to_numpy(zero_copy_only=False)
        return np.where(nothing_before & (middle == ""), 0, -1)

    def _encode_pieces(
        self,
        texts: pa.Array,
        by_words: np.ndarray,
        words_before: np.ndarray,
        lead: pa.Array,
        user: pa.Array,
        has_special: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokenises texts that follow their head. Returns (concatenated ids, token count of each text, number of tokens
        before each answer). Only texts that follow a special token are tokenised by words."""
        by_words &= has_special
        fast, slow = np.flatnonzero(by_words), np.flatnonzero(~by_words)
        cut = self._words.encode(texts.take(pa.array(fast)))
        answer_at = pc.add(pc.utf8_length(lead), pc.utf8_length(user)).to_numpy() + self.style.wording.offset
        whole = self._encode_whole(texts.take(pa.array(slow)), answer_at[slow], has_special[slow])
        self._check(texts, fast, cut, answer_at)
        lengths, before = np.empty(len(texts), np.int64), np.empty(len(texts), np.int64)
        lengths[fast], before[fast] = word_cache.lengths(cut), word_cache.tokens_before(cut, words_before[fast])
        lengths[slow], before[slow] = [len(ids) for ids, _ in whole], [at for _, at in whole]
        offsets = offsets_of(lengths)
        ids = np.empty(offsets[-1], np.int32)
        ids[flat_indices(offsets[:-1][fast], lengths[fast])] = cut.ids
        if whole:
            ids[flat_indices(offsets[:-1][slow], lengths[slow])] = np.concatenate(
                [np.array(i, np.int32) for i, _ in whole]
            )
        return ids, lengths, before

    def _encode_whole(
        self, texts: pa.Array, answer_at: np.ndarray, has_special: np.ndarray
    ) -> list[tuple[list[int], int]]:
        """Tokenises each text as a whole. Returns pairs (ids, number of tokens before the character `answer_at`)."""
        anchor = self.prepared.eos_token
        anchored = [anchor + t if s else t for t, s in zip(texts.to_pylist(), has_special, strict=True)]
        encodings = self.prepared.tokenizer.encode_batch(anchored, add_special_tokens=False)
        found = []
        for text, encoding, at, special in zip(anchored, encodings, answer_at.tolist(), has_special, strict=True):
            first = next(
                (
                    t
                    for p in range(at + special * len(anchor), len(text))
                    if (t := encoding.char_to_token(p)) is not None
                ),
                len(encoding.ids),  # characters that the tokenizer drops have no token
            )
            found.append((encoding.ids[int(special) :], first - int(special)))
        return found

    def _check(self, texts: pa.Array, fast: np.ndarray, cut: word_cache.Words, answer_at: np.ndarray) -> None:
        """Tokenises a few turns both ways. Raises RuntimeError if tokenising by words gave different tokens."""
        some = np.arange(len(fast))[:: max(1, len(fast) // _CHECKED)]
        chosen = fast[some]
        whole = self._encode_whole(texts.take(pa.array(chosen)), answer_at[chosen], np.ones(len(some), bool))
        for index, (ids, _) in zip(some, whole, strict=True):
            begin, end = cut.ends[cut.offsets[index]], cut.ends[cut.offsets[index + 1]]
            if cut.ids[begin:end].tolist() != ids:
                text = texts[int(fast[index])].as_py()
                raise RuntimeError(f"tokenising word by word and as a whole gives different tokens for {text!r}")

    def _with_heads(self, kinds: np.ndarray, ids: np.ndarray, lengths: np.ndarray, before: np.ndarray) -> EncodedTurns:
        heads = {kind: self._head(kind)[0] for kind in np.unique(kinds).tolist()}
        head_lengths = np.zeros(len(kinds), np.int64)
        for kind, head in heads.items():
            head_lengths[kinds == kind] = len(head)
        offsets = offsets_of(head_lengths + lengths)
        begins = offsets[:-1] + head_lengths
        result = np.empty(offsets[-1], np.int32)
        result[flat_indices(begins, lengths)] = ids
        for kind, head in heads.items():
            mine = np.flatnonzero(kinds == kind)
            result[flat_indices(offsets[:-1][mine], head_lengths[mine])] = np.tile(head, len(mine))
        return EncodedTurns(result, offsets, begins + before, {})

    def _verify(self, assistant: pa.Array, images: np.ndarray, turns: EncodedTurns) -> EncodedTurns:
        """Checks that the supervised tokens of each turn decode to its answer and end with the EOS token, and that the
        turn has one image token per image. Equal answers with equal tokens are decoded only once."""
        errors = {}
        found = segment_sums(turns.ids == self.prepared.image_token_id, turns.offsets)
        for turn in np.flatnonzero(found != images).tolist():
            errors[turn] = f"{found[turn]} image tokens for {images[turn]} images"
        texts = assistant.dictionary_encode()
        code = texts.indices.to_numpy()
        _, first = np.unique(code, return_index=True)  # the first turn of each distinct answer
        same = _equal_lists(turns.ids, turns.supervised, turns.num_supervised, first[code])
        to_decode = np.union1d(first, np.flatnonzero(~same))
        spans = [turns.ids[turns.supervised[t] : turns.offsets[t + 1]].tolist() for t in to_decode]
        decoded = self.prepared.tokenizer.decode_batch(spans, skip_special_tokens=False)
        answers = assistant.take(pa.array(to_decode)).to_pylist()
        wrong: dict[int, str] = {}
        for turn, text, answer in zip(to_decode.tolist(), decoded, answers, strict=True):
            ended = text.removesuffix(self.prepared.eos_token)
            if ended == text or ended.strip() != answer.strip():
                wrong[turn] = f"the supervised tokens decode to {text[:80]!r}, but the answer is {answer[:80]!r}"
        if wrong:
            model = np.where(same, first[code], np.arange(len(code)))
            for turn in np.flatnonzero(np.isin(model, list(wrong))).tolist():
                errors.setdefault(turn, wrong[int(model[turn])])
        return EncodedTurns(turns.ids, turns.offsets, turns.supervised, errors)

    def _verify_control(self, kinds: np.ndarray, inline: np.ndarray, turns: EncodedTurns) -> None:
        """Adds an error for each turn with control tokens that the chat style does not print: a tokenizer can read one
        in a text that only looks like it, such as `＜/s＞` or `</S>`. inline: (T,) images after the first word."""
        distinct, index = np.unique(kinds, return_inverse=True)
        around = self._control_tokens(self.style.wording.middle + self.style.wording.end)
        leads = [self.style.lead(kind) if kind >= 0 else self.style.later(-1 - kind) for kind in distinct.tolist()]
        printed = np.array([self._control_tokens(lead) for lead in leads], np.int64)[index] + around + inline
        found = segment_sums(np.isin(turns.ids, self._control), turns.offsets)
        for turn in np.flatnonzero(found != printed).tolist():
            message = f"{found[turn]} control tokens, but the chat style prints {printed[turn]}: a text is read as one"
            turns.errors.setdefault(turn, message)

    def _control_tokens(self, text: str) -> int:
        return int(np.isin(self._ids(text), self._control).sum())


def _control_ids(prepared: PreparedTokenizer) -> np.ndarray:
    """Returns the ids of the control tokens but the unknown token, which stands for characters of a text."""
    unknown = unknown_token(prepared.tokenizer)
    ids = (prepared.tokenizer.token_to_id(token) for token in prepared.special_tokens if token != unknown)
    return np.array(sorted(id for id in ids if id is not None), np.int64)


def _without_leading_images(user: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Returns the number of images before the first word of each text, and the text without them. The chat style
    prints these images itself, as it does for images that are passed separately from the text at inference."""
    if not pc.any(pc.starts_with(user, IMAGE_TOKEN)).as_py():
        return np.zeros(len(user), np.int64), user
    rest = pc.replace_substring_regex(user, rf"^(?:{IMAGE_TOKEN}\s*)+", "")
    counts = pc.subtract(pc.count_substring(user, IMAGE_TOKEN), pc.count_substring(rest, IMAGE_TOKEN))
    return counts.to_numpy().astype(np.int64), rest


def _equal_lists(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) bool: whether list i equals list other[i]."""
    same = lengths == lengths[other]
    mine = np.flatnonzero(same)
    equal = flat[flat_indices(starts[mine], lengths[mine])] == flat[flat_indices(starts[other[mine]], lengths[mine])]
    same[mine] = segment_sums(~equal, offsets_of(lengths[mine])) == 0
    return same
