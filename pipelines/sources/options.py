"""The recipe options of a generic source: which files to read, and which column holds which field."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    image: Name
    caption: Name


class OpenQuestionColumns(_Columns):
    holds = ("question", "answer")
    task: Literal["open_question"]
    image: Name | None = None
    text_only: bool = False  # accept rows whose image is null, as text only; otherwise they are rejects
    question: Name
    answer: Name
    answer_names: tuple[Name, ...] | None = None  # texts of integer answers, for files that do not name them


class MultipleChoiceColumns(_Columns):
    holds = ("question", "choices", "answer", "context")
    task: Literal["multiple_choice"]
    image: Name | None = None
    text_only: bool = False
    question: Name
    choices: Name  # a list of texts
    answer: Name  # the index (from 0), the letter or the text of the correct choice
    context: Name | None = None


class ReferringColumns(_Columns):
    holds = ("phrase", "box", "width", "height")
    task: Literal["referring"]
    image: Name
    phrase: Name
    box: Name  # a list of four numbers
    box_format: Literal["xyxy", "xywh"]
    box_unit: Literal["pixels", "normalised"]
    width: Name | None = None  # of the image; required if boxes are in pixels
    height: Name | None = None

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
    image: Name | None = None  # null: text only
    conversations: Name  # a list of messages (see conversations.py)


Columns = Annotated[
    CaptionColumns | OpenQuestionColumns | MultipleChoiceColumns | ReferringColumns | ConversationColumns,
    Field(discriminator="task"),
]


class SourceOptions(_Part):
    columns: Columns | None = None
    files: Name | None = None  # a glob below the annotations directory

    @field_validator("files")
    @classmethod
    def _below(cls, files: str | None) -> str | None:
        if files and (files.startswith("/") or ".." in files.split("/")):
            raise ValueError("`files` must be a glob pattern below `annotations`, not absolute and without '..'")
        return files

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


NO_OPTIONS = SourceOptions()
