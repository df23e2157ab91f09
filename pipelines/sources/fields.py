"""Checks of the fields of an official row. A field that is missing or malformed raises Reject with its reason."""

from typing import Any, TypeVar

_SHOWN = 80  # characters of a bad value that a reject's detail quotes
T = TypeVar("T")


class Reject(Exception):
    """Raised for a row that cannot be used. reason: a short stable name; detail: the field and its value."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail.encode("utf-8", "backslashreplace").decode()  # an Arrow string must be valid UTF-8


def show(value: Any) -> str:
    """Returns `value` for a reject's detail: printable, valid UTF-8 and short."""
    try:
        text = repr(value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def field(record: Any, name: str, kind: type[T], where: str = "") -> T:
    """Returns record[name] if its type is exactly `kind` (a bool is not an int). Rejects: missing_field, wrong_type,
    and `record` itself if it is the Reject of a row that could not be parsed.

    where: the prefix of the name in a reject's detail, for an object inside the row (`conversations[3].`).
    """
    if type(record) is dict and type(value := record.get(name)) is kind:
        return value
    if isinstance(record, Reject):
        raise record
    if type(record) is not dict:
        raise Reject("wrong_type", f"{where.rstrip('.') or 'the row'} is {show(record)}, not an object")
    if name not in record:
        raise Reject("missing_field", f"{where}{name} is missing; the fields are {show(list(record))}")
    raise Reject("wrong_type", f"{where}{name} is {show(record[name])}, not {kind.__name__}")


def optional_text(record: Any, name: str) -> str | None:
    """Like `text`, but returns None if the field is absent or null."""
    if type(record) is dict and record.get(name) is None:
        return None
    return text(record, name)


def number(record: Any, name: str) -> float:
    """Returns an int or float between -1e9 and 1e9 as a float. Rejects: missing_field, wrong_type, bad_number."""
    kind = float if type(record) is dict and type(record.get(name)) is float else int
    return finite(name, field(record, name, kind))


def finite(name: str, value: Any) -> float:
    if type(value) is not int and type(value) is not float:
        raise Reject("wrong_type", f"{name} is {show(value)}, not a number")
    if not -1e9 < value < 1e9:  # also false for NaN
        raise Reject("bad_number", f"{name} is {show(value)}")
    return float(value)


def text(record: Any, name: str, empty: str = "empty_field", where: str = "") -> str:
    """Returns record[name] as a stripped, non-empty string. Rejects: missing_field, wrong_type, not_utf8, `empty`."""
    value = field(record, name, str, where)
    if value.isascii() and (stripped := value.strip()):  # fast path for nearly all values, in half the time
        return stripped
    return clean(f"{where}{name}", value, empty)


def clean(name: str, value: Any, empty: str = "empty_field") -> str:
    """Does what `text` does, for a value that is not a field of an object."""
    if type(value) is not str:
        raise Reject("wrong_type", f"{name} is {show(value)}, not str")
    stripped = utf8(name, value).strip()
    if not stripped:
        raise Reject(empty, f"{name} is {show(value)}")
    return stripped


def utf8(name: str, value: str) -> str:
    """Returns `value`. Rejects: not_utf8 for a lone surrogate (an undecodable byte or a broken escape in the file)."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Reject("not_utf8", f"{name} is {show(value)}") from None
    return value


def normalised_box(x1: float, y1: float, x2: float, y2: float, width: float, height: float) -> list[float]:
    """Converts pixel corners to [x1, y1, x2, y2] relative to width and height, clipped to the image.

    Rejects: bad_image_size, box_empty (no area), box_outside_image (no overlap with the image).
    """
    if width <= 0 or height <= 0:
        raise Reject("bad_image_size", f"width {width:g}, height {height:g}")
    if x2 <= x1 or y2 <= y1:
        raise Reject("box_empty", f"box {x1:g}, {y1:g}, {x2:g}, {y2:g} (corners)")
    left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if right <= left or bottom <= top:
        raise Reject(
            "box_outside_image", f"box {x1:g}, {y1:g}, {x2:g}, {y2:g} (corners) in an image of {width:g} by {height:g}"
        )
    return [left / width, top / height, right / width, bottom / height]


class Unique:
    """Rejects repeated ids. Holds all ids in memory."""

    def __init__(self, name: str):
        self._name = name
        self._seen: set[Any] = set()

    def check(self, value: Any) -> None:
        """Rejects: duplicate_id."""
        if value in self._seen:
            raise Reject("duplicate_id", f"{self._name} {show(value)} occurs more than once")
        self._seen.add(value)


def choices(record: Any, name: str, index: str) -> tuple[list[str], int]:
    """Returns the options (at least two, none empty) and the index of the correct one, from the two named fields.

    Rejects: missing_field, wrong_type, too_few_choices, empty_choice, not_utf8, answer_index_out_of_range.
    """
    found = options(record, name)
    answer = field(record, index, int)
    if not 0 <= answer < len(found):
        raise Reject("answer_index_out_of_range", f"{index} is {show(answer)}, but there are {len(found)} {name}")
    return found, answer


def options(record: Any, name: str) -> list[str]:
    """Returns a list of at least two texts, none empty. Rejects: those of `choices`, except the last."""
    found = [clean(f"{name}[{i}]", option, "empty_choice") for i, option in enumerate(field(record, name, list))]
    if len(found) < 2:
        raise Reject("too_few_choices", f"{name} is {show(found)}, but at least two are needed")
    return found
