"""The streaming JSON reader compared with the standard library, at several window sizes, and its errors."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources import SourceError
from pipelines.sources.formats import json_stream

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "file.json"


@pytest.mark.parametrize("window", [1, 3, 1 << 20])
@settings(max_examples=40, deadline=None)
@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_same_values_as_the_standard_library(file, window, values, indent, ascii_only):
    document = {"before": values, "wanted": {"list": values, "object": {str(i): v for i, v in enumerate(values)}}}
    file.write_text(json.dumps({**document, "after": [1]}, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", window)
        assert list(json_stream.array(file, "wanted", "list")) == values
        assert dict(json_stream.members(file, "wanted", "object")) == document["wanted"]["object"]


@pytest.mark.parametrize("window", [1, 1 << 20])
def test_json_lines(tmp_path, monkeypatch, window):
    monkeypatch.setattr(json_stream, "WINDOW", window)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n  {"a": 12345}\r\n678901')
    assert list(json_stream.lines(path)) == [{"a": 1}, {"a": 12345}, 678901]


def test_byte_order_mark_and_undecodable_bytes(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b'\xef\xbb\xbf["caf\xe9", "tea"]')
    bad, good = json_stream.array(path)
    assert good == "tea"
    with pytest.raises(UnicodeEncodeError):
        bad.encode()


@pytest.mark.parametrize(
    ("content", "keys", "expected"),
    [
        ('{"rows": [1, 2', ("rows",), "line 1 column 15 (character 14); truncated"),
        ('{"rows": [{"a": "b', ("rows",), "line 1 column 17 (character 16); truncated"),
        ('{"rows": [1]', ("rows",), "truncated"),
        ('{"rows": [1]}}', ("rows",), "Extra data"),
        ('[\n {"a": 1},\n {"a": }\n]', (), "line 3 column 8 (character 20)"),
        ('[\n {"a": 1}\n {"a": 2}\n]', (), "line 3 column 2"),
        ('{"rows": [1]}', (), "Expecting '[' but found '{'"),
        ("[1]", ("rows",), "Expecting '{' but found '['"),
        ('{"rows": 3}', ("rows",), "Expecting '[' but found '3'"),
        ('{"data": []}', ("rows",), "has no 'rows'"),
        ('{"rows": [1], "rows": [2]}', ("rows",), "Duplicate key 'rows'"),
        ("", (), "truncated"),
        ("[" * 100_000, (), "truncated"),
    ],
)
def test_errors_name_file_and_position(tmp_path, content, keys, expected):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(SourceError) as error:
        list(json_stream.array(path, *keys))
    assert str(path) in str(error.value)
    assert all(part in str(error.value) for part in expected.split("; "))


@pytest.mark.parametrize("window", [3, 1 << 20])
def test_positions_include_text_dropped_from_the_window(tmp_path, monkeypatch, window):
    monkeypatch.setattr(json_stream, "WINDOW", window)
    path = tmp_path / "file.json"
    content = json.dumps([{"word": "ä" * i} for i in range(50)], indent=1, ensure_ascii=False)
    position = content.rindex('"word"')
    path.write_text(content[:position] + "?" + content[position + 1 :], encoding="utf-8")
    with pytest.raises(SourceError, match=rf"line 150 column 3 \(character {position}\)"):
        list(json_stream.array(path))


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "file.json"
    row = json.dumps({"question": "What is to the left of the table?", "answers": ["a chair"] * 10})
    path.write_text('{"skipped": [' + ",".join([row] * 25_000) + '], "rows": [' + ",".join([row] * 25_000) + "]}")
    assert path.stat().st_size > 8 << 20
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_stream.array(path, "rows")) == 25_000
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_string_is_read_past_with_a_bounded_window(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 1 << 20)
    path = tmp_path / "file.json"
    path.write_text('["open, ' + "x" * (8 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"Unterminated string: the file ends here"):
            list(json_stream.array(path))
        path.write_text('[1, {"a": "' + 'x\\"\\\\' * (2 << 20) + '"}, 2]')
        tracemalloc.reset_peak()
        first, reject, last = json_stream.array(path)
        assert (first, reject.reason, last) == (1, "row_too_large", 2)
        assert tracemalloc.get_traced_memory()[1] < 9 << 20
    finally:
        tracemalloc.stop()


BAD_ELEMENTS = {
    "[" * 100_000 + "]" * 100_000: "nested_too_deep",
    '{"a": {"b": 1, "b": "}]\\""}, "c": [2]}': "duplicate_key",
    '{"a": -' + "9" * 5000 + "}": "number_too_long",
    "9" * 5000: "number_too_long",
}


@pytest.mark.parametrize("window", [7, 1 << 20])
@pytest.mark.parametrize("compressed", [False, True])
def test_an_element_that_cannot_be_used_is_one_reject(tmp_path, monkeypatch, window, compressed):
    monkeypatch.setattr(json_stream, "WINDOW", window)
    elements = [part for bad in BAD_ELEMENTS for part in ('{"n": 1}', bad)]
    contents = {
        "a.json": f"[{', '.join(elements)}, 3]",
        "b.jsonl": "\n".join([*elements, "3"]),
        "c.json": '{"rows": {' + ", ".join(f'"{i}": {each}' for i, each in enumerate([*elements, "3"])) + "}}",
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()) if compressed else content.encode())
        found = json_stream.members(path, "rows") if name == "c.json" else json_stream.records(path)
        values = [each[1] if name == "c.json" else each for each in found]
        assert values[::2] == [{"n": 1}] * len(BAD_ELEMENTS) + [3]
        assert [each.reason for each in values[1::2]] == list(BAD_ELEMENTS.values())
        assert "line 2 column 1 (" in values[1].detail if name == "b.jsonl" else "line 1" in values[1].detail


def test_compressed_files(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(gzip.compress(b"[1, 2, 3]")[:-9])
    with pytest.raises(SourceError, match="gzip data is damaged or truncated"):
        list(json_stream.array(path))
    path.write_bytes(b"(\xb5/\xfd rest")
    with pytest.raises(SourceError, match=r"rows\.json is compressed with zstd: unpack it first \(unzstd\)"):
        list(json_stream.array(path))
