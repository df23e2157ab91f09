"""MkDocs hook: replaces `<!-- recipe-reference -->` in a page by tables of all keys of a recipe.

The tables are rendered from the pydantic models at build time, so they cannot become outdated. A field without a
description fails the build: write a docstring under the field.
"""

import html
import inspect
import itertools
import json
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

MARKER = "<!-- recipe-reference -->"
ROOT = Path(__file__).resolve().parents[2]

# Keys that the models require but that a recipe may omit, because a validator of the section above fills them in.
DERIVED = {"data.balance": "see below", "data.balance.strategy": "see description"}
GUARD = 10**12  # a limit that only catches typing errors and is not worth showing

_UNIONS = (Union, types.UnionType)
_SIMPLE: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "`true`, `false`", Any: "any value"}
_BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "max_length": "of at most {} characters"}


class MissingDescription(ValueError):
    """A field of the recipe without a description; the message names its class and key."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page before it renders the Markdown."""
    if MARKER not in markdown:
        return markdown
    sys.path.insert(0, str(ROOT))  # this checkout, even if another one is installed
    try:
        from flows.recipe.recipe import Recipe
    finally:
        sys.path.remove(str(ROOT))
    try:
        return markdown.replace(MARKER, reference(Recipe))
    except MissingDescription as error:
        from mkdocs.exceptions import PluginError

        raise PluginError(f"recipe reference: {error}") from None


def reference(recipe: type[BaseModel]) -> str:
    """Markdown of all keys: the recipe's own, then a heading and a table for each section below it.

    Raises MissingDescription for a field without a description.
    """
    parts = ["## Top level\n", *_table(recipe, "")]
    models = {name: _models(field.annotation) for name, field in recipe.model_fields.items()}
    for name, own in models.items():
        same = [other for other in models if own and models[other] == own]
        if name not in same[-1:]:
            continue  # sections of the same model (the two stages) are shown once, under the last name
        title = " and ".join(f"`{other}`" for other in same)
        parts += [f'<a id="{other}"></a>\n' for other in same[:-1]]
        parts.append(f"## {title} {{ #{name} }}\n")
        if len(same) > 1:
            parts.append(f"{title} have the same keys. The tables show those of `{name}`.\n")
        path = _path(name, recipe.model_fields[name].annotation)
        for model in own:
            parts += [_about(model), *_table(model, f"{path}."), *_subsections(model, path)]
    return "\n".join(parts)


def _subsections(model: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        models = _models(field.annotation)
        below = _path(f"{path}.{name}", field.annotation)
        if models:
            yield f"### `{below}` {{ #{_anchor(below)} }}\n"
        for each in models:
            if len(models) > 1:  # a union, whose members are told apart by the value of one key
                yield f"#### `{below}` with `{_tag(each)}`\n"
            yield _about(each)
            yield from _table(each, f"{below}.", anchors=len(models) == 1)
            yield from _subsections(each, below)


def _table(model: type[BaseModel], prefix: str, anchors: bool = True) -> Iterator[str]:
    yield '<div class="keys" markdown>\n\n| Key | Type | Default | Description |\n|---|---|---|---|'
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if not field.description:
            raise MissingDescription(f"{model.__module__}.{model.__name__}: `{key}` has no description")
        shown = "<wbr>.".join(html.escape(part) for part in key.split("."))
        models = _models(field.annotation)
        section = _anchor(_path(key, field.annotation))
        identity = f' id="{_anchor(key)}"' if anchors and not models else ""
        kind = f"[{_cell(_describe(field.annotation))}](#{section})" if models else _type(field)
        cells = (
            f"<code{identity}>{shown}</code>",
            kind,
            _default(field, key),
            _cell(" ".join(field.description.split())),
        )
        yield f"| {' | '.join(cells)} |"
    yield "\n</div>\n"


def _about(model: type[BaseModel]) -> str:
    """The first paragraph of the class's docstring, without what it says of single fields (`field: …`)."""
    text = " ".join(inspect.cleandoc(model.__dict__.get("__doc__") or "").split("\n\n")[0].split())
    sentences = re.split(r"(?<=\.) ", text)
    return " ".join(itertools.takewhile(lambda sentence: not re.match(r"[\w, ]+: ", sentence), sentences)) + "\n"


def _anchor(key: str) -> str:
    return key.replace(".<name>", "")


def _path(path: str, annotation: Any) -> str:
    """The path of a section; that of a map of sections goes through the name of an entry."""
    is_map = any(get_origin(member) is dict and _models(member) for member in _members(annotation))
    return f"{path}.<name>" if is_map else path


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an optional or union type, without null."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in _UNIONS:
        return [member for each in get_args(annotation) if each is not type(None) for member in _members(each)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field holds: itself, or the values of a map."""
    found: list[type[BaseModel]] = []
    for member in _members(annotation):
        if get_origin(member) is dict:
            found += _models(get_args(member)[1])
        elif isinstance(member, type) and issubclass(member, BaseModel):
            found.append(member)
    return found


def _tag(model: type[BaseModel]) -> str:
    """`key: value` of the key whose value selects this member of a union."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return f"{name}: {get_args(field.annotation)[0]}"
    raise ValueError(f"{model.__name__} has no key that tells it apart from the others")


def _type(field: FieldInfo) -> str:
    return _cell(_describe(field.annotation, field.metadata))


def _describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type and the values that it accepts, for people."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    bounds = _bounds(metadata)
    if origin is Annotated:
        return _describe(arguments[0], [*arguments[1:], *metadata])
    if origin in _UNIONS:
        members = [each for each in arguments if each is not type(None)]
        return " or ".join(dict.fromkeys(_describe(each, metadata) for each in members))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return f"map of {'sections' if _models(arguments[1]) else _describe(arguments[1])}"
    if origin is tuple:
        length = "" if arguments[-1] is Ellipsis else f"{len(arguments)} × "
        return f"list of {length}{_describe(arguments[0])}{bounds}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return f"path{bounds}"
    return f"{_SIMPLE[annotation]}{bounds}"


def _bounds(metadata: Iterable[Any]) -> str:
    """Bounds of pydantic's `Field`, such as ` > 0, ≤ 1`."""
    found = []
    for each in metadata:
        for part in (each, *getattr(each, "metadata", ())):
            for name, text in _BOUNDS.items():
                limit = getattr(part, name, None)
                if limit is not None and limit != GUARD:
                    found.append(text.format(f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"))
    return f" {', '.join(dict.fromkeys(found))}" if found else ""


def _default(field: FieldInfo, key: str) -> str:
    for suffix, text in DERIVED.items():
        if key.endswith(suffix):
            return text
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True)
    if default is None or default in ({}, ()):
        return "–"
    if isinstance(default, BaseModel):
        return "see below"
    if isinstance(default, float) and not 1e-3 <= abs(default) < 1e6:
        return f"`{default:.1e}`"
    if isinstance(default, str | PurePath):
        return f"`{default}`"
    return _cell(f"`{json.dumps(default, ensure_ascii=False)}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
