"""Templates as data: templates/<set>/<dataset or task>.yaml, validated when loaded.

A template is a pair of texts, `user` and `assistant`, with `{field}` placeholders and a stable id. The files of a set
are per dataset (fine) or per task (coarse): a file named after the dataset takes precedence over one named after its
task, and both take precedence over the files of the set's base (set.yaml).
"""

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2] / "templates"

# The fields that a template of each task may use; the starred ones are required in at least one of its texts.
FIELDS: dict[str, tuple[str, ...]] = {
    "caption": ("*caption", "dataset"),  # dataset: the dataset's name in the recipe
    "open_question": ("*question", "*answer", "dataset"),
    # options: the shuffled choices, one lettered line each; letter and answer: the letter and text of the correct one;
    # context: the dataset's hint followed by a line break, or an empty string
    "multiple_choice": ("*question", "options", "letter", "answer", "context", "dataset"),
    "referring": ("*phrase", "*box", "dataset"),  # box: x1,y1,x2,y2 relative to width and height, three decimals
    "conversation": ("*user", "*assistant", "dataset"),
}
NON_SET_DIRECTORIES = ("chat", "eval")  # directories of templates/ that are not sets


class TemplateError(ValueError):
    """An invalid or missing template file; the message names the file and line."""


@dataclass(frozen=True)
class Template:
    id: str
    user: str
    assistant: str

    def parts(self, side: str) -> list[tuple[str, str | None]]:
        """Returns one side as [(literal text, field after it or None), …]."""
        return [(literal, field) for literal, field, _, _ in string.Formatter().parse(getattr(self, side))]


@dataclass(frozen=True)
class TemplateSet:
    """The settings of a set from its `set.yaml`; all of them are optional."""

    name: str
    about: str = ""
    base: str | None = None  # the set that provides the files that this one lacks
    tasks: tuple[str, ...] = tuple(FIELDS)  # the tasks whose datasets must have templates
    per_dataset: int | None = (
        None  # templates per file; at least two for referring: half ask for a box, half for a phrase
    )
    inverted: int = 0  # the number of them that give the answer and ask for the question


