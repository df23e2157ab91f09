"""The benchmarks that a recipe keeps out of its training data: read by the readers of model/evaluation or as plain
files, and handed to pipelines/decontaminate.py."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flows.recipe import Recipe, RecipeError
from flows.recipe_evaluation import ListedBenchmark
from flows.workspace import Log, Workspace
from model import evaluation
from model.evaluation.base import Question, QuestionImage
from model.evaluation.jsonl import read_rows
from pipelines.benchmark_items import BenchmarkItems, BenchmarkPicture, build_benchmark_items
from pipelines.decontaminate import Decontamination
from pipelines.images import ImageRefError, ImageRoot, identities

# Names of pictures; those that cannot be read here (from .tif on) are errors, not passed over.
PICTURES = (
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
_NAMED = 5  # so many files stand in a message


def listed_benchmarks(recipe: Recipe) -> dict[str, ListedBenchmark]:
    """All that the recipe's `decontamination` names, those of `evaluation` among them."""
    part = recipe.decontamination
    if part is None:
        return {}
    asked = recipe.evaluation.benchmarks if part.evaluation else {}
    return dict(part.benchmarks) | {n: ListedBenchmark(path=b.path, images=b.images) for n, b in asked.items()}


def decontamination(workspace: Workspace, log: Log = print) -> Decontamination | None:
    """What the examples of the recipe's datasets are compared with, built in the store; None if nothing is listed.
    Raises RecipeError, EvaluationError or BenchmarkItemsError for a benchmark that cannot be read whole."""
    part = workspace.recipe.decontamination
    if part is None:
        return None
    built = []
    for name in sorted(listed_benchmarks(workspace.recipe)):
        items = read_items(workspace, name)
        if items.passed_over:
            log(f"benchmark {name}: {len(items.passed_over)} files are no pictures by their names, so they are not "
                f"looked for: {', '.join(items.passed_over[:_NAMED])}")  # fmt: skip
        built.append((name, str(build_benchmark_items(workspace.store, items, log))))
    return Decontamination(tuple(built), part.images, part.distance, part.questions, part.action)


def read_items(workspace: Workspace, name: str) -> BenchmarkItems:
    """The pictures and questions of a listed benchmark; of pictures, only where they lie."""
    part, listed = workspace.recipe.decontamination, listed_benchmarks(workspace.recipe)[name]
    assert part is not None
    pictures: list[BenchmarkPicture] = []
    asked: list[tuple[str, str]] = []
    others: list[str] = []
    if listed.path is not None:
        path, images = workspace.official(listed.path, listed.images)
        for place in (path, images):
            if not place.exists():
                raise RecipeError(f"there is no {place}")
        questions = evaluation.get(listed.reader or name).read(path, images)
        asked = list(_texts(questions))
        if part.images != "skip":
            pictures = _official_pictures(images, questions)
    else:
        if listed.images is not None and part.images != "skip":
            pictures, others = _pictures_below(workspace.data / listed.images)
        if listed.questions is not None:
            asked = _plain_questions(workspace.data / listed.questions)
    return BenchmarkItems(name, pictures, asked if part.questions else [], others)


def _texts(questions: list[Question]) -> Iterator[tuple[str, str]]:
    """(id, text), once for each picture: MMBench asks a question again for every order of its options."""
    seen: set[tuple[str, ...]] = set()
    for question in questions:
        if "question" not in question.fields:
            raise RecipeError(f"question {question.id} has no text `question`; it has {', '.join(question.fields)}")
        text = question.fields["question"]
        asked = (text, *(image.name for image in question.images))
        if asked not in seen:
            seen.add(asked)
            yield question.id, text


def _official_pictures(root: Path, questions: list[Question]) -> list[BenchmarkPicture]:
    """The pictures that the questions show, as files below the root or inside the official files."""
    images = {image.name: image for question in questions for image in question.images}
    known = identities(root, images) if root.is_dir() else [None] * len(images)
    missing: list[str] = []
    found: list[BenchmarkPicture] = []
    for image, identity in zip(images.values(), known, strict=True):
        try:
            found.append(BenchmarkPicture(image.name, identity or _digest(image), image.read))
        except ImageRefError as error:
            missing.append(f"{image.name}: {error}")
    _all_there(root, len(images), missing)
    return found


def _digest(image: QuestionImage) -> str:
    return f"sha256:{hashlib.sha256(image.read()).hexdigest()}"


def _pictures_below(root: Path) -> tuple[list[BenchmarkPicture], list[str]]:
    """Every file below the root whose name says that it is a picture, and the names of all others."""
    if not root.is_dir():
        raise RecipeError(f"there is no directory {root}")
    below: list[str] = []
    for directory, inner, files in os.walk(root, onerror=_fail):
        for link in (Path(directory, each) for each in inner if Path(directory, each).is_symlink()):
            raise RecipeError(f"{link} links to a directory, which is not followed: list it as a benchmark of its own")
        relative = Path(directory).relative_to(root)
        below += [(relative / each).as_posix() for each in files]
    names = sorted(each for each in below if each.lower().endswith(PICTURES))
    if not names:
        raise RecipeError(f"{root} holds no picture")
    place = ImageRoot(root)
    found, missing = [], []
    for name, identity in zip(names, identities(root, names), strict=True):
        if identity is None:
            missing.append(name)
        else:
            found.append(BenchmarkPicture(name, identity, partial(place.read, name)))
    _all_there(root, len(names), missing)
    return found, sorted(set(below) - set(names))


def _fail(error: OSError) -> None:
    raise error  # a directory that cannot be listed; os.walk would pass it over


def _all_there(root: Path, total: int, missing: list[str]) -> None:
    if missing:
        raise RecipeError(
            f"{len(missing)} of {total} pictures below {root} cannot be read, so they cannot be looked for: "
            f"{'; '.join(missing[:_NAMED])}"
        )


def _plain_questions(path: Path) -> list[tuple[str, str]]:
    """(`file:line`, text) of every line that is not blank."""
    if not path.is_file():
        raise RecipeError(f"there is no file {path}")
    asked: list[tuple[str, str]] = []
    if path.suffix == ".jsonl":
        for where, row in read_rows(path, {}):
            text = row.get("question", row.get("text"))
            if not isinstance(text, str) or not text.strip():
                raise RecipeError(f"{where}: has no text `question` or `text`; it has {', '.join(row)}")
            asked.append((f"{path.name}:{where.rpartition(':')[2]}", text))
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: not UTF-8 text: {error}") from None
        asked = [(f"{path.name}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not asked:
        raise RecipeError(f"{path} holds no question")
    return asked
