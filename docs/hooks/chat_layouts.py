"""MkDocs hook: replaces `<!-- chat-layouts -->` in a page by tables of pipelines/sources/formats/chat_layouts.yaml, the
file that the readers use, so that the page cannot become outdated."""

import html
from pathlib import Path
from typing import Any

import yaml

MARKER = "<!-- chat-layouts -->"
TABLE = Path(__file__).resolve().parents[2] / "pipelines/sources/formats/chat_layouts.yaml"
ROW = {
    "conversations": "the messages, a list",
    "images": "the images: a file name or a list of them",
    "system": "a system message: the row is a reject (`system_message`), because the chat style has its own",
    "tools": "tools: the row is a reject (`tool_message`)",
    "media": "other media: the row is a reject (`other_media`)",
    "width": "the width in pixels for which the row was annotated, a number or one for each image",
    "height": "the height, likewise",
}
ROLES = {
    "user": "asks",
    "assistant": "answers; this is what is trained on",
    "system": "a reject (`system_message`), unless its text is empty",
    "tool": "a reject (`tool_message`)",
}
MESSAGE = {"role": "the role", "text": "the text: a string or a list of parts", "pair": "both texts of a turn at once"}
PARTS = {
    "text": "`type` of a text, which is in `text`",
    "image": "`type` of an image",
    "file": "field of an image part that names its file, if the row's images do not",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page before it renders the Markdown."""
    return markdown.replace(MARKER, tables()) if MARKER in markdown else markdown


def tables() -> str:
    table = yaml.safe_load(TABLE.read_text("utf-8"))
    parts = []
    for key, title, meanings in (
        ("row", "Field of a row", ROW),
        ("message", "Field of a message", MESSAGE),
        ("roles", "Name of a role", ROLES),
        ("parts", "Value or field of a part", PARTS),
    ):
        rows = [f"| {_codes(names)} | {meanings[name]} |" for name, names in table[key].items()]
        parts.append("\n".join([f"| {title} | Meaning |", "|---|---|", *rows]))
    parts.append(f"Markers of an image inside a text: {_codes(table['markers'])}.")
    return "\n\n".join(parts)


def _codes(names: list[str]) -> str:
    return ", ".join(f"<code>{html.escape(name).replace('|', '&#124;')}</code>" for name in names)
