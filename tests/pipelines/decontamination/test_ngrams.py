"""Tests of shared n-grams, which ignore case, accents and punctuation."""

import pyarrow as pa

from pipelines.decontamination.ngrams import MAX_OCCURRENCES, Ngrams

LONG = "Which of these animals would you rather not meet at night?"


def shared(texts: list[str], others: list[str], n: int = 5) -> list[tuple[int, int, str]]:
    return Ngrams.of(pa.array(texts, pa.string()), n).shared_with(Ngrams.of(pa.array(others, pa.string()), n))


def test_case_punctuation_and_surrounding_words_are_ignored():
    texts = [
        "Hm… “which  OF THESE animals-would” you say?",
        "of these animals would, not",
        "Of these animals: WOULD YOU",
    ]
    assert shared(texts, ["No.", LONG]) == [
        (0, 1, "which of these animals would"),
        (2, 1, "of these animals would you"),
    ]


def test_the_order_of_words_matters():
    assert shared(["rather you would animals these of which"], [LONG]) == []


def test_texts_shorter_than_an_ngram_have_none():
    assert shared(["Is there a dog?", "", LONG], ["Is there a dog?", "", " ?! "]) == []
    assert shared(["Is there a dog?"], ["Is there a dog?"], 4) == [(0, 0, "is there a dog")]


def test_ngrams_do_not_span_two_texts():
    assert shared(["which of these", "animals would"], [LONG]) == []


def test_other_scripts():
    assert shared(["图片里的狗在哪里？"], ["请问：狗在哪里"], 4) == [(0, 0, "狗 在 哪 里")]
    assert shared(["ÉTÉ à la plage, été"], ["un ete à la plage"], 4) == [(0, 0, "ete a la plage")]


def test_empty_inputs_share_nothing():
    assert shared([], [LONG]) == shared([LONG], []) == shared([], []) == []


def test_boilerplate_of_many_questions_is_ignored():
    boilerplate = [f"How many things of this kind are there, {k}?" for k in range(MAX_OCCURRENCES + 1)]
    assert shared(["Say how many things of this kind are there"], boilerplate[:MAX_OCCURRENCES])
    assert shared(["Say how many things of this kind are there"], boilerplate) == []
    assert shared([boilerplate[3]], boilerplate, 9) == [(0, 3, "how many things of this kind are there 3")]
