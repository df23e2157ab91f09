"""Writes one page per benchmark with the questions that a model answered wrongly, and their images."""

from pathlib import Path

from flows.report import gallery
from flows.report.gallery import Card
from flows.runs.results import Results
from flows.runs.workspace import Workspace
from model.evaluation import benchmarks
from model.evaluation.asking.marks import marks_path, read_marks
from model.evaluation.asking.predictions import load
from model.evaluation.interface import LETTERS, Mark, Question
from model.evaluation.prompts import Prompt, load_prompt
from pipelines.core.errors import ImageRefError

SHOWN = 40  # mistakes per benchmark
HALF = 0.5  # an answer with less credit is a mistake; a judge gives fractional credit


def write_pages(workspace: Workspace, scores: Path, results: Results) -> dict[str, str]:
    """Writes mistakes-<benchmark>.md with its images to a run's directory; returns benchmark → name of its page.

    scores: the directory of an evaluation. A benchmark without marked answers has no page.
    """
    pages = {}
    for name in workspace.recipe.evaluation.benchmarks:
        path = scores / f"{name}.predictions.jsonl"
        if path.is_file() and (text := _page(workspace, name, path, results)):
            pages[name] = f"mistakes-{name}.md"
            results.write(pages[name], text)
    return pages


def _page(workspace: Workspace, name: str, path: Path, results: Results) -> str | None:
    benchmark = benchmarks.get(name)
    predictions = load(benchmark, path)
    judged = marks_path(path)  # exists if a judge marked the answers
    marks = read_marks(judged) if judged.is_file() else benchmark.mark(predictions)
    if not marks:
        return None
    official = {question.id: question for question in benchmark.read(*workspace.benchmark(name))}
    wrong = [key for key, mark in marks.items() if mark.credit < HALF]
    shown = [wrong[i * len(wrong) // SHOWN] for i in range(SHOWN)] if len(wrong) > SHOWN else wrong
    prompt = load_prompt(name)
    cards = [_card(name, prompt, official[key], predictions.answers[key].text or "", marks[key]) for key in shown]

    def address(number: int, png: bytes) -> str:
        file = f"report/mistakes-{name}-{number:03d}.png"
        results.write(file, png)
        return file

    head = f"# Mistakes: {name}\n\n{len(wrong):,} of {len(marks):,} answers are wrong"
    some = f"; this page shows an evenly spaced selection of {len(shown)}" if len(shown) < len(wrong) else ""
    return f"{head}{some}.\n\n{gallery.markdown(cards, address)}"


def _card(benchmark: str, prompt: Prompt, question: Question, answer: str, mark: Mark) -> Card:
    right = question.truth
    if right and right in LETTERS[: len(question.options)]:
        right = f"{right}. {question.options[LETTERS.index(right)]}"
    lines = [
        prompt.render(question),
        "",
        f"answer: {answer}",
        f"parsed as: {mark.read if mark.read is not None else 'no answer'}; credit {mark.credit:g}",
        f"correct: {right}",
    ]
    shown = []
    for image in question.images:
        try:
            shown.append(gallery.draw_boxes(image.read()))
        except ImageRefError as error:
            lines.append(f"{image.name} cannot be shown: {error}")
    return Card(f"{benchmark}, question {question.id}", tuple(shown), "\n".join(lines))
