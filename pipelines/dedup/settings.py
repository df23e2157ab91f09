"""The settings of de-duplication, carried as one value from the recipe to the workers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# One per comparison, from benchmarks/dedup/dedup_quality.py. The first two drop less than 5 % of the hard distinct
# pairs; comparing only the answers drops 30 % at any threshold, because distinct facts often have equal answers.
DEFAULT_THRESHOLD = {"pair": 0.75, "question": 0.85, "answer": 0.9}


class Dedup(BaseModel):
    """Semantic de-duplication within one multi-turn example (paper section 4, Table 5d)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rule: Literal["semantic", "answer", "semantic+answer", "off"] = "semantic"
    """What drops a turn: its similarity to a kept turn (`semantic`), an answer equal to that of a kept turn (`answer`,
    the rule of the authors' code), either of them (`semantic+answer`), or nothing (`off`)."""

    compare: Literal["pair", "question", "answer"] = "pair"
    """What similarity compares: question and answer together, only the questions, or only the answers."""

    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Similarity from which a turn is a duplicate; if unset, 0.75 for `pair`, 0.85 for `question`, 0.9 for `answer`."""

    @property
    def limit(self) -> float:
        """The threshold that applies."""
        return DEFAULT_THRESHOLD[self.compare] if self.threshold is None else self.threshold

    @property
    def needs_vectors(self) -> bool:
        return "semantic" in self.rule

    def compares(self, task: str, max_turns: int) -> bool:
        """Returns whether any turns of a dataset are compared: a conversation is kept as its dataset states it, and an
        example of one turn has nothing to compare."""
        return self.rule != "off" and task != "conversation" and max_turns > 1

    def compares_vectors(self, task: str, max_turns: int) -> bool:
        """Returns whether the comparison looks up embeddings."""
        return self.needs_vectors and self.compares(task, max_turns)

    def without_vectors(self) -> "Dedup":
        """Returns the part of these settings that works without embeddings."""
        return self.model_copy(update={"rule": "answer" if "answer" in self.rule else "off"})
