"""What can be wrong with template sets besides their form (`honeybee templates check`); each fault names file, line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from pipelines.sources import SOURCES
from pipelines.templates import (
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

# The field that asks, by task: a template that names it on the assistant's side alone is inverted.
_ASKS = {"open_question": "question", "multiple_choice": "question", "referring": "phrase"}

# Searched in both texts of a template, whose fields stand as {field}.
_WORDING = [
    (re.compile(pattern, re.MULTILINE), fault)
    for pattern, fault in (
        (r"\A\s|\s\Z", "begins or ends with white space"),
        (r"[^\S\n]{2}|[^\S\n]$|\n[^\S\n]|[^\S\n ]", "has doubled spaces, or spaces at the end of a line or tabs in it"),
        (r"\n\n\n", "has two empty lines"),
        (r"\s[.,;:?!]", "has a space before a punctuation mark"),
        (r"(?i:\b([a-z]+) \1\b)", "says a word twice"),
        (r"[.?!] [a-z]", "begins a sentence with a small letter"),
        (r"\w\{|(?<!\{context)\}[\w{]", "has a field that runs into a word or another field"),
        (r"\{(question|phrase)\}[.?!]", "ends a field that may bring its own end mark; quote it or put it last"),
        (r"\{box\}[,\d]", "has a comma or digit right after {box}, which then reads as a part of it"),
        (r"\{context\}\s", "has a space or line break after {context}, which brings its own line break"),
        (r"<image>|^(Human|AI|User|Assistant|System):", "has a mark of the chat styles in it"),
    )
]
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"))
_ENDED = re.compile(r"[.?!:}][)\"”’']*\Z")
_ID = re.compile(r"[a-z0-9][a-z0-9_+.-]*")


def set_files(name: str) -> list[Path]:
    """The template files of a set, sorted by name."""
    return sorted(path for path in (ROOT / name).glob("*.yaml") if path.name != "set.yaml")


def task_of(path: Path, datasets: Mapping[str, str]) -> str | None:
    """The task that a template file is for, by its name; None if that is neither a dataset's nor a task's."""
    return datasets.get(path.stem, path.stem if path.stem in FIELDS else None)


def lint(names: Sequence[str], datasets: Mapping[str, str]) -> list[str]:
    """The faults of the named sets, as `file:line: what`. datasets: name → task of all that a file may be named after.

    Raises TemplateError for a set that does not exist.
    """
    unknown = sorted(set(names) - set(set_names()))
    if unknown:
        read_set(unknown[0])
    faults = [fault for name in names for fault in _lint_set(name, datasets)]
    return faults + list(_shared_ids(names, datasets))


def inverted(template: Template, task: str) -> bool:
    """Whether it gives the answer and asks for the question; of referring: gives the box and asks for the phrase."""
    asks = _ASKS.get(task)
    return asks in _fields(template, "assistant") and asks not in _fields(template, "user")


def _lint_set(name: str, datasets: Mapping[str, str]) -> Iterator[str]:
    try:
        this = read_set(name)
    except TemplateError as error:
        yield str(error)
        return
    for path in sorted((ROOT / name).iterdir()):
        if path.suffix != ".yaml" or not path.is_file():
            yield f"{path}:1: is no template file: a set is a directory of .yaml files"
    for path in set_files(name):
        task = task_of(path, datasets)
        if task is None:
            known = ", ".join([*sorted(datasets), *FIELDS])
            yield f"{path}:1: is named after no dataset and no task; known are {known}"
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
    """As many as the set promises. Conversations are instructions already: one template, which keeps them."""
    if this.per_dataset is None:
        return
    number = {"conversation": 1, "referring": max(this.per_dataset, 2)}.get(task, this.per_dataset)
    if len(templates) != number:
        yield f"{path}:1: has {len(templates)} templates; set.yaml promises {number} for {task}"
    if task in _ASKS:
        number = this.inverted + (number // 2 if task == "referring" else 0)
        found = sum(inverted(template, task) for template in templates)
        if found != number:
            yield f"{path}:1: has {found} templates that ask for the {_ASKS[task]}; set.yaml promises {number}"


def _lint_file(path: Path, task: str, templates: Sequence[Template]) -> Iterator[str]:
    lines = _lines(path)
    users: dict[str, str] = {}
    for template in templates:
        at = lines[template.id]
        if not _ID.fullmatch(template.id):
            yield f"{path}:{at['id']}: the id {template.id!r} must be of small letters, digits and _ + . -"
        for side in ("user", "assistant"):
            for fault in _wording(_places(template, side)):
                yield f"{path}:{at[side]}: the {side}'s text {fault}"
        user = _places(template, "user")
        if user and not _ENDED.search(user.strip()):
            yield f"{path}:{at['user']}: the user's text has no end mark (. ? ! or :)"
        same = users.setdefault(" ".join(user.lower().split()), template.id)
        if same != template.id:
            yield f"{path}:{at['user']}: says the same as the template {same!r}"
        for fault in _sense(template, task):
            yield f"{path}:{at['user']}: {fault}"


def _wording(text: str) -> Iterator[str]:
    for pattern, fault in _WORDING:
        if found := pattern.search(text):
            yield f"{fault}: {text[max(0, found.start() - 15) : found.end() + 15]!r}"
    for opening, closing in _PAIRS:
        if text.count(opening) != text.count(closing):
            yield f"opens {opening} and closes {closing} not equally often"
    if text.count('"') % 2:
        yield "has an odd number of quotation marks"


def _sense(template: Template, task: str) -> Iterator[str]:
    """Whether the pair asks for something that the user's side does not give away."""
    user, reply = _fields(template, "user"), _fields(template, "assistant")
    if not reply - {"dataset"}:
        yield "the assistant's text names no field, so nothing of the annotation is learnt"
    for field in sorted(user & reply - {"dataset"}):
        yield f"{{{field}}} stands on both sides, so the reply is given away"
    if task == "conversation" and "assistant" not in reply:
        yield "{assistant} must stand on the assistant's side: conversations are not inverted"
    if task == "multiple_choice":
        right = {"letter", "answer"}
        if user & right and reply & right and not user & reply:
            yield "{letter} and {answer} stand on different sides, so the reply is given away"
        if "letter" in user | reply and "options" not in user:
            yield "{letter} says nothing where the user's text has no {options}"
        if "context" not in user:
            yield "the user's text lacks {context}: hints that belong to the question would be lost"


