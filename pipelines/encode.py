"""Turns → token ids and loss mask; the only place where text becomes tokens.

A tokenizer cuts a text at its special tokens before it does anything else. Every answer ends with one, so the tokens
of a conversation are those of its turns, one after the other; the first turn brings along what stands before it.
"""

import functools
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import words
from pipelines.chat_style import BEGIN, END, ChatStyle
from pipelines.ragged import offsets_of, places, sums
from pipelines.tokenizer import IMAGE_TOKEN, PreparedTokenizer

_CHECKED = 8  # turns of every batch that are tokenised both ways


@dataclass(frozen=True)
class EncodedTurns:
    """Turns as tokens: turn t is ids[offsets[t] : offsets[t + 1]], supervised from ids[supervised[t]] to its end."""

    ids: np.ndarray  # int32
    offsets: np.ndarray  # int64 (T + 1,)
    supervised: np.ndarray  # int64 (T,)
    errors: dict[int, str]  # turn → why its loss mask is not proved

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def num_supervised(self) -> np.ndarray:
        return self.offsets[1:] - self.supervised

    def take(self, turns: np.ndarray) -> "EncodedTurns":
        """Those turns alone, in that order."""
        lengths = self.lengths[turns]
        offsets = offsets_of(lengths)
        ids = self.ids[places(self.offsets[:-1][turns], lengths)]
        return EncodedTurns(ids, offsets, offsets[:-1] + (self.supervised - self.offsets[:-1])[turns], {})

    def loss_mask(self) -> np.ndarray:
        """(tokens,) bool: True where supervised."""
        mask = np.zeros(len(self.ids), dtype=bool)
        mask[places(self.supervised, self.num_supervised)] = True
        return mask


