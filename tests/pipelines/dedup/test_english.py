"""Tests of the tokenizer, singulars and opposites."""

import pytest

from pipelines.dedup.english import is_inverse, is_opposite, singular, tokens


def test_tokens():
    assert tokens("Isn't the dog's bowl 12:30, two 😀s?") == [
        "is",
        "not",
        "the",
        "dog",
        "bowl",
        "12:30",
        "2",
        "😀",
        "s",
    ]
    assert tokens("?! … —") == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [("cups", "cup"), ("boxes", "box"), ("glass", "glass"), ("bus", "bus"), ("buses", "bus"), ("women", "woman"),
     ("berries", "berry"), ("gas", "gas"), ("tennis", "tennis"), ("horses", "horse")],
)  # fmt: skip
def test_singular(word, expected):
    assert singular(word) == expected


def test_opposites():
    assert is_opposite("red", "blue") and is_opposite("small", "huge") and not is_opposite("big", "large")
    assert not is_opposite("left", "right")  # swapped with their objects, they state the same fact
    assert not is_opposite("cup", "red")


def test_inverses():
    assert is_inverse("left", "right") and is_inverse("under", "above") and is_inverse("red", "blue")
    assert is_inverse("dry", "wet") and is_inverse("hot", "cool")
    assert not is_inverse("left", "above") and not is_inverse("man", "woman") and not is_inverse("hot", "warm")
    assert not is_inverse("cup", "cup")
