"""Reads the benchmarks that a recipe keeps out of its training data, by the readers of model/evaluation or as plain
files, for pipelines/decontamination/match.py."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flows.recipe.evaluation import ListedBenchmark
from flows.recipe.recipe import Recipe, RecipeError
from flows.runs.workspace import Log, Workspace
from model.evaluation import benchmarks
from model.evaluation.files.jsonl import read_rows
from model.evaluation.interface import Question, QuestionImage
from pipelines.core.errors import ImageRefError
from pipelines.core.walk import WalkError, walk
from pipelines.decontamination.match import Decontamination
from pipelines.images.references import ImageRoot
from pipelines.images.table import identities
from pipelines.jobs.benchmark_items import BenchmarkImage, BenchmarkItems, build_benchmark_items

# Suffixes of image files. Formats that cannot be decoded here (.tif and those after it) are errors rather than ignored.
IMAGES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
)
_NAMED = 5  # files named in a message


def listed_benchmarks(recipe: Recipe) -> dict[str, ListedBenchmark]:
    """Returns the benchmarks of the recipe's `decontamination`, including those of `evaluation` if it asks for them."""
    part = recipe.decontamination
    if part is None:
        return {}
    asked = recipe.evaluation.benchmarks if part.evaluation else {}
    return dict(part.benchmarks) | {n: ListedBenchmark(path=b.path, images=b.images) for n, b in asked.items()}


def decontamination(workspace: Workspace, log: Log = print) -> Decontamination | None:
    """Builds the benchmark items that the recipe's examples are compared with; returns None without `decontamination`.
    Raises RecipeError, EvaluationError or BenchmarkItemsError if a benchmark cannot be read completely."""
    part = workspace.recipe.decontamination
    if part is None:
        return None
    built = []
    for name in sorted(listed_benchmarks(workspace.recipe)):
        items = read_items(workspace, name)
        if items.ignored_files:
            log(f"benchmark {name}: ignored {len(items.ignored_files)} files without an image suffix: "
                f"{', '.join(items.ignored_files[:_NAMED])}")  # fmt: skip
        built.append((name, str(build_benchmark_items(workspace.store, items, log))))
    return Decontamination(tuple(built), part.images, part.distance, part.questions, part.action)


def read_items(workspace: Workspace, name: str) -> BenchmarkItems:
    """Returns the images and questions of a listed benchmark; image bytes are read only on demand."""
    part, listed = workspace.recipe.decontamination, listed_benchmarks(workspace.recipe)[name]
    assert part is not None
    shown: list[BenchmarkImage] = []
    asked: list[tuple[str, str]] = []
    others: list[str] = []
    if listed.path is not None:
        path, images = workspace.official(listed.path, listed.images)
        for official in (path, images):
            if not official.exists():
                raise RecipeError(f"{official} does not exist")
        questions = benchmarks.get(listed.reader or name).read(path, images)
        asked = list(_texts(questions))
        if part.images != "skip":
            shown = _official_images(images, questions)
    else:
        if listed.images is not None and part.images != "skip":
            shown, others = _images_below(workspace.data / listed.images)
        if listed.questions is not None:
            asked = _plain_questions(workspace.data / listed.questions)
    return BenchmarkItems(name, shown, asked if part.questions else [], others)


def _texts(questions: list[Question]) -> Iterator[tuple[str, str]]:
    """Yields (id, text) once per text and images: MMBench repeats a question for every rotation of its options."""
    seen: set[tuple[str, ...]] = set()
    for question in questions:
        if "question" not in question.fields:
            raise RecipeError(f"question {question.id} has no field `question`, only {', '.join(question.fields)}")
        text = question.fields["question"]
        asked = (text, *(image.name for image in question.images))
        if asked not in seen:
            seen.add(asked)
            yield question.id, text


def _official_images(root: Path, questions: list[Question]) -> list[BenchmarkImage]:
    """Returns the images of the questions: files below the root, or embedded in the official files."""
    images = {image.name: image for question in questions for image in question.images}
    known = identities(root, images) if root.is_dir() else [None] * len(images)
    missing: list[str] = []
    found: list[BenchmarkImage] = []
    for image, identity in zip(images.values(), known, strict=True):
        try:
            found.append(BenchmarkImage(image.name, identity or _digest(image), image.read))
        except ImageRefError as error:
            missing.append(f"{image.name}: {error}")
    _check_complete(root, len(images), missing)
    return found


def _digest(image: QuestionImage) -> str:
    return f"sha256:{hashlib.sha256(image.read()).hexdigest()}"


def _images_below(root: Path) -> tuple[list[BenchmarkImage], list[str]]:
    """Returns every file below the root with an image suffix, and the names of all other files."""
    if not root.is_dir():
        raise RecipeError(f"{root} is not a directory")
    try:
        listing = walk(root, "**/*")
    except WalkError as error:
        raise RecipeError(str(error)) from None
    below = [path.relative_to(root).as_posix() for path in listing.files]
    names = sorted(each for each in below if each.lower().endswith(IMAGES))
    if not names:
        raise RecipeError(f"{root} contains no images")
    reader = ImageRoot(root)
    found, missing = [], []
    for name, identity in zip(names, identities(root, names), strict=True):
        if identity is None:
            missing.append(name)
        else:
            found.append(BenchmarkImage(name, identity, partial(reader.read, name)))
    _check_complete(root, len(names), missing)
    return found, sorted({*below, *listing.hidden, *listing.repeated} - set(names))


def _check_complete(root: Path, total: int, missing: list[str]) -> None:
    if missing:
        raise RecipeError(
            f"{len(missing)} of {total} images below {root} cannot be read, so the training data cannot be compared "
            f"with them: {'; '.join(missing[:_NAMED])}"
        )


def _plain_questions(path: Path) -> list[tuple[str, str]]:
    """Returns (`file:line`, text) for every line that is not blank."""
    if not path.is_file():
        raise RecipeError(f"{path} is not a file")
    asked: list[tuple[str, str]] = []
    if path.suffix == ".jsonl":
        for where, row in read_rows(path, {}):
            text = row.get("question", row.get("text"))
            if not isinstance(text, str) or not text.strip():
                raise RecipeError(f"{where}: has no string field `question` or `text`, only {', '.join(row)}")
            asked.append((f"{path.name}:{where.rpartition(':')[2]}", text))
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path} is not UTF-8 text: {error}") from None
        asked = [(f"{path.name}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not asked:
        raise RecipeError(f"{path} contains no questions")
    return asked
