"""Tests of deduplication: the greedy rule, its options, and that decisions depend only on the conversation."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.vectors import embed_turns

from pipelines.dedup.decide import Decisions, deduplicate, texts_to_embed
from pipelines.dedup.embeddings import Embeddings
from pipelines.dedup.settings import Dedup

Turns = list[tuple[str, str]]


def decide(turns: Turns, offsets=None, **dedup) -> Decisions:
    questions, answers = [q for q, _ in turns], [a for _, a in turns]
    offsets = np.array([0, len(turns)] if offsets is None else offsets)
    embeddings = Embeddings(embed_turns(questions, answers, offsets, Dedup(**dedup)))
    return deduplicate(offsets, questions, answers, embeddings, Dedup(**dedup))


def at_angles(**degrees: float) -> Embeddings:
    """Embeddings of texts as unit vectors in the plane at the given angles."""
    angles = np.radians(list(degrees.values()))
    vectors = pa.array(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16).reshape(-1))
    return Embeddings(
        pa.table(
            {
                "text": list(degrees),
                "known": [True] * len(degrees),
                "vector": pa.FixedSizeListArray.from_arrays(vectors, 2),
            }
        )
    )


def test_compares_with_kept_turns_only():
    # a~b and b~c but not a~c: b is dropped, but c is kept although it is similar to the dropped b.
    plane, least = at_angles(a=0, b=20, c=40), float(np.cos(np.radians(30)))
    found = deduplicate(np.array([0, 3]), ["a", "b", "c"], [""] * 3, plane, Dedup(compare="question", threshold=least))
    assert found.keep.tolist() == [True, False, True]
    assert found.partner.tolist() == [-1, 0, -1]
    assert found.similarity[1] == pytest.approx(np.cos(np.radians(20)), abs=1e-3)
    assert np.isnan(found.similarity[[0, 2]]).all()
    assert found.rule == ["", "semantic", ""]


def test_records_the_most_similar_kept_partner():
    plane = at_angles(a=0, b=50, c=30)
    found = deduplicate(np.array([0, 3]), ["a", "b", "c"], [""] * 3, plane, Dedup(compare="question", threshold=0.8))
    assert found.partner.tolist() == [-1, -1, 1]


def test_groups_are_independent():
    turn = ("What color is the car?", "red")
    assert decide([turn] * 4, [0, 2, 4]).keep.tolist() == [True, False, True, False]
    assert decide([turn] * 3, [0, 1, 2, 3]).keep.all()
    assert decide([turn] * 3, [0, 0, 3, 3]).keep.tolist() == [True, False, False]


def test_turns_that_are_alone_in_their_group_need_no_vectors():
    turns = [("Is it red?", "yes"), ("Is it red?", "yes"), ("Who never met anyone?", "a hermit")]
    embeddings = Embeddings(embed_turns(["Is it red?"] * 2, ["yes"] * 2))
    questions, answers = zip(*turns, strict=True)
    found = deduplicate(np.array([0, 2, 3]), questions, answers, embeddings)
    assert found.keep.tolist() == [True, False, True]
    with pytest.raises(KeyError, match="'met'"):
        deduplicate(np.array([0, 3]), questions, answers, embeddings)


def test_the_answer_rule_compares_answer_strings():
    turns = [("How many cups?", "Two."), ("How many plates?", "two"), ("What is it?", "a cup"), ("Which?", "The cup")]
    found = decide(turns, rule="answer")
    assert found.keep.tolist() == [True, False, True, False]
    assert np.isnan(found.similarity[1]) and found.rule[1] == "answer"
    assert not texts_to_embed(["How many cups?"], ["2"], Dedup(rule="answer"))


def test_the_combined_rule_drops_what_either_rule_drops():
    turns = [
        ("How many cups?", "2"),
        ("How many plates?", "2"),
        ("Is the car red?", "yes"),
        ("Is it a red car?", "yes"),
    ]
    assert decide(turns).keep.tolist() == [True, True, True, False]
    found = decide(turns, rule="semantic+answer")
    assert found.keep.tolist() == [True, False, True, False]
    assert found.rule == ["", "answer", "", "answer"]  # the answer rule takes precedence


def test_off_drops_nothing():
    assert decide([("Is it red?", "yes")] * 3, rule="off").keep.all()


def test_a_similarity_that_reaches_the_threshold_is_a_duplicate():
    turns = [("What color is the car?", "red"), ("Where is the red car parked?", "on the street")]
    similarity = decide(turns, threshold=0.01).similarity[1]
    assert decide(turns, threshold=float(similarity)).keep.tolist() == [True, False]
    assert decide(turns, threshold=min(1.0, float(similarity) + 1e-3)).keep.all()


def test_only_questions_or_only_answers_can_be_compared():
    turns = [("How many cups are there?", "2"), ("How many cups are there?", "many"), ("Who is there?", "2")]
    assert decide(turns, compare="question").keep.tolist() == [True, False, True]
    assert decide(turns, compare="answer").keep.tolist() == [True, True, False]


def test_unknown_options_and_mismatched_sizes_are_errors():
    with pytest.raises(ValueError, match="rule\n  Input should be"):
        decide([], [0, 0], rule="cosine")
    with pytest.raises(ValueError, match="compare\n  Input should be"):
        decide([], [0, 0], compare="both")
    with pytest.raises(ValueError, match="1 questions"):
        decide([("Is it red?", "yes")], [0, 2])
    with pytest.raises(ValueError, match="needs embeddings"):
        deduplicate(np.array([0, 2]), ["Is the cup red?", "Is it a cup?"], ["yes", "no"], None)


def test_decisions_do_not_depend_on_other_groups_or_block_sizes(monkeypatch):
    things, colors = ["cup", "car", "dog", "tall tree", "chair"], ["red", "blue", "white"]
    turns = [(f"What color is the {t}?", c) for t in things for c in colors]
    turns += [(f"Is the {t} {c}?", "yes") for t in things for c in colors] + [
        (f"Where is the {t}?", "left") for t in things
    ]
    order = np.random.default_rng(0).permutation(len(turns))
    turns = [turns[k] for k in order]
    offsets = [0, 3, 4, 15, 24, len(turns)]
    complete = decide(turns, offsets)
    assert 5 < (~complete.keep).sum() < len(turns) - 5
    for first, last in pairwise(offsets):
        part = decide(turns[first:last])
        assert part.keep.tolist() == complete.keep[first:last].tolist()
        assert np.array_equal(part.similarity, complete.similarity[first:last], equal_nan=True)
    monkeypatch.setattr("pipelines.dedup.decide.PAIRS_AT_ONCE", 7)
    monkeypatch.setattr("pipelines.dedup.alignment.WORD_PAIRS_AT_ONCE", 20)
    monkeypatch.setattr("pipelines.dedup.text_vectors.VECTORS_AT_ONCE", 3)
    blocks = decide(turns, offsets)
    assert np.array_equal(blocks.similarity, complete.similarity, equal_nan=True)
    assert np.array_equal(blocks.partner, complete.partner)


@pytest.mark.parametrize(
    "other", ["", "😀", "🚲🌳", "Wie viele Tassen stehen da?", "猫は何匹ですか", "word " * 10_000, "?!", "\x00"]
)
def test_unusual_texts(other):
    found = decide([(other, ""), (other, ""), ("What color is the car?", "red"), ("", other)])
    assert found.keep[0] and found.keep[2]
    if any(c.isalnum() for c in other):
        assert not found.keep[1]  # an exact repetition


def test_different_emoji_are_different():
    assert decide([("What mood is it?", "😀"), ("What vehicle is it?", "🚲")]).keep.all()


@pytest.mark.realdata
def test_labelled_pairs_of_real_turns(realdata):
    rows = [json.loads(line) for line in (realdata / "dedup" / "pairs_a.jsonl").read_text().splitlines()]
    turns = [(row[side]["question"], row[side]["answer"]) for row in rows for side in "ab"]
    found = decide(turns, range(0, len(turns) + 1, 2))
    is_dup = np.array([row["label"] == "dup" for row in rows])
    dropped = ~found.keep[1::2]
    assert dropped[~is_dup].mean() <= 0.05
    assert dropped[is_dup].mean() >= 0.75


QUESTIONS_IN_OTHER_LANGUAGES = {
    "am": ["በምስሉ ውስጥ ስንት ድመቶች አሉ", "መኪናው ምን አይነት ቀለም ነው", "ሰውየው ምን እያደረገ ነው"],
    "bn": ["ছবিতে কয়টি বিড়াল আছে?", "গাড়িটির রং কী?", "লোকটি কী করছে?"],
    "de": ["Wie viele Tassen stehen auf dem Tisch?", "Wie viele Teller stehen auf dem Tisch?", "Was macht der Mann?"],
    "hi": ["मेज पर कितने कप हैं?", "मेज पर कितनी प्लेटें हैं?", "कार किस रंग की है?"],
    "id": ["Berapa banyak cangkir di atas meja?", "Berapa banyak piring di atas meja?", "Apa warna mobil itu?"],
    "ko": ["테이블 위에 컵이 몇 개 있나요?", "테이블 위에 접시가 몇 개 있나요?", "차는 무슨 색인가요?"],
    "my": ["ပုံထဲမှာ ကြောင်ဘယ်နှစ်ကောင်ရှိလဲ", "ကားက ဘာအရောင်လဲ", "လူက ဘာလုပ်နေလဲ"],
    "ru": ["Сколько чашек на столе?", "Сколько тарелок на столе?", "Какого цвета машина?"],
    "th": ["มีแก้วกี่ใบบนโต๊ะ", "มีจานกี่ใบบนโต๊ะ", "รถสีอะไร"],
    "vi": ["Có bao nhiêu cái cốc trên bàn?", "Có bao nhiêu cái đĩa trên bàn?", "Xe ô tô màu gì?"],
    "zh": ["桌子上有几个杯子？", "桌子上有几个盘子？", "车是什么颜色的？"],
    "emoji": ["😀", "🚲", "🌳"],
}


@pytest.mark.parametrize("compare", ["pair", "question"])
@pytest.mark.parametrize("language", QUESTIONS_IN_OTHER_LANGUAGES)
def test_texts_that_cannot_be_read_are_duplicates_only_if_they_are_equal(language, compare):
    turns = [(question, "3") for question in QUESTIONS_IN_OTHER_LANGUAGES[language]]
    found = decide([*turns, turns[0]], compare=compare)
    assert found.keep.tolist() == [True, True, True, False]
    assert found.unread.all()


def test_long_texts_with_an_equal_beginning_are_different():
    beginning = "Is the cup next to the plate " * 150
    turns = [(beginning + "red?", "yes"), (beginning + "blue?", "yes"), (beginning + "red?", "yes")]
    for compare in ("pair", "question"):
        found = decide(turns, compare=compare)
        assert found.keep.tolist() == [True, True, False]
        assert found.unread.all()


@pytest.mark.parametrize("rule", ["semantic", "semantic+answer", "answer", "off"])
@pytest.mark.parametrize("compare", ["pair", "question", "answer"])
def test_turns_that_are_alone_need_no_embeddings(rule, compare):
    found = deduplicate(
        np.arange(3), ["Is it red?", "Is it red?"], ["yes"] * 2, None, Dedup(rule=rule, compare=compare)
    )
    assert found.keep.all()


def test_turns_without_content_words_need_no_embeddings():
    found = deduplicate(np.array([0, 3]), ["What is this?", "Who is it?", "What is this?"], ["yes"] * 3, None)
    assert found.keep[0] and not found.keep[2]


def test_pairs_that_no_rule_was_fitted_on():
    rows = [json.loads(line) for line in Path(__file__).with_name("held_back_pairs.jsonl").read_text().splitlines()]
    turns = [(row[side]["question"], row[side]["answer"]) for row in rows for side in "ab"]
    is_dup = np.array([row["label"] == "dup" for row in rows])
    dropped = ~decide(turns, range(0, len(turns) + 1, 2)).keep[1::2]
    assert dropped[~is_dup].mean() <= 0.05
    assert dropped[is_dup].mean() >= 0.75
