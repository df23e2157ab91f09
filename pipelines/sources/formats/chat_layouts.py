"""The table of accepted chat layouts (chat_layouts.yaml), and what the readers look up in it."""

import re
from pathlib import Path
from typing import Any

import yaml

from pipelines.core.yaml_files import UniqueKeys
from pipelines.schema import IMAGE_TOKEN
from pipelines.sources.fields import Reject, field, show

TABLE: dict[str, Any] = yaml.load(Path(__file__).with_suffix(".yaml").read_text("utf-8"), UniqueKeys)
# The fields of a row that its reader needs apart from the conversation and its images.
CONTEXT_FIELDS = tuple(name for key in ("system", "tools", "media", "width", "height") for name in TABLE["row"][key])

_ROLES = {name: role for role, names in TABLE["roles"].items() for name in names}
_ABSENT = (None, "", "[]", "{}")

Mark = str | int | None  # an image that a text shows: by its file, by its number from 1, or the next one of the row


def _marker_pattern() -> re.Pattern[str]:
    alternatives = []
    for number, marker in enumerate(TABLE["markers"]):
        pattern = re.escape(marker).replace("PATH", rf"(?P<path{number}>[^<>\n]+)")
        alternatives.append(re.sub(r"(?<=[_ e-])N(?=>)", rf"(?P<number{number}>\\d{{1,3}})", pattern))
    return re.compile("|".join(alternatives))


_MARKER = _marker_pattern()


def normalised(text: str) -> tuple[str, list[Mark]]:
    """Replaces every marker of an image by `<image>`. Returns the text and what each marker names."""
    if "<" not in text:
        return text, []
    marks: list[Mark] = []
    for match in _MARKER.finditer(text):
        name = match.lastgroup or ""
        marks.append(None if not name else match[name].strip() if name.startswith("path") else int(match[name]))
    return _MARKER.sub(IMAGE_TOKEN, text) if marks else text, marks


def role_of(name: Any, where: str) -> str:
    """Returns user, assistant or system. Rejects: wrong_type, wrong_role, tool_message."""
    if type(name) is not str:
        raise Reject("wrong_type", f"{where} is {show(name)}, not str")
    role = _ROLES.get(name.strip().lower())
    if role is None:
        raise Reject("wrong_role", f"{where} is {show(name)}, not one of {', '.join(_ROLES)}")
    if role == "tool":
        raise Reject("tool_message", f"{where} is {show(name)}: calls of tools are not trained on")
    return role


def is_set(value: Any) -> bool:
    return not (type(value) in (list, dict, tuple) and not value) and not (
        value is None or (type(value) is str and value.strip() in _ABSENT)
    )


def one_of(record: Any, names: list[str], where: str = "") -> str | None:
    """Returns the only one of the names whose field is not null, None if there is none.

    Rejects: ambiguous_fields if two fields differ."""
    found = [name for name in names if record.get(name) is not None]
    if len(found) > 1 and any(record[name] != record[found[0]] for name in found[1:]):
        values = ", ".join(f"{where}{name} is {show(record[name])}" for name in found)
        raise Reject("ambiguous_fields", values)
    return found[0] if found else None


def check_context(record: dict[str, Any]) -> None:
    """Rejects: system_message, tool_message, other_media for a row that needs more than its conversation and images."""
    for key, reason in (("system", "system_message"), ("tools", "tool_message"), ("media", "other_media")):
        for name in TABLE["row"][key]:
            if is_set(record.get(name)):
                raise Reject(reason, f"{name} is {show(record[name])}")


def part_of(part: Any, where: str) -> str | tuple[Mark]:
    """Returns the text of a part, or the mark of an image part.

    Rejects: missing_field, wrong_type, ambiguous_fields, image_address."""
    parts = TABLE["parts"]
    if type(part) is str:
        return part
    if type(part) is not dict or part.get("type") is None:
        names = ["text", *parts["file"]]
        name = one_of(part, names, where) if type(part) is dict else None
        if name is None:
            field(part, "type", str, where)
        return field(part, "text", str, where) if name == "text" else (_file(part[name], f"{where}{name}"),)
    kind = field(part, "type", str, where)
    if kind in parts["text"]:
        return field(part, "text", str, where)
    if kind not in parts["image"]:
        raise Reject("wrong_type", f"{where}type is {show(kind)}, neither 'text' nor 'image'")
    name = one_of(part, parts["file"], where)
    return (None if name is None else _file(part[name], f"{where}{name}"),)


def check_file_name(value: str, where: str) -> None:
    """Rejects an address on the web and inline data, which are not the name of a file: image_address."""
    if re.match(r"(https?|data|s3|gs):", value, re.IGNORECASE):
        raise Reject("image_address", f"{where} is {show(value)}: fetch the image and give its file below `images`")


def _file(value: Any, where: str) -> Mark:
    if type(value) is dict:
        name = one_of(value, TABLE["parts"]["file"], f"{where}.")
        return None if name is None else _file(value[name], f"{where}.{name}")
    if type(value) is not str or not value.strip():
        raise Reject("wrong_type", f"{where} is {show(value)}, not the name of a file")
    check_file_name(value, where)
    return value.strip().removeprefix("file://")
