"""Reads the word lists of a language (pipelines/dedup/english.yaml) and checks them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from pipelines.core.yaml_files import UniqueKeys, validation_problems

COLOUR, DIRECTION, ORDER, GENDER = "colour", "direction", "order", "gender"  # lines that rules refer to
NUMBER = "number"  # the pseudo-line of numbers


class WordListError(ValueError):
    """An invalid file of word lists; the message names the file and the key."""


def _ordered(text: Any) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise ValueError(f"must be words separated by spaces, found {text!r} (quote a single yes, no, on or off)")
    return _distinct(text.split())


def _distinct(words: Sequence[str]) -> tuple[str, ...]:
    if not words:
        raise ValueError("must have at least one word")
    if repeated := sorted({word for word in words if words.count(word) > 1}):
        raise ValueError(f"has {', '.join(repeated)} more than once")
    if wrong := [word for word in words if not word.isalpha() or word != word.lower()]:
        raise ValueError(f"must be lower-case words, found {wrong[0]!r}")
    return tuple(words)


def _groups(text: Any) -> tuple[frozenset[str], ...]:
    if not isinstance(text, str):
        raise ValueError(f"must be groups separated by spaces, of words separated by slashes, found {text!r}")
    groups = [group.split("/") for group in text.split()]
    _distinct([word for group in groups for word in group])
    return tuple(map(frozenset, groups))


Ordered = Annotated[tuple[str, ...], BeforeValidator(_ordered)]
Words = Annotated[frozenset[str], BeforeValidator(lambda text: frozenset(_ordered(text)))]
Line = Annotated[tuple[frozenset[str], ...], BeforeValidator(_groups)]


class WordLists(BaseModel):
    """The word classes of a language. The file explains each of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    affirmative: Words
    negative: Words
    negations: Words
    asking: Words
    auxiliaries: Words
    articles: Words
    light: Words
    shared: Words
    image: Words
    asked: Words
    quantities: Words
    particles: Words
    kinds: Words
    anything: Words
    prepositions: Words
    anyone: Words
    people: Words
    sides: Words
    frames: Words
    numbers: Ordered
    plurals: dict[str, str]
    opposites: dict[str, Line]
    antonyms: dict[str, Line]

    @model_validator(mode="after")
    def _fits_the_rules(self) -> "WordLists":
        if missing := [line for line in (COLOUR, DIRECTION, ORDER, GENDER) if line not in self.opposites]:
            raise ValueError(f"opposites: has no line {missing[0]!r}, which rules refer to")
        if odd := [line for line, groups in self.antonyms.items() if len(groups) != 2]:
            raise ValueError(f"antonyms.{odd[0]}: must have two groups, found {len(self.antonyms[odd[0]])}")
        if NUMBER in self.opposites:
            raise ValueError(f"opposites.{NUMBER}: this name is reserved for numbers")
        return self


def read_word_lists(path: Path) -> WordLists:
    """Reads a file of word lists. Raises WordListError for an unknown or missing key, a repeated key or word, and a
    value of the wrong type."""
    try:
        return WordLists.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeys))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WordListError(f"{path}: cannot be read as YAML: {error}") from None
    except ValidationError as error:
        raise WordListError(f"{path}: {validation_problems(error, 'the file')}") from None
