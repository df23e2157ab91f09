"""Tests of the file of word lists: every mistake is an error that names the file and the key."""

from pathlib import Path

import pytest

from pipelines.dedup import english
from pipelines.dedup.word_lists import WordListError, read_word_lists

ENGLISH = Path(english.__file__).with_name("english.yaml")


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = ENGLISH.read_text()
    assert text.count(old) == 1
    (tmp_path / "words.yaml").write_text(text.replace(old, new))
    return tmp_path / "words.yaml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("articles: a an the", "articles: a an the a", r"words\.yaml: articles: has a more than once"),
        ("articles: a an the", "articles: a an The", "articles: must be lower-case words, found 'The'"),
        ("articles: a an the", "articles: [a, an, the]", "articles: must be words separated by spaces"),
        ("articles: a an the", "articles: yes", "articles: must be words separated by spaces, found True"),
        ("articles: a an the", "articles: ''", "articles: must have at least one word"),
        ("articles: a an the", "sides: left", "the key 'sides' appears twice"),
        ("articles: a an the", "article: a an the", r"articles: Field required.*article: Extra inputs"),
        ("articles: a an the", "articles: [", "cannot be read as YAML"),
        ("mice: mouse", "mice: 3", r"plurals\.mice: Input should be a valid string"),
        ("light dark", "light/dark dark", r"opposites\.brightness: has dark more than once"),
        ("light dark", "[light, dark]", r"opposites\.brightness: must be groups separated by spaces"),
        ("light dark", "light//dim dark", r"opposites\.brightness: must be lower-case words, found ''"),
        ("gender: man", "sex: man", "opposites: has no line 'gender', which rules refer to"),
        ("gender: man", "number: one two\n  gender: man", r"opposites\.number: this name is reserved"),
        ("wet dry", "wet damp dry", r"antonyms\.moisture: must have two groups, found 3"),
        ("wet dry", "wet", r"antonyms\.moisture: must have two groups, found 1"),
    ],
)
def test_mistakes_are_errors_that_name_file_and_key(tmp_path, old, new, message):
    with pytest.raises(WordListError, match=message) as error:
        read_word_lists(changed(tmp_path, old, new))
    assert str(tmp_path / "words.yaml") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"a list", b"\xff\xfe\xff", None])
def test_a_file_without_word_lists_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "words.yaml").write_bytes(content)
    with pytest.raises(WordListError, match=r"words\.yaml"):
        read_word_lists(tmp_path / "words.yaml")


def test_a_word_may_be_in_several_lines(tmp_path):
    lists = read_word_lists(ENGLISH)
    assert [line for line, groups in lists.opposites.items() if any("short" in group for group in groups)] == [
        "height",
        "length",
    ]
    assert lists.numbers[12] == "twelve" and frozenset({"yellow", "gold"}) in lists.opposites["colour"]
