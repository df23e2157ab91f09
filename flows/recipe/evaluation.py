"""The sections of a recipe about benchmarks: what a model is asked, and what its training data must not contain."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from flows.recipe.part import Part, PositiveInt
from model.evaluation.judging.endpoint_judge import JudgeSettings


class Benchmark(Part):
    """Where the official files of a benchmark are."""

    path: Path
    """Official file or directory of the benchmark, relative to `paths.data`."""

    images: Path | None = None
    """Root directory of the benchmark's images, relative to `paths.data`; if unset, the directory of its files."""


class Judge(JudgeSettings):
    """The model that judges free-form answers (model/evaluation/judging/endpoint_judge.py)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    secret: str | None = None
    """Name of a Prefect secret block that holds the key; if unset, the key is read from the variable `key_variable`."""


class Evaluation(Part):
    """Which benchmarks are run, and how."""

    benchmarks: dict[str, Benchmark] = {}
    """Benchmarks to run, by name: pope, mme, mmbench, seed_bench, scienceqa, mmmu, mm_vet, llava_bench or owleval."""

    batch_size: PositiveInt = 64
    """Questions in a batch of one rank; it changes no answer in fp32."""

    shuffled_control: bool = False
    """Whether to ask every question again with the images shuffled among the questions, as a control."""

    choose_by: Literal["generation", "likelihood"] = "generation"
    """How a question with options is answered: from the generated text, or as the most likely option (or Yes or No)."""

    judge: Judge | None = None
    """Judge for free-form answers; without one, scores that need a judge are omitted."""


class ListedBenchmark(Part):
    """What training data must not contain: a benchmark in its official files (`path`, and `images` if they are
    elsewhere), or plain files: `images`, a directory, and `questions`, a file."""

    reader: str | None = None
    """Benchmark whose reader parses the official files; if unset, the one of the same name."""

    path: Path | None = None
    """Official file or directory, relative to `paths.data`."""

    images: Path | None = None
    """Directory of images, relative to `paths.data`: the root of the official files' images, or images to compare."""

    questions: Path | None = None
    """File with one question per line, as text or, in `.jsonl`, as objects with `question` or `text`."""

    @model_validator(mode="after")
    def _one_kind(self) -> "ListedBenchmark":
        if self.path is None and self.images is None and self.questions is None:
            raise ValueError("give `path` for official files, or `images` or `questions` for plain ones")
        if self.path is not None and self.questions is not None:
            raise ValueError("`path` and `questions` do not go together: official files contain their questions")
        if self.path is None and self.reader is not None:
            raise ValueError("`reader` reads the official files: give their `path`")
        return self


class Decontamination(Part):
    """Drops or lists training rows that overlap with a benchmark (pipelines/decontamination/match.py)."""

    benchmarks: dict[str, ListedBenchmark] = {}
    """Benchmarks to compare with, by any name."""

    evaluation: bool = False
    """Whether to compare with the benchmarks of `evaluation` as well."""

    images: Literal["exact", "perceptual", "skip"] = "perceptual"
    """How images are compared: by their bytes, by bytes and perceptual hash, or not at all."""

    distance: Annotated[int, Field(ge=0, le=16)] = 8
    """Bits of the 64-bit perceptual hash in which two images may differ and still match."""

    questions: Annotated[int, Field(ge=0)] = 13
    """Number of consecutive words that two questions must share to match; 0 compares no questions."""

    action: Literal["drop", "report"] = "drop"
    """Whether overlapping rows are dropped or only listed."""

    @model_validator(mode="after")
    def _finds_something(self) -> "Decontamination":
        if not self.benchmarks and not self.evaluation:
            raise ValueError("nothing to compare with: list `benchmarks`, or set `evaluation: true`")
        if 0 < self.questions < 4:
            raise ValueError("questions: fewer than four words would match every question; 0 compares none")
        for name, benchmark in self.benchmarks.items():
            asks = benchmark.path is not None or benchmark.questions is not None
            shows = benchmark.path is not None or benchmark.images is not None
            if not (shows and self.images != "skip") and not (asks and self.questions):
                raise ValueError(f"nothing of {name} is compared: change `images` or `questions`, or do not list it")
        return self