def set_names() -> list[str]:
    """Returns the names of all sets."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in NON_SET_DIRECTORIES)


def read_set(name: str) -> TemplateSet:
    """Reads the settings of a set. Raises TemplateError if the set does not exist, or if its `set.yaml` has an unknown
    key or an invalid value."""
    names = set_names()
    if name not in names:
        raise TemplateError(f"template set {name!r} does not exist; the sets are {', '.join(names)}")
    path = ROOT / name / "set.yaml"
    if not path.exists():
        return TemplateSet(name)
    root = _compose(path)
    if not isinstance(root, yaml.MappingNode):
        raise TemplateError(f"{_at(path, root)}: must be a mapping with some of the keys {', '.join(_SET_KEYS)}")
    values: dict[str, Any] = {}
    for key, node in root.value:
        wanted, fits = _SET_KEYS.get(str(key.value), (f"one of the keys {', '.join(_SET_KEYS)}", lambda _: False))
        value = _value(node)
        if not fits(value):
            raise TemplateError(f"{_at(path, key)}: `{key.value}` must be {wanted}")
        values[key.value] = tuple(value) if isinstance(value, list) else value
    if values.get("base", name) not in names:
        raise TemplateError(f"{path}: the base {values['base']!r} does not exist; the sets are {', '.join(names)}")
    return TemplateSet(name, **values)


def _value(node: yaml.Node) -> Any:
    """Returns the value of a node, or None if it is not safe, valid YAML."""
    try:
        return yaml.safe_load(yaml.serialize(node))
    except (yaml.YAMLError, ValueError):
        return None


# key of a set.yaml → (description of valid values, check)
_SET_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "about": ("a string", lambda value: isinstance(value, str)),
    "base": ("the name of a set", lambda value: isinstance(value, str)),
    "tasks": (
        f"a list with at least one of {', '.join(FIELDS)}",
        lambda value: isinstance(value, list) and bool(value) and all(task in tuple(FIELDS) for task in value),
    ),
    "per_dataset": ("an integer of at least 1", lambda value: type(value) is int and value >= 1),
    "inverted": ("an integer of at least 0", lambda value: type(value) is int and value >= 0),
}


def template_file(template_set: str, dataset: str, task: str) -> Path:
    """Returns the template file of a dataset. Raises TemplateError if neither the set nor its bases have one."""
    own = read_set(template_set)
    for member in _with_bases(own):
        for path in (ROOT / member.name / f"{dataset}.yaml", ROOT / member.name / f"{task}.yaml"):
            if path.is_file():
                return path
    raise TemplateError(
        f"template set {template_set!r} has no templates for dataset {dataset}: add "
        f"{ROOT / template_set / dataset}.yaml, or {task}.yaml for all datasets of the task, or set a `base`; "
        f"the sets are {', '.join(set_names())}"
    )


def _with_bases(own: TemplateSet) -> Iterator[TemplateSet]:
    seen = {own.name}
    yield own
    while own.base is not None:
        if own.base in seen:
            raise TemplateError(
                f"{ROOT / own.name / 'set.yaml'}: the base {own.base!r} leads back to itself: break the cycle"
            )
        own = read_set(own.base)
        seen.add(own.name)
        yield own


def load_templates(template_set: str, dataset: str, task: str) -> tuple[Template, ...]:
    """Returns the validated templates of a dataset, in file order."""
    return read_templates(template_file(template_set, dataset, task), task)


def read_templates(path: Path, task: str) -> tuple[Template, ...]:
    """Reads and validates one file. Raises TemplateError, which names the file and line, for invalid YAML, an unknown
    or missing field, a duplicate id, an empty text, and anything other than a plain `{field}` between braces."""
    top = _mapping(path, _compose(path), required=("task", "templates"))
    if top["task"].value != task:
        raise TemplateError(
            f"{_at(path, top['task'])}: is for task {top['task'].value!r}, but the dataset's is {task!r}"
        )
    if not isinstance(top["templates"], yaml.SequenceNode) or not top["templates"].value:
        raise TemplateError(f"{_at(path, top['templates'])}: `templates` must be a list of at least one template")
    templates: dict[str, Template] = {}
    for node in top["templates"].value:
        entry = _mapping(path, node, required=("id", "user", "assistant"))
        for name, value in entry.items():
            # For captions, the image itself is the prompt.
            if not isinstance(value, yaml.ScalarNode) or (
                not value.value.strip() and (task, name) != ("caption", "user")
            ):
                raise TemplateError(f"{_at(path, value)}: `{name}` must be a non-empty string")
        template = Template(*(entry[name].value for name in ("id", "user", "assistant")))
        if template.id in templates:
            raise TemplateError(f"{_at(path, entry['id'])}: the id {template.id!r} is used twice")
        _check_fields(path, entry, task)
        templates[template.id] = template
    return tuple(templates.values())


def _compose(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TemplateError(f"{path}: not valid YAML: {error}") from None


def _mapping(path: Path, node: yaml.Node | None, required: tuple[str, ...]) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise TemplateError(f"{_at(path, node)}: must be a mapping with the keys {', '.join(required)}")
    bad = next((key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)), None)
    if bad is not None:
        raise TemplateError(f"{_at(path, bad)}: a key must be a string")
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
            raise TemplateError(f"{where}: {error}; write a literal brace as {{{{ or }}}}") from None
        for _, field, spec, conversion in parts:
            if field is None:
                continue
            if field not in allowed or spec or conversion:
                raise TemplateError(f"{where}: unknown field {{{field}}}; {task} allows {', '.join(sorted(allowed))}")
            used.add(field)
    missing = sorted({field[1:] for field in FIELDS[task] if field.startswith("*")} - used)
    if task == "multiple_choice" and not used & {"letter", "answer"}:
        missing.append("letter or answer")
    if missing:
        raise TemplateError(f"{_at(path, entry['user'])}: template {entry['id'].value!r} lacks {', '.join(missing)}")


def _at(path: Path, node: yaml.Node | None) -> str:
    return f"{path}:{node.start_mark.line + 1 if node else 1}"
