"""The base class of every section of a recipe, and the field types that the sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0, le=10**12)]


class Part(BaseModel):
    """One section of a recipe: unknown keys are errors, values are immutable, and the docstring under a field is its
    description in the recipe reference (docs/recipe-reference.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
