"""`honeybee templates check`: prints every template file with a rendered example, and the errors found."""

from collections.abc import Callable, Mapping, Sequence

from flows.recipe.recipe import load_recipe
from pipelines.examples.preview import format_turns, render
from pipelines.sources import SOURCES
from pipelines.templates.lint import inverted, lint, set_files, task_of_file
from pipelines.templates.sets import TemplateError, read_set, read_templates, set_names


def dataset_tasks(recipe: str | None) -> dict[str, str]:
    """Returns dataset name → task for all sources and for the datasets of a recipe."""
    tasks = {source.name: source.task for source in SOURCES.values()}
    if recipe is not None:
        for name, dataset in load_recipe(recipe).datasets.items():
            source = dataset.source or name
            if source in SOURCES:
                tasks[name] = SOURCES[source].task
    return tasks


def check_sets(
    names: Sequence[str], datasets: Mapping[str, str], every: bool, echo: Callable[[str], None]
) -> list[str]:
    """Shows the templates of the named sets (default: all), the first of each file or every one, and returns the errors
    found. Raises TemplateError if a set does not exist."""
    names = list(dict.fromkeys(names)) or set_names()
    faults = lint(names, datasets)
    for name in names:
        _show_set(name, datasets, every, echo)
    return faults


def _show_set(name: str, datasets: Mapping[str, str], every: bool, echo: Callable[[str], None]) -> None:
    try:
        this = read_set(name)
    except TemplateError:
        return  # reported as an error, like every file that is skipped below
    base = f" (based on {this.base})" if this.base else ""
    echo(f"{name}: {this.about}{base}" if this.about else f"{name}{base}")
    for path in set_files(name):
        task = task_of_file(path, datasets)
        try:
            templates = read_templates(path, task) if task else ()
        except TemplateError:
            continue
        if not task or not templates:
            continue
        # A file of a task is shown for one of the task's datasets.
        dataset = path.stem if path.stem in datasets else next(d for d, t in datasets.items() if t == task)
        echo(f"\n  {path.name}: {task}, {len(templates)} template{'s' if len(templates) > 1 else ''}")
        # The first template that asks for the answer, and the first inverted one, which asks for the question.
        first = {inverted(template, task): template for template in reversed(templates)}
        for template in templates if every else reversed(first.values()):
            turns = render(template, task, dataset)
            echo(f"    [{template.id}]\n{format_turns(turns if every else turns[:1], indent='      ')}")
    echo("")
