"""What a recipe says to a generic source: which files, and which columns hold what."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CaptionColumns(_Part):
    task: Literal["caption"]
    image: Name
    caption: Name


class OpenQuestionColumns(_Part):
    task: Literal["open_question"]
    image: Name | None = None
    question: Name
    answer: Name
    answer_names: tuple[Name, ...] | None = None  # the texts of numbered answers, for files that do not name them


class MultipleChoiceColumns(_Part):
    task: Literal["multiple_choice"]
    image: Name | None = None
    question: Name
    choices: Name  # a list of texts
    answer: Name  # the number (from 0), the letter or the text of the right choice
    context: Name | None = None


class ReferringColumns(_Part):
    task: Literal["referring"]
    image: Name
    phrase: Name
    box: Name  # a list of four numbers
    box_format: Literal["xyxy", "xywh"]
    box_unit: Literal["pixels", "normalised"]
    width: Name | None = None  # of the image, where boxes are in pixels
    height: Name | None = None

    @model_validator(mode="after")
    def _size(self) -> "ReferringColumns":
        given = [name is not None for name in (self.width, self.height)]
        if given != [self.box_unit == "pixels"] * 2:
            raise ValueError(
                "boxes in pixels need the columns `width` and `height` of the image, others must not have them"
            )
        return self


class ConversationColumns(_Part):
    task: Literal["conversation"]
    image: Name | None = None  # one picture, or a list of them
    conversations: Name  # a list of messages


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
            raise ValueError("`files` must be a pattern below `annotations`: neither absolute nor with '..'")
        return files

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


NO_OPTIONS = SourceOptions()
