"""The recipe options of a generic source: which files to read, and which column holds which field."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _Columns(_Part):
    """The columns of one task. `image` holds an image (bytes, a Hugging Face `Image`, or a file name below the images
    directory), or a list of them."""

    holds: ClassVar[tuple[str, ...]]  # the fields that name a column, except the image

    @property
    def named(self) -> dict[str, str]:
        """Field → column, for the fields that are set."""
        return {field: getattr(self, field) for field in self.holds if getattr(self, field) is not None}


class CaptionColumns(_Columns):
    holds = ("caption",)
    task: Literal["caption"]
    """Task of the dataset."""

    image: Name
    """Column of the image."""

    caption: Name
    """Column of the caption."""


class OpenQuestionColumns(_Columns):
    holds = ("question", "answer")
    task: Literal["open_question"]
    """Task of the dataset."""

    image: Name | None = None
    """Column of the image; if unset, the questions have none."""

    text_only: bool = False
    """Whether a row whose image is null is a question without an image; otherwise it is a reject."""

    question: Name
    """Column of the question."""

    answer: Name
    """Column of the answer: a text, or a number that stands for one of `answer_names`."""

    answer_names: tuple[Name, ...] | None = None
    """Texts of numbered answers, for files that do not contain them."""


class MultipleChoiceColumns(_Columns):
    holds = ("question", "choices", "answer", "context")
    task: Literal["multiple_choice"]
    """Task of the dataset."""

    image: Name | None = None
    """Column of the image; if unset, the questions have none."""

    text_only: bool = False
    """Whether a row whose image is null is a question without an image; otherwise it is a reject."""

    question: Name
    """Column of the question."""

    choices: Name
    """Column of the choices, a list of texts."""

    answer: Name
    """Column of the correct choice: its index from 0, its letter or its text."""

    context: Name | None = None
    """Column of a hint or passage that belongs to the question."""


class ReferringColumns(_Columns):
    holds = ("phrase", "box", "width", "height")
    task: Literal["referring"]
    """Task of the dataset."""

    image: Name
    """Column of the image."""

    phrase: Name
    """Column of the phrase that refers to the object."""

    box: Name
    """Column of the box, a list of four numbers."""

    box_format: Literal["xyxy", "xywh"]
    """Meaning of the four numbers: two corners, or the upper left corner with width and height."""

    box_unit: Literal["pixels", "normalised"]
    """Unit of the numbers: pixels, or fractions of the image's width and height."""

    width: Name | None = None
    """Column of the image's width in pixels; required for boxes in pixels."""

    height: Name | None = None
    """Column of the image's height in pixels; required for boxes in pixels."""

    @model_validator(mode="after")
    def _size(self) -> "ReferringColumns":
        given = [name is not None for name in (self.width, self.height)]
        if given != [self.box_unit == "pixels"] * 2:
            raise ValueError(
                "boxes in pixels need the columns `width` and `height` of the image; normalised boxes must omit them"
            )
        return self


class ConversationColumns(_Columns):
    holds = ("conversations",)
    task: Literal["conversation"]
    """Task of the dataset."""

    image: Name | None = None
    """Column of the image or list of images; a row whose image is null is text only."""

    conversations: Name
    """Column of the messages, a list."""


Columns = Annotated[
    CaptionColumns | OpenQuestionColumns | MultipleChoiceColumns | ReferringColumns | ConversationColumns,
    Field(discriminator="task"),
]


class SourceOptions(_Part):
    columns: Columns | None = None
    """Columns that hold the fields of the task."""

    files: Name | None = None
    """Glob pattern of the files below the annotations directory."""

    @field_validator("files")
    @classmethod
    def _below(cls, files: str | None) -> str | None:
        if files and (files.startswith("/") or ".." in files.split("/")):
            raise ValueError("`files` must be a glob pattern below `annotations`, not absolute and without '..'")
        return files

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


DEFAULT_OPTIONS = SourceOptions()
