"""Compares every template of every set, as rendered by the real `instructify`, with its reviewed golden file.

After a change, run `UPDATE_GOLDENS=1 pytest tests/pipelines/templates/test_goldens.py` and review the diff.
"""

import os
from pathlib import Path

import pytest

from pipelines.examples.preview import format_turns, render
from pipelines.sources import SOURCES
from pipelines.templates.sets import load_templates, read_set, set_names

GOLDEN = Path(__file__).with_name("golden")


def rendered(name: str) -> str:
    tasks = read_set(name).tasks
    blocks = []
    for source in SOURCES.values():
        if source.task in tasks:
            blocks.append(f"== {source.name}: {source.task}")
            for template in load_templates(name, source.name, source.task):
                blocks.append(f"[{template.id}]\n{format_turns(render(template, source.task, source.name), indent='')}")
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("name", set_names())
def test_rendered_templates_match_the_golden_file(name):
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(rendered(name), encoding="utf-8")
    assert rendered(name) == golden.read_text(encoding="utf-8"), f"{golden.name} differs: {__doc__}"


def test_every_golden_file_belongs_to_a_set():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == set_names()
