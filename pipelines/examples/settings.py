"""Everything that turns a dataset's annotations into examples, as one value that travels from the recipe to the
workers.

Templates and the chat template travel as content, so workers open no file that somebody may edit during a build. The
directories in here are store entries, which never change.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.core.store import read_manifest
from pipelines.decontamination.match import Decontamination
from pipelines.dedup.decide import VERSION as DEDUP_VERSION
from pipelines.dedup.settings import Dedup
from pipelines.examples.image_slots import MAX_IMAGES
from pipelines.templates.sets import Template
from pipelines.tokens.chat_style import ChatTemplate


@dataclass(frozen=True)
class ExampleSettings:
    dataset: str
    task: str
    templates: tuple[Template, ...]
    chat: ChatTemplate
    tokenizer: Path  # a directory of `prepare_tokenizer`
    max_text_tokens: int
    max_turns: int = 1
    max_images: int = MAX_IMAGES
    seed: int = 0
    dedup: Dedup = Dedup()
    decontamination: Decontamination | None = None

    @property
    def compares(self) -> bool:
        """Whether any turns of the dataset are compared for duplicates."""
        return self.dedup.compares(self.task, self.max_turns)

    @property
    def compares_vectors(self) -> bool:
        return self.dedup.compares_vectors(self.task, self.max_turns)

    def key(self, embeddings: Path | None) -> dict[str, Any]:
        """Returns what the examples depend on, as JSON values: of the settings that the task does not use, nothing.
        embeddings: a directory of `build_embeddings`, or None."""
        embedder = read_manifest(embeddings)["key"]["embedder"] if embeddings and self.compares_vectors else None
        dedup = {**self.dedup.model_dump(), "version": DEDUP_VERSION, "embedder": embedder}
        return {
            "dataset": self.dataset,
            "templates": [asdict(template) for template in self.templates],
            "chat": self.chat.text,
            "tokenizer": read_manifest(self.tokenizer)["fingerprint"],
            "max_text_tokens": self.max_text_tokens,
            "max_turns": self.max_turns,
            "max_images": self.max_images if self.task == "conversation" else None,  # the other tasks show one
            "seed": self.seed,
            "dedup": dedup if self.compares else None,
            "decontamination": self.decontamination.key() if self.decontamination else None,
        }
