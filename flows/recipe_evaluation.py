"""The parts of a recipe about benchmarks: what is asked, and what training data must not hold."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.recipe_part import Part, PositiveInt
from model.evaluation.judge import JudgeSettings


class Benchmark(Part):
    """`path`: the official file or directory, `images`: the root of its images, both relative to paths.data."""

    path: Path
    images: Path | None = None


class Judge(JudgeSettings):
    """Who judges free answers (model/evaluation/judge.py). secret: the name of a Prefect secret block with its key;
    else the key is in the environment, under the name `key_variable`."""

    secret: str | None = None


class Evaluation(Part):
    benchmarks: dict[str, Benchmark] = {}
    batch_size: PositiveInt = 64
    shuffled_control: bool = False  # ask again with the images shuffled among the questions
    choose_by: Literal["generation", "likelihood"] = "generation"  # answers with options, or yes and no
    judge: Judge | None = None  # none: scores that need one are left out


class ListedBenchmark(Part):
    """What training data must not hold: a benchmark in its official files (`path`, with `images` the root of its
    pictures), or plain ones: `images`, a directory of pictures; `questions`, a file with one a line, as text or, in
    .jsonl, as objects with `question` or `text`. All relative to paths.data."""

    reader: str | None = None  # of official files: a name in model/evaluation; the benchmark's own name where absent
    path: Path | None = None
    images: Path | None = None
    questions: Path | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "ListedBenchmark":
        if self.path is None and self.images is None and self.questions is None:
            raise ValueError("give `path` for official files, or `images` or `questions` for plain ones")
        if self.path is not None and self.questions is not None:
            raise ValueError("`path` and `questions` do not go together: official files hold their questions")
        if self.path is None and self.reader is not None:
            raise ValueError("`reader` reads the official files: give their `path`")
        return self


class Decontamination(Part):
    """Examples that stand in a benchmark are left out, or only listed (pipelines/decontaminate.py)."""

    benchmarks: dict[str, ListedBenchmark] = {}
    evaluation: bool = False  # those of `evaluation` too
    images: Literal["exact", "perceptual", "skip"] = "perceptual"
    distance: Annotated[int, Field(ge=0, le=16)] = 8  # bits of 64; chosen by benchmarks/decontamination.py
    questions: Annotated[int, Field(ge=0)] = 13  # words in a row that two questions must share; 0: not compared
    action: Literal["drop", "report"] = "drop"

    @model_validator(mode="after")
    def _finds_something(self) -> "Decontamination":
        if not self.benchmarks and not self.evaluation:
            raise ValueError("list `benchmarks`, or say `evaluation: true`")
        if 0 < self.questions < 4:
            raise ValueError("questions: fewer than four words stand in every question; 0 compares none")
        for name, benchmark in self.benchmarks.items():
            asks = benchmark.path is not None or benchmark.questions is not None
            shows = benchmark.path is not None or benchmark.images is not None
            if not (shows and self.images != "skip") and not (asks and self.questions):
                raise ValueError(f"nothing of {name} is looked for: change `images` or `questions`, or do not list it")
        return self
