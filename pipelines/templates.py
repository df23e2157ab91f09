"""Templates as data: templates/<set>/<dataset or task>.yaml, checked when loaded.

A template is a pair of texts, `user` and `assistant`, with `{field}` places and a stable id. A set is written per
dataset (fine) or per task (coarse): the file named after the dataset wins over the one named after its task.
"""

import string
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent / "templates"

# What a template of each task may name; the starred ones it must name, somewhere in the pair.
FIELDS: dict[str, tuple[str, ...]] = {
    "caption": ("*caption",),
    "open_question": ("*question", "*answer"),
    # options: the shuffled choices, one lettered line each; letter and answer: the right one, as letter and as text;
    # context: the dataset's hint with a line break after it, or nothing
    "multiple_choice": ("*question", "options", "letter", "answer", "context"),
    "referring": ("*phrase", "*box"),  # box: x1,y1,x2,y2 over width and height, three decimals
    "conversation": ("*user", "*assistant"),
}


class TemplateError(ValueError):
    """A template file that cannot be used; the message names file and line."""


@dataclass(frozen=True)
class Template:
    id: str
    user: str
    assistant: str

    def parts(self, side: str) -> list[tuple[str, str | None]]:
        """[(literal text, field after it or None), …] of one side."""
        return [(literal, field) for literal, field, _, _ in string.Formatter().parse(getattr(self, side))]


def template_file(template_set: str, dataset: str, task: str) -> Path:
    """The file that gives `dataset` its templates. Raises TemplateError if the set has none."""
    candidates = [ROOT / template_set / f"{name}.yaml" for name in (dataset, task)]
    for path in candidates:
        if path.is_file():
            return path
    sets = sorted(p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ("chat", "eval"))
    raise TemplateError(
        f"template set {template_set!r} has nothing for dataset {dataset} (task {task}): "
        f"write {candidates[0]}; the sets are {', '.join(sets)}"
    )


def load_templates(template_set: str, dataset: str, task: str) -> tuple[Template, ...]:
    """The checked templates for a dataset, in file order."""
    return read_templates(template_file(template_set, dataset, task), task)


def read_templates(path: Path, task: str) -> tuple[Template, ...]:
    """Reads and checks one file. Raises TemplateError naming file and line: bad YAML, unknown or missing field,
    duplicate id, empty text, anything but a plain `{field}` between braces."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: not valid YAML: {error}") from None
    top = _mapping(path, root, required=("task", "templates"))
    if top["task"].value != task:
        raise TemplateError(f"{_at(path, top['task'])}: is for task {top['task'].value!r}, the dataset's is {task!r}")
    if not isinstance(top["templates"], yaml.SequenceNode) or not top["templates"].value:
        raise TemplateError(f"{_at(path, top['templates'])}: `templates` must be a list of at least one template")
    templates: dict[str, Template] = {}
    for node in top["templates"].value:
        entry = _mapping(path, node, required=("id", "user", "assistant"))
        for name, value in entry.items():
            # In captioning, the picture alone is the prompt.
            if not isinstance(value, yaml.ScalarNode) or (
                not value.value.strip() and (task, name) != ("caption", "user")
            ):
                raise TemplateError(f"{_at(path, value)}: `{name}` must be a text that is not empty")
        template = Template(*(entry[name].value for name in ("id", "user", "assistant")))
        if template.id in templates:
            raise TemplateError(f"{_at(path, entry['id'])}: the id {template.id!r} stands twice")
        _check_fields(path, entry, task)
        templates[template.id] = template
    return tuple(templates.values())


def _mapping(path: Path, node: yaml.Node | None, required: tuple[str, ...]) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise TemplateError(f"{_at(path, node)}: must be a mapping with the keys {', '.join(required)}")
    entries = {key.value: value for key, value in node.value}
    if set(entries) != set(required) or len(entries) != len(node.value):
        found = ", ".join(key.value for key, _ in node.value)
        raise TemplateError(f"{_at(path, node)}: must have exactly the keys {', '.join(required)}; found {found}")
    return entries


def _check_fields(path: Path, entry: dict[str, yaml.Node], task: str) -> None:
    allowed = {field.lstrip("*") for field in FIELDS[task]}
    used = set()
    for side in ("user", "assistant"):
        where = _at(path, entry[side])
        try:
            parts = list(string.Formatter().parse(entry[side].value))
        except ValueError as error:
            raise TemplateError(f"{where}: {error}; write a brace that is text as {{{{ or }}}}") from None
        for _, field, spec, conversion in parts:
            if field is None:
                continue
            if field not in allowed or spec or conversion:
                raise TemplateError(f"{where}: unknown field {{{field}}}; {task} has {', '.join(sorted(allowed))}")
            used.add(field)
    missing = sorted({field[1:] for field in FIELDS[task] if field.startswith("*")} - used)
    if task == "multiple_choice" and not used & {"letter", "answer"}:
        missing.append("letter or answer")
    if missing:
        raise TemplateError(f"{_at(path, entry['user'])}: template {entry['id'].value!r} lacks {', '.join(missing)}")


def _at(path: Path, node: yaml.Node | None) -> str:
    return f"{path}:{node.start_mark.line + 1 if node else 1}"
