"""The documentation describes every key of a recipe, and the Markdown outside of docs/ has no broken link."""

import html
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from flows.recipe.recipe import Recipe
from pipelines.sources.formats.chat_layouts import TABLE

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = Recipe.model_json_schema()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/hooks/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    return load("recipe_reference")


def keys(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of the JSON schema with its property, found without the code that renders the page."""
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    for alternative in [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]:
        yield from keys(alternative, path)
    if isinstance(node.get("additionalProperties"), dict):
        yield from keys(node["additionalProperties"], f"{path}.<name>")
    for name, child in node.get("properties", {}).items():
        key = f"{path}.{name}".lstrip(".")
        yield key, child
        yield from keys(child, key)


def test_every_recipe_key_has_a_description():
    assert [key for key, node in keys(SCHEMA) if not node.get("description")] == []


def test_the_reference_has_a_row_for_every_key(hook):
    page = hook.on_page_markdown((ROOT / "docs/recipe-reference.md").read_text())
    rows = {re.sub("<[^<]*?>", "", line.split("|")[1]).strip() for line in page.splitlines() if line.startswith("| <")}
    shown = {key.replace("&lt;", "<").replace("&gt;", ">") for key in rows}
    expected = {re.sub(r"^pretrain\.", "finetune.", key) for key, _ in keys(SCHEMA)}
    assert {"finetune.train.packing.max_tokens", "datasets.<name>.columns.box_unit"} <= expected
    assert shown == expected


def test_the_documentation_shows_every_accepted_chat_layout():
    page = load("chat_layouts").on_page_markdown((ROOT / "docs/your-own-data.md").read_text())
    groups = [group for key in ("row", "message", "roles", "parts") for group in TABLE[key].values()]
    for name in (name for group in [*groups, TABLE["markers"]] for name in group):
        assert f"<code>{html.escape(name).replace('|', '&#124;')}</code>" in page, name


def test_a_key_without_a_description_fails_the_build(hook):
    class Bare(BaseModel):
        steps: int = 3

    with pytest.raises(hook.MissingDescription, match=r"Bare: `steps` has no description"):
        hook.reference(Bare)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_to_pages_and_headings(page):
    slugify = importlib.import_module("markdown.extensions.toc").slugify
    path = ROOT / page
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#\s]*(?:#[^)\s]*)?)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {slugify(heading.replace("`", ""), "-") for heading in headings}, target
