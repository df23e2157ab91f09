"""Tests of what the examples of a dataset are named by, and that their makers read nothing that changes meanwhile."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support.example_settings import settings_of

from pipelines.core.arrow_files import read_table
from pipelines.core.store import Store, read_manifest
from pipelines.dedup.settings import Dedup
from pipelines.jobs.dataset import DatasetSpec
from pipelines.jobs.examples import build_examples
from pipelines.templates import sets
from pipelines.tokens import chat_style


@pytest.fixture
def spec(tmp_path: Path) -> DatasetSpec:
    (tmp_path / "data").mkdir()
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A bee."}]
    (tmp_path / "data/a.json").write_text(json.dumps([{"conversations": talk}] * 3))
    return DatasetSpec("mine", "llava", tmp_path / "data", tmp_path / "data")


@pytest.fixture
def templates(tmp_path: Path, monkeypatch) -> Path:
    """A copy of the templates that a test may edit."""
    shutil.copytree(sets.ROOT, tmp_path / "templates")
    for module in (sets, chat_style):
        monkeypatch.setattr(module, "ROOT", tmp_path / "templates")
    return tmp_path / "templates"


def build(spec: DatasetSpec, tmp_path: Path, tokenizer_dir: Path, **changes) -> Path:
    return build_examples(Store(tmp_path / "store"), spec, settings_of(spec, tokenizer_dir, **changes))


def test_an_edited_template_is_used_by_the_same_process(spec, tmp_path, tokenizer_dir, templates):
    first = build(spec, tmp_path, tokenizer_dir)
    file = templates / "fine/conversation.yaml"
    file.write_text(file.read_text().replace("{user}", "Please: {user}"))
    second = build(spec, tmp_path, tokenizer_dir)
    users = [read_table(entry / "examples-00000.arrow")["turns"][0][0]["user"].as_py() for entry in (first, second)]
    assert users == ["What is it?", "Please: What is it?"]
    assert [template["user"] for template in read_manifest(second)["templates"]] == ["Please: {user}"]


def test_an_edited_chat_style_is_used_by_the_same_process(spec, tmp_path, tokenizer_dir, templates):
    first = build(spec, tmp_path, tokenizer_dir)
    file = templates / "chat/honeybee.jinja"
    file.write_text(file.read_text().replace("Human:", "Person:"))
    second = build(spec, tmp_path, tokenizer_dir)
    ids = [read_table(entry / "examples-00000.arrow")["input_ids"][0].as_py() for entry in (first, second)]
    assert ids[0] != ids[1]


def test_a_comment_in_a_template_file_rebuilds_nothing(spec, tmp_path, tokenizer_dir, templates):
    first = build(spec, tmp_path, tokenizer_dir)
    file = templates / "fine/conversation.yaml"
    file.write_text("# why it is so\n" + file.read_text())
    assert build(spec, tmp_path, tokenizer_dir) == first


def test_every_setting_that_matters_is_part_of_the_key(spec, tmp_path, tokenizer_dir):
    settings = settings_of(spec, tokenizer_dir)
    several = dataclasses.replace(settings, task="open_question", max_turns=4)
    changes = {"max_text_tokens": 9, "max_images": 2, "seed": 1, "max_turns": 3, "dataset": "other"}
    keys = [dataclasses.replace(settings, **{name: value}).key(None) for name, value in changes.items()]
    assert len({json.dumps(key) for key in [*keys, settings.key(None)]}) == len(changes) + 1
    # Of settings that the task does not use, nothing.
    assert dataclasses.replace(several, max_images=2).key(None) == several.key(None)
    assert dataclasses.replace(settings, dedup=Dedup(rule="answer")).key(None) == settings.key(None)
    assert dataclasses.replace(several, dedup=Dedup(rule="answer")).key(None) != several.key(None)


@pytest.mark.parametrize(
    ("task", "max_turns", "rule", "compares", "compares_vectors"),
    [
        ("open_question", 4, "semantic", True, True),
        ("open_question", 4, "semantic+answer", True, True),
        ("open_question", 4, "answer", True, False),
        ("open_question", 4, "off", False, False),
        ("open_question", 1, "semantic", False, False),
        ("conversation", 4, "semantic", False, False),
    ],
)
def test_which_datasets_compare_turns_and_vectors(task, max_turns, rule, compares, compares_vectors):
    dedup = Dedup(rule=rule)
    assert (dedup.compares(task, max_turns), dedup.compares_vectors(task, max_turns)) == (compares, compares_vectors)
    assert not dedup.without_vectors().needs_vectors
