"""Tests of tables as text, whose cells may contain anything."""

import pytest
from markdown_it import MarkdownIt

from pipelines.core import text_tables


def test_a_markdown_table():
    text = text_tables.markdown([{"a": "x | y\nz", "b": 12345}, {"a": 0.5, "b": ""}])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x \\| y z | 12,345 |", "| 0.5 |  |"]
    assert text_tables.markdown([]) == "None.\n"


@pytest.mark.parametrize(
    "cell",
    ["a | b", "`a` `", "<b>a</b>", "<script>x</script>", "*a* **b**", "[a](b)", "a \\| b", "\\", "&lt;b&gt;", "~~a~~"],
)
def test_a_cell_is_shown_as_the_text_that_it_is(cell):
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    html = renderer.render(text_tables.markdown([{"a": cell, "b": "next"}]))
    plain = cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{plain}</td>\n<td>next</td>" in html


def test_line_breaks_do_not_end_a_row():
    assert len(text_tables.markdown([{"a": "x\r\n\ny\u2028z\x0b"}]).splitlines()) == 3


def test_a_plain_table_is_aligned():
    assert text_tables.plain([{"a": "x", "b": 1000}, {"a": "longer", "b": 2}]) == [
        "  a       b",
        "  x       1,000",
        "  longer  2",
    ]
