"""Shared words, whatever the case and the punctuation."""

import pyarrow as pa

from pipelines.ngrams import PATTERN, Ngrams

LONG = "Which of these animals would you rather not meet at night?"


def shared(texts: list[str], others: list[str], n: int = 5) -> list[tuple[int, int, str]]:
    return Ngrams.of(pa.array(texts, pa.string()), n).shared_with(Ngrams.of(pa.array(others, pa.string()), n))


def test_case_punctuation_and_what_stands_around_do_not_count():
    texts = [
        "Hm… “which  OF THESE animals-would” you say?",
        "of these animals would, not",
        "Of these animals: WOULD YOU",
    ]
    assert shared(texts, ["No.", LONG]) == [
        (0, 1, "which of these animals would"),
        (2, 1, "of these animals would you"),
    ]


def test_words_in_another_order_are_others():
    assert shared(["rather you would animals these of which"], [LONG]) == []


def test_texts_shorter_than_an_ngram_have_none():
    assert shared(["Is there a dog?", "", LONG], ["Is there a dog?", "", " ?! "]) == []
    assert shared(["Is there a dog?"], ["Is there a dog?"], 4) == [(0, 0, "is there a dog")]


def test_ngrams_do_not_reach_over_the_end_of_a_text():
    assert shared(["which of these", "animals would"], [LONG]) == []


def test_other_scripts():
    assert shared(["图片里的狗在哪里？"], ["请问：狗在哪里"], 4) == [(0, 0, "狗 在 哪 里")]
    assert shared(["ÉTÉ à la plage, été"], ["un ete à la plage"], 4) == [(0, 0, "ete a la plage")]


def test_nothing():
    assert shared([], [LONG]) == shared([LONG], []) == shared([], []) == []


def test_the_form_of_many_questions_is_held_against_none():
    form = [f"How many things of this kind are there, {k}?" for k in range(PATTERN + 1)]
    assert shared(["Say how many things of this kind are there"], form[:PATTERN])
    assert shared(["Say how many things of this kind are there"], form) == []
    assert shared([form[3]], form, 9) == [(0, 3, "how many things of this kind are there 3")]