class Encoder:
    """Encodes turns in one chat style with one tokenizer."""

    def __init__(self, prepared: PreparedTokenizer, style: str):
        self.prepared = prepared
        self.style = ChatStyle(style, prepared.bos_token, prepared.eos_token)
        self.closing = np.array(self._ids(self.style.wording.closing), np.int32)  # after a conversation's last turn
        self._words = words.WordTokenizer(prepared)
        self._special = "|".join(map(re.escape, prepared.special_tokens))
        # What begins a turn in this style: inside a text it would look like one.
        around = (self.style.later(0).rstrip(), self.style.wording.middle.rstrip())
        self.role_marks = tuple(mark for mark in around if mark.strip())

    def forbidden_text(self, texts: pa.Array) -> pa.Array:
        """The first special token (the image token among them) or role mark that stands in each text, else null."""
        pattern = "|".join([self._special, BEGIN, END, *map(re.escape, self.role_marks)])
        bad = pc.match_substring_regex(texts, pattern)
        found = pc.extract_regex(texts.filter(bad), f"(?P<token>{pattern})")
        return pc.replace_with_mask(pa.nulls(len(texts), pa.string()), bad, pc.struct_field(found, "token"))

    def encode(self, user: pa.Array, assistant: pa.Array, images: np.ndarray) -> EncodedTurns:
        """user, assistant: T texts without special tokens, but for an `<image>` in a user text where a picture stands;
        images: (T,) integers: for a turn that begins a conversation how many pictures stand at its head, for others −1.
        """
        places = pc.count_substring(user, IMAGE_TOKEN).to_numpy()
        leading, user = _without_leading_images(user)
        kinds = np.where(images >= 0, images + leading, -1 - leading)
        lead, wording = self._leads(kinds), self.style.wording
        texts = pc.binary_join_element_wise(lead, user, wording.middle, assistant, wording.end, "")
        known = self._words_before_answer(lead, user)
        by_words = (known >= 0) & (places == leading) & self._words.can_encode(texts)
        ids, lengths, before = self._encode_pieces(texts, by_words, known, lead, user, self._has_special(kinds))
        return self._prove(assistant, np.maximum(images, 0) + places, self._with_heads(kinds, ids, lengths, before))

    def head_tokens(self, num_images: int) -> int:
        """About how many text tokens the first turn of a conversation has more than it would have as a later one."""
        text = self.style.lead(num_images)
        return len(self._ids(text)) - num_images - len(self._ids(self.style.later(0)))

    # A `kind` says what stands before a turn's text: n ≥ 0: the beginning of a conversation and n pictures; n < 0: the
    # end of the turn before and −1 − n pictures.

    @functools.cache  # noqa: B019 (an encoder lives as long as its process)
    def _head(self, kind: int) -> tuple[np.ndarray, str]:
        """The tokens up to the last special token before the user text, and the text after it."""
        lead = self.style.lead(kind) if kind >= 0 else self.style.later(-1 - kind)
        special = [match.end() for match in re.finditer(self._special, lead)]
        cut = special[-1] if special else 0
        anchor = self.prepared.eos_token if kind < 0 else ""
        ids = self._ids(anchor + lead[:cut])[len(self._ids(anchor)) :]
        return np.array(ids, np.int32), lead[cut:]

    def _ids(self, text: str) -> list[int]:
        return self.prepared.tokenizer.encode(text, add_special_tokens=False).ids

    def _leads(self, kinds: np.ndarray) -> pa.Array:
        distinct, place = np.unique(kinds, return_inverse=True)
        return pa.array([self._head(kind)[1] for kind in distinct.tolist()], pa.string()).take(pa.array(place))

    def _has_special(self, kinds: np.ndarray) -> np.ndarray:
        """(T,) bool: whether a special token stands before the turn's own text."""
        distinct, place = np.unique(kinds, return_inverse=True)
        return np.array([kind < 0 or len(self._head(kind)[0]) > 0 for kind in distinct.tolist()], dtype=bool)[place]

    def _words_before_answer(self, lead: pa.Array, user: pa.Array) -> np.ndarray:
        """(T,) int64: how many words (texts cut before each space) stand before the supervised text, where it begins
        with a word; −1 elsewhere."""
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
        """Texts that stand after a special token → (ids of all, tokens of each, tokens before each answer)."""
        by_words &= has_special
        fast, slow = np.flatnonzero(by_words), np.flatnonzero(~by_words)
        cut = self._words.encode(texts.take(pa.array(fast)))
        answer_at = pc.add(pc.utf8_length(lead), pc.utf8_length(user)).to_numpy() + self.style.wording.offset
        whole = self._encode_whole(texts.take(pa.array(slow)), answer_at[slow], has_special[slow])
        self._check(texts, fast, cut, answer_at)
        lengths, before = np.empty(len(texts), np.int64), np.empty(len(texts), np.int64)
        lengths[fast], before[fast] = words.lengths(cut), words.tokens_before(cut, words_before[fast])
        lengths[slow], before[slow] = [len(ids) for ids, _ in whole], [at for _, at in whole]
        offsets = offsets_of(lengths)
        ids = np.empty(offsets[-1], np.int32)
        ids[places(offsets[:-1][fast], lengths[fast])] = cut.ids
        if whole:
            ids[places(offsets[:-1][slow], lengths[slow])] = np.concatenate([np.array(i, np.int32) for i, _ in whole])
        return ids, lengths, before

    def _encode_whole(
        self, texts: pa.Array, answer_at: np.ndarray, has_special: np.ndarray
    ) -> list[tuple[list[int], int]]:
        """Each text at once → (ids, tokens before the character `answer_at`)."""
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
                len(encoding.ids),  # characters that a tokenizer swallows have no token
            )
            found.append((encoding.ids[int(special) :], first - int(special)))
        return found

    def _check(self, texts: pa.Array, fast: np.ndarray, cut: words.Words, answer_at: np.ndarray) -> None:
        """A few of the turns both ways. Raises RuntimeError if cutting into words changed their tokens."""
        some = np.arange(len(fast))[:: max(1, len(fast) // _CHECKED)]
        chosen = fast[some]
        whole = self._encode_whole(texts.take(pa.array(chosen)), answer_at[chosen], np.ones(len(some), bool))
        for place, (ids, _) in zip(some, whole, strict=True):
            begin, end = cut.ends[cut.offsets[place]], cut.ends[cut.offsets[place + 1]]
            if cut.ids[begin:end].tolist() != ids:
                raise RuntimeError(f"tokens word by word are not those of the text {texts[int(fast[place])].as_py()!r}")

    def _with_heads(self, kinds: np.ndarray, ids: np.ndarray, lengths: np.ndarray, before: np.ndarray) -> EncodedTurns:
        heads = {kind: self._head(kind)[0] for kind in np.unique(kinds).tolist()}
        head_lengths = np.zeros(len(kinds), np.int64)
        for kind, head in heads.items():
            head_lengths[kinds == kind] = len(head)
        offsets = offsets_of(head_lengths + lengths)
        begins = offsets[:-1] + head_lengths
        result = np.empty(offsets[-1], np.int32)
        result[places(begins, lengths)] = ids
        for kind, head in heads.items():
            mine = np.flatnonzero(kinds == kind)
            result[places(offsets[:-1][mine], head_lengths[mine])] = np.tile(head, len(mine))
        return EncodedTurns(result, offsets, begins + before, {})

    def _prove(self, assistant: pa.Array, images: np.ndarray, turns: EncodedTurns) -> EncodedTurns:
        """Promise: the supervised tokens of each turn decode to its answer and end with the end token, and there are
        as many image tokens as images. Equal answers with equal tokens are decoded once."""
        errors = {}
        found = sums(turns.ids == self.prepared.image_token_id, turns.offsets)
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
                wrong[turn] = f"supervised tokens decode to {text[:80]!r}, the answer is {answer[:80]!r}"
        if wrong:
            model = np.where(same, first[code], np.arange(len(code)))
            for turn in np.flatnonzero(np.isin(model, list(wrong))).tolist():
                errors.setdefault(turn, wrong[int(model[turn])])
        return EncodedTurns(turns.ids, turns.offsets, turns.supervised, errors)


def _without_leading_images(user: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """How many pictures stand before the first word of each text, and the text from there on: a chat style prints such
    pictures in its own way, as when they are given beside the text at inference."""
    if not pc.any(pc.starts_with(user, IMAGE_TOKEN)).as_py():
        return np.zeros(len(user), np.int64), user
    rest = pc.replace_substring_regex(user, rf"^(?:{IMAGE_TOKEN}\s*)+", "")
    counts = pc.subtract(pc.count_substring(user, IMAGE_TOKEN), pc.count_substring(rest, IMAGE_TOKEN))
    return counts.to_numpy().astype(np.int64), rest


def _equal_lists(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) bool: whether list i equals list other[i]."""
    same = lengths == lengths[other]
    mine = np.flatnonzero(same)
    equal = flat[places(starts[mine], lengths[mine])] == flat[places(starts[other[mine]], lengths[mine])]
    same[mine] = sums(~equal, offsets_of(lengths[mine])) == 0
    return same
