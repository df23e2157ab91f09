"""Checks template sets beyond their YAML format (`honeybee templates check`). Each fault names its file and line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from pipelines.schema import ASKING_FIELD, IMAGE_TOKEN
from pipelines.sources import SOURCES
from pipelines.templates.sets import (
    FIELDS,
    ROOT,
    Template,
    TemplateError,
    TemplateSet,
    read_set,
    read_templates,
    set_names,
    template_file,
)

# Patterns that are searched in both texts of a template, in which fields appear as {field}.
_WORDING = [
    (re.compile(pattern, re.MULTILINE), fault)
    for pattern, fault in (
        (r"\A\s|\s\Z", "has leading or trailing whitespace"),
        (r"[^\S\n]{2}|[^\S\n]$|\n[^\S\n]|[^\S\n ]", "has double spaces, spaces at the start or end of a line, or tabs"),
        (r"\n\n\n", "has two consecutive empty lines"),
        (r"\s[.,;:?!]", "has a space before a punctuation mark"),
        (r"(?i:\b([a-z]+) \1\b)", "repeats a word"),
        (r"[.?!] [a-z]", "starts a sentence with a lower-case letter"),
        (r"\w\{|(?<!\{context)\}[\w{]", "has a field without a space before or after it"),
        (
            r"\{(question|phrase)\}[.?!]",
            "has punctuation after a field that may end with its own; quote it or put it last",
        ),
        (r"\{box\}[,\d]", "has a comma or digit right after {box}, which looks like a part of the box"),
        (r"\{context\}\s", "has whitespace after {context}, which ends with a line break already"),
        (
            rf"{IMAGE_TOKEN}|^(Human|AI|User|Assistant|System):",
            "contains the image token or a role name of the chat styles",
        ),
    )
]
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"))
_ENDED = re.compile(r"[.?!:}][)\"”’']*\Z")
_ID = re.compile(r"[a-z0-9][a-z0-9_+.-]*")


def set_files(name: str) -> list[Path]:
    """Returns the template files of a set, sorted by name."""
    return sorted(path for path in (ROOT / name).glob("*.yaml") if path.name != "set.yaml")


def task_of_file(path: Path, datasets: Mapping[str, str]) -> str | None:
    """Returns the task of a template file by its name, or None if that is neither a dataset nor a task."""
    return datasets.get(path.stem, path.stem if path.stem in FIELDS else None)


def lint(names: Sequence[str], datasets: Mapping[str, str]) -> list[str]:
    """Returns the faults of the given sets as `file:line: fault`. datasets: dataset name → task, for all datasets that
    a file may be named after. Raises TemplateError if a set does not exist."""
    unknown = sorted(set(names) - set(set_names()))
    if unknown:
        read_set(unknown[0])
    faults = [fault for name in names for fault in _lint_set(name, datasets)]
    return faults + list(_shared_ids(names, datasets))


def inverted(template: Template, task: str) -> bool:
    """Returns whether a template gives the answer (or box) and asks for the question (or phrase)."""
    asks = ASKING_FIELD.get(task)
    return asks in _fields(template, "assistant") and asks not in _fields(template, "user")


def _lint_set(name: str, datasets: Mapping[str, str]) -> Iterator[str]:
    try:
        this = read_set(name)
    except TemplateError as error:
        yield str(error)
        return
    for path in sorted((ROOT / name).iterdir()):
        if path.suffix != ".yaml" or not path.is_file():
            yield f"{path}:1: is not a template file: a set is a directory of .yaml files"
    for path in set_files(name):
        task = task_of_file(path, datasets)
        if task is None:
            known = ", ".join([*sorted(datasets), *FIELDS])
            yield f"{path}:1: must be named after a dataset or a task; the known names are {known}"
            continue
        try:
            templates = read_templates(path, task)
        except TemplateError as error:
            yield str(error)
            continue
        yield from _lint_file(path, task, templates)
        yield from _count(path, task, templates, this)
    for source in SOURCES.values():
        if source.task in this.tasks:
            try:
                template_file(name, source.name, source.task)
            except TemplateError as error:
                yield f"{ROOT / name}:1: {error}"


def _count(path: Path, task: str, templates: Sequence[Template], this: TemplateSet) -> Iterator[str]:
    """Checks the numbers of templates that set.yaml requires. Conversations contain instructions already, so they have
    one template, which leaves them unchanged."""
    if this.per_dataset is None:
        return
    number = {"conversation": 1, "referring": max(this.per_dataset, 2)}.get(task, this.per_dataset)
    if len(templates) != number:
        yield f"{path}:1: has {len(templates)} templates; set.yaml requires {number} for {task}"
    if task in ASKING_FIELD:
        number = this.inverted + (number // 2 if task == "referring" else 0)
        found = sum(inverted(template, task) for template in templates)
        if found != number:
            yield f"{path}:1: has {found} templates that ask for the {ASKING_FIELD[task]}; set.yaml requires {number}"


def _lint_file(path: Path, task: str, templates: Sequence[Template]) -> Iterator[str]:
    lines = _lines(path)
    users: dict[str, str] = {}
    for template in templates:
        at = lines[template.id]
        if not _ID.fullmatch(template.id):
            yield f"{path}:{at['id']}: the id {template.id!r} must consist of lower-case letters, digits and _ + . -"
        for side in ("user", "assistant"):
            for fault in _wording(_plain(template, side)):
                yield f"{path}:{at[side]}: the {side} text {fault}"
        user = _plain(template, "user")
        if user and not _ENDED.search(user.strip()):
            yield f"{path}:{at['user']}: the user text must end with punctuation (. ? ! or :)"
        same = users.setdefault(" ".join(user.lower().split()), template.id)
        if same != template.id:
            yield f"{path}:{at['user']}: the user text is the same as that of template {same!r}"
        for fault in _fields_used(template, task):
            yield f"{path}:{at['user']}: {fault}"


def _wording(text: str) -> Iterator[str]:
    for pattern, fault in _WORDING:
        if found := pattern.search(text):
            yield f"{fault}: {text[max(0, found.start() - 15) : found.end() + 15]!r}"
    for opening, closing in _PAIRS:
        if text.count(opening) != text.count(closing):
            yield f"has different numbers of {opening} and {closing}"
    if text.count('"') % 2:
        yield "has an odd number of quotation marks"


def _fields_used(template: Template, task: str) -> Iterator[str]:
    """Checks that the assistant text has a field that the user text does not reveal."""
    user, reply = _fields(template, "user"), _fields(template, "assistant")
    if not reply - {"dataset"}:
        yield "the assistant text has no field, so the model learns nothing from the annotation"
    for field in sorted(user & reply - {"dataset"}):
        yield f"{{{field}}} is in both texts, so the user text reveals the reply"
    if task == "conversation" and "assistant" not in reply:
        yield "{assistant} must be in the assistant text: conversations are not inverted"
    if task == "multiple_choice":
        right = {"letter", "answer"}
        if user & right and reply & right and not user & reply:
            yield "{letter} and {answer} are in different texts, so the user text reveals the reply"
        if "letter" in user | reply and "options" not in user:
            yield "{letter} is meaningless without {options} in the user text"
        if "context" not in user:
            yield "the user text lacks {context}: hints that belong to the question would be lost"


def _shared_ids(names: Sequence[str], datasets: Mapping[str, str]) -> Iterator[str]:
    """Finds ids that several files use. Shards refer to templates by id, so an id must be unique across all sets."""
    files: dict[str, list[Path]] = {}
    for path in (path for name in set_names() for path in set_files(name)):
        for template_id in _ids(path, datasets):
            files.setdefault(template_id, []).append(path)
    for template_id, paths in files.items():
        for path in paths if len(paths) > 1 else ():
            if path.parent.name in names:
                others = ", ".join(str(other) for other in paths if other != path)
                yield f"{path}:{_lines(path)[template_id]['id']}: the id {template_id!r} is also used in {others}"


def _ids(path: Path, datasets: Mapping[str, str]) -> list[str]:
    """Returns the ids of a file, or none if it is invalid, which is reported where the file is checked."""
    task = task_of_file(path, datasets)
    try:
        return [template.id for template in read_templates(path, task)] if task else []
    except TemplateError:
        return []


def _lines(path: Path) -> dict[str, dict[str, int]]:
    """Returns template id → key → line for a valid file."""
    top = _entries(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    templates = [_entries(node) for node in top["templates"].value]
    return {t["id"].value: {key: node.start_mark.line + 1 for key, node in t.items()} for t in templates}


def _entries(mapping: yaml.Node | None) -> dict[str, yaml.Node]:
    return {key.value: value for key, value in mapping.value} if mapping else {}


def _fields(template: Template, side: str) -> set[str]:
    return {field for _, field in template.parts(side) if field is not None}


def _plain(template: Template, side: str) -> str:
    """Returns a text with its fields as {field} and its literal braces replaced, so that no pattern matches them."""
    text = ""
    for literal, field in template.parts(side):
        text += literal.replace("{", "‹").replace("}", "›") + (f"{{{field}}}" if field else "")
    return text
