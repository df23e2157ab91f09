"""Converts a record of column values into a row of each task, for the source `datasets`."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pipelines.schema import LETTERS
from pipelines.sources.base import Skips
from pipelines.sources.fields import Reject, clean, finite, normalised_box, options, show
from pipelines.sources.formats.conversations import place_images, sizes, talk
from pipelines.sources.options import (
    CaptionColumns,
    Columns,
    ConversationColumns,
    MultipleChoiceColumns,
    OpenQuestionColumns,
    ReferringColumns,
)


class Record(NamedTuple):
    values: dict[str, Any]  # column → value
    images: list[Any] | None  # image references; None if the value is null
    label_names: list[str] | None  # the texts of the integers in the answer column
    context: dict[str, Any]  # fields of chat_layouts.CONTEXT_FIELDS that the file has, for a conversation

    def value(self, column: str) -> Any:
        """Returns the value of a column. Rejects: null_value."""
        if self.values[column] is None:
            raise Reject("null_value", f"{column} is null")
        return self.values[column]

    def text(self, column: str, empty: str) -> str:
        return clean(column, self.value(column), empty)

    def image(self, column: str | None, may_be_null: bool = False) -> str | None:
        """Returns the row's only image, None if it has none. Rejects: null_value, several_images, those of `clean`."""
        if column is None or (self.images is None and may_be_null):
            return None
        if not self.images:
            raise Reject("null_value", f"{column} is {'null' if self.images is None else 'an empty list'}")
        if len(self.images) > 1:
            raise Reject("several_images", f"{column} has {len(self.images)} images, but the task takes one")
        return _name(column, self.images[0])


def row_of(columns: Columns, skips: Skips) -> Callable[[Record], tuple[Any, ...]]:
    """Returns the `parse` function for `batches`."""
    if isinstance(columns, ConversationColumns):
        return lambda record: _conversation(record, columns, skips)
    make: Any = _ROWS[type(columns)]
    return lambda record: make(record, columns)


def _caption(record: Record, columns: CaptionColumns) -> tuple[Any, ...]:
    return record.image(columns.image), record.text(columns.caption, "empty_caption")


def _open_question(record: Record, columns: OpenQuestionColumns) -> tuple[Any, ...]:
    question = record.text(columns.question, "empty_question")
    names = columns.answer_names or record.label_names
    answer = _answer(columns.answer, record.value(columns.answer), names)
    return record.image(columns.image, columns.text_only), question, answer


def _answer(column: str, value: Any, names: Any) -> str:
    """Returns an answer as text. Rejects: ambiguous_answer for a float or bool, which can be worded in several ways."""
    if names is not None and type(value) in (int, bool):
        return _label(column, value, names)
    if type(value) is int:
        return str(value)
    if type(value) in (float, bool):
        raise Reject("ambiguous_answer", f"{column} is {value}: convert it to text, or set `answer_names`")
    return clean(column, value, "empty_answer")


def _label(column: str, value: int, names: Any) -> str:
    if not 0 <= value < len(names):
        raise Reject("label_out_of_range", f"{column} is {value}, but there are {len(names)} names")
    return clean(f"the name of {column} {value}", names[value], "empty_answer")


def _multiple_choice(record: Record, columns: MultipleChoiceColumns) -> tuple[Any, ...]:
    record.value(columns.choices)
    choices = options(record.values, columns.choices)
    right = _correct_choice(columns.answer, record.value(columns.answer), choices, record.label_names)
    context = None
    if columns.context is not None and record.values[columns.context] is not None:
        value = record.values[columns.context]
        context = None if value == "" else clean(columns.context, value)
    image = record.image(columns.image, columns.text_only)
    return image, record.text(columns.question, "empty_question"), choices, right, context


def _correct_choice(column: str, answer: Any, choices: list[str], names: list[str] | None) -> int:
    """Returns the index of the correct choice. Rejects: answer_index_out_of_range, answer_not_among_choices,
    ambiguous_answer."""
    if type(answer) is int and names is not None:
        answer = _label(column, answer, names)
    if type(answer) is int:
        if not 0 <= answer < len(choices):
            raise Reject("answer_index_out_of_range", f"{column} is {answer}, but there are {len(choices)} choices")
        return answer
    text = clean(column, answer, "empty_answer")
    found = {i for i, choice in enumerate(choices) if choice == text}
    if len(text) == 1 and text in LETTERS[: len(choices)]:
        found.add(LETTERS.index(text))
    if not found:
        raise Reject("answer_not_among_choices", f"{column} is {show(text)}: neither a choice nor a choice's letter")
    if len(found) > 1:
        raise Reject("ambiguous_answer", f"{column} is {show(text)}, which matches the choices {sorted(found)}")
    return found.pop()


def _referring(record: Record, columns: ReferringColumns) -> tuple[Any, ...]:
    numbers = record.value(columns.box)
    if type(numbers) is not list or len(numbers) != 4:
        raise Reject("wrong_type", f"{columns.box} is {show(numbers)}, not four numbers")
    x, y, right, bottom = (finite(columns.box, number) for number in numbers)
    if columns.box_format == "xywh":
        right, bottom = x + right, y + bottom
    size = None
    if columns.width is not None and columns.height is not None:
        size = [finite(name, record.value(name)) for name in (columns.width, columns.height)]
    elif not all(-1 <= number <= 2 for number in (x, y, right, bottom)):
        raise Reject("box_outside_image", f"{columns.box} is {show(numbers)}: are these pixels, not fractions?")
    box = normalised_box(x, y, right, bottom, *(size or (1.0, 1.0)))
    return record.image(columns.image), record.text(columns.phrase, "empty_phrase"), box, size


def _conversation(record: Record, columns: ConversationColumns, skips: Skips) -> tuple[Any, ...]:
    row = {**record.context, columns.conversations: record.value(columns.conversations)}
    images = [_name(columns.image or "image", image) for image in record.images or ()]
    return place_images(sizes(row, images), talk(row, columns.conversations, skips))


def _name(column: str, image: Any) -> str:
    if isinstance(image, Reject):
        raise image
    if image is None:
        raise Reject("null_value", f"an image in {column} is null")
    return clean(column, image)


_ROWS = {
    CaptionColumns: _caption,
    OpenQuestionColumns: _open_question,
    MultipleChoiceColumns: _multiple_choice,
    ReferringColumns: _referring,
}
