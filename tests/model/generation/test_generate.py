"""Detokenisation, stop strings, sampling and request batching."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.serving_world import wait_for
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from model.generation.generate import End, PromptRow
from model.generation.sampling import PerRowSampler, Sampling, sample_token
from model.generation.text_stream import Detokenizer, StopStrings
from model.serving import batching
from model.serving.batching import Batcher, Busy, Closed

TEXTS = [
    "a zebra",
    "déjà vu",
    "日本語の文",
    "👩‍👩‍👧 family 👍🏽",
    "line\n\n  two",
    "\N{REPLACEMENT CHARACTER} and more",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_never_split_characters(tiny_processor: Any, text: str) -> None:
    tokenizer = tiny_processor.tokenizer
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer.encode(" " + text, add_special_tokens=False)
    pieces = [detokenizer.push(token) for token in tokens] + [detokenizer.end()]
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert pieces[-1] == ""


@given(tokens=st.lists(st.integers(0, 319), max_size=40))
@settings(max_examples=200, deadline=None)
def test_streamed_text_equals_decoded_text_for_any_tokens(tiny_processor: Any, tokens: list[int]) -> None:
    detokenizer = Detokenizer(tiny_processor.tokenizer)
    pieces = [detokenizer.push(token) for token in tokens] + [detokenizer.end()]
    assert "".join(pieces) == tiny_processor.tokenizer.decode(tokens, skip_special_tokens=True).lstrip()


@given(pieces=st.lists(st.text("ab", max_size=3)), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_is_truncated_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    strings, output = StopStrings(stops), ""
    for piece in pieces:
        output += strings.push(piece)
        assert not any(stop in output for stop in stops)
        if strings.found:
            break
    output += strings.end()
    text = "".join(pieces)
    starts = [text.index(stop) for stop in stops if stop in text]
    assert strings.found == bool(starts)
    if not starts:
        assert output == text
    else:
        assert text.startswith(output) and not any(stop in output for stop in stops)


def test_samples_follow_the_requested_distribution() -> None:
    scores = torch.tensor([0.0, 1.0, -torch.inf, 2.0, 0.5])
    random = torch.Generator().manual_seed(0)
    for row, kept in ((Sampling(0.7), [0, 1, 3, 4]), (Sampling(0.7, 0.8), [1, 3]), (Sampling(2.0, 0.0), [3])):
        drawn = (
            torch.bincount(torch.tensor([sample_token(scores, row, random) for _ in range(4000)]), minlength=5) / 4000
        )
        wanted = torch.zeros(5)
        wanted[kept] = (scores[kept] / row.temperature).softmax(dim=-1)
        assert (drawn - wanted).abs().max() < 0.03
        assert drawn[wanted == 0].sum() == 0


def test_sampling_is_independent_of_the_batch() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    rows = [Sampling(1.0, seed=5), Sampling(0.0), Sampling(0.5, 0.9, seed=6)]
    batched = PerRowSampler(rows)
    single = [PerRowSampler([row]) for row in rows]
    ids = torch.zeros(3, 1, dtype=torch.long)
    for _ in range(20):
        chosen = batched(ids, scores).argmax(dim=-1)
        assert chosen.tolist() == [int(s(ids[:1], scores[i : i + 1]).argmax()) for i, s in enumerate(single)]
        assert chosen[1] == scores[1].argmax()


def row(progress: list[Any]) -> PromptRow:
    return PromptRow([1], None, 1, progress.append)


def test_waiting_rows_are_batched_up_to_the_maximum() -> None:
    sizes: list[int] = []
    go, reports = threading.Event(), [[] for _ in range(8)]  # type: ignore[var-annotated]

    def answer(rows: Sequence[PromptRow]) -> None:
        sizes.append(len(rows))
        go.wait()
        for each in rows:
            each.finish(End("stop", 1))

    batcher = Batcher(answer, 3)
    batcher.submit(row(reports[0]))
    wait_for(lambda: sizes)
    rows = [row(progress) for progress in reports[1:]]
    rows[2].cancelled.set()
    for each in rows:
        batcher.submit(each)
    go.set()
    wait_for(lambda: all(reports))
    assert sizes == [1, 3, 3]
    assert [progress[0].reason for progress in reports] == ["stop"] * 3 + ["cancelled"] + ["stop"] * 4
    batcher.close()


def test_failed_batch_is_answered_row_by_row() -> None:
    sizes: list[int] = []
    go, reports = threading.Event(), [[] for _ in range(5)]  # type: ignore[var-annotated]

    def answer(rows: Sequence[PromptRow]) -> None:
        go.wait()
        sizes.append(len(rows))
        for each in rows:
            if each is rows_[2]:
                each.give("a")
            if each is rows_[3]:
                raise ValueError("a bad row")
        for each in rows:
            each.finish(End("stop", 1))

    rows_ = [row(progress) for progress in reports]
    batcher = Batcher(answer, 4)
    for each in rows_:
        batcher.submit(each)
    go.set()
    wait_for(lambda: all(each.ended for each in rows_))
    batcher.close()
    assert [type(progress[-1]).__name__ for progress in reports] == ["End", "End", "ValueError", "ValueError", "End"]
    assert sizes[0] == 4 and sorted(sizes) == [1, 1, 1, 1, 4]


def test_full_or_closed_queue_rejects_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING", 2)
    started, reports = threading.Event(), [[] for _ in range(3)]  # type: ignore[var-annotated]

    def until_cancelled(rows: Sequence[PromptRow]) -> None:
        started.set()
        for each in rows:
            each.cancelled.wait()
            each.finish(End("cancelled", 0))

    batcher = Batcher(until_cancelled, 1)
    for progress in reports:
        batcher.submit(row(progress))
        started.wait()
    with pytest.raises(Busy, match="2 requests are already waiting"):
        batcher.submit(row([]))
    batcher.close()
    assert reports[0] == [End("cancelled", 0)]
    assert [type(progress[0]) for progress in reports[1:]] == [Closed, Closed]
    with pytest.raises(Closed):
        batcher.submit(row([]))


def test_streaming_with_a_llama_like_tokenizer() -> None:
    """Spaces are part of the following word, and unknown characters are encoded as single-byte tokens."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    merges = [("▁", "a"), ("a", "b")]
    tokenizer = Tokenizer(
        models.BPE({token: index for index, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    for text in ("a b", "ab a\nab", "日a 本 é", "a  👍🏽 b"):
        detokenizer = Detokenizer(fast)
        pieces = [detokenizer.push(token) for token in fast.encode(text)]
        assert "".join(pieces) == text and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert detokenizer.end() == "" and sum(map(bool, pieces)) > 2