def _shared_ids(names: Sequence[str], datasets: Mapping[str, str]) -> Iterator[str]:
    """Ids stand in every shard, so that one must never mean two templates: in whatever sets."""
    files: dict[str, list[Path]] = {}
    for path in (path for name in set_names() for path in set_files(name)):
        for template_id in _ids(path, datasets):
            files.setdefault(template_id, []).append(path)
    for template_id, paths in files.items():
        for path in paths if len(paths) > 1 else ():
            if path.parent.name in names:
                others = ", ".join(str(other) for other in paths if other != path)
                yield f"{path}:{_lines(path)[template_id]['id']}: the id {template_id!r} stands in {others} too"


def _ids(path: Path, datasets: Mapping[str, str]) -> list[str]:
    """Of a file that can be read; what is wrong with another is told where it is checked."""
    task = task_of(path, datasets)
    try:
        return [template.id for template in read_templates(path, task)] if task else []
    except TemplateError:
        return []


def _lines(path: Path) -> dict[str, dict[str, int]]:
    """Template id → key → line, of a file that has been checked."""
    top = _entries(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    templates = [_entries(node) for node in top["templates"].value]
    return {t["id"].value: {key: node.start_mark.line + 1 for key, node in t.items()} for t in templates}


def _entries(mapping: yaml.Node | None) -> dict[str, yaml.Node]:
    return {key.value: value for key, value in mapping.value} if mapping else {}


def _fields(template: Template, side: str) -> set[str]:
    return {field for _, field in template.parts(side) if field is not None}


def _places(template: Template, side: str) -> str:
    """The text with its fields as {field}; a brace that is text becomes a bracket of no meaning here."""
    text = ""
    for literal, field in template.parts(side):
        text += literal.replace("{", "‹").replace("}", "›") + (f"{{{field}}}" if field else "")
    return text
