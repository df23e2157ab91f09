"""Template sets and files: selection, inheritance, validation, and properties of the project's own sets."""

from pathlib import Path

import pytest

from pipelines import sources
from pipelines.templates.lint import inverted
from pipelines.templates.sets import (
    FIELDS,
    ROOT,
    TemplateError,
    load_templates,
    read_set,
    read_templates,
    template_file,
)

GOOD = """task: open_question
templates:
  - id: one
    user: "{question} Be brief."
    assistant: "{answer}"
"""


def write(tmp_path, text):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    return path


SETS = ("fine", "coarse", "fine-10", "fine-10-flip", "dataset-id", "task-id")


@pytest.mark.parametrize("name", SETS)
def test_every_source_has_templates_in_every_set(name):
    for source in sources.SOURCES.values():
        assert load_templates(name, source.name, source.task)


@pytest.mark.parametrize("name", ["coarse", "dataset-id", "task-id"])
def test_sets_per_task_serve_any_dataset(name):
    assert all(load_templates(name, "mydata", task) for task in FIELDS)


@pytest.mark.parametrize("name", SETS)
def test_every_set_leaves_conversations_unchanged(name):
    for dataset in ("llava150k", "sharegpt", "mydata"):
        assert [(t.user, t.assistant) for t in load_templates(name, dataset, "conversation")] == [
            ("{user}", "{assistant}")
        ]


def test_ten_and_flipped_templates_differ_only_in_the_three_inverted():
    """The templates at all other positions are equal."""
    for source in sources.SOURCES.values():
        ten, flipped = (load_templates(name, source.name, source.task) for name in ("fine-10", "fine-10-flip"))
        (fine, *_) = load_templates("fine", source.name, source.task)
        assert (ten[0].user, ten[0].assistant) == (fine.user, fine.assistant)
        other = [b for a, b in zip(ten, flipped, strict=True) if (a.user, a.assistant) != (b.user, b.assistant)]
        assert len(other) == (0 if source.task in ("caption", "conversation") else 3)
        assert all(inverted(template, source.task) and ".inverted." in template.id for template in other)


def test_instruction_tuning_always_has_a_user_text_and_pretraining_never():
    for source in sources.SOURCES.values():
        assert all(template.user.strip() for template in load_templates("fine", source.name, source.task))
        if source.task == "caption":
            assert [template.user for template in load_templates("plain", source.name, source.task)] == [""]


def test_the_file_of_a_dataset_takes_precedence_over_that_of_its_task(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.templates.sets.ROOT", tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "open_question.yaml").write_text(GOOD)
    assert template_file("set", "vqav2", "open_question").stem == "open_question"
    (tmp_path / "set" / "vqav2.yaml").write_text(GOOD)
    assert template_file("set", "vqav2", "open_question").stem == "vqav2"
    with pytest.raises(TemplateError, match=r"template set 'none' does not exist; the sets are set"):
        template_file("none", "vqav2", "open_question")
    with pytest.raises(
        TemplateError, match=r"'set' has no templates for dataset refcoco: add .*set/refcoco.yaml, or ref"
    ):
        template_file("set", "refcoco", "referring")


def make_set(root, name, settings, *files):
    (root / name).mkdir()
    (root / name / "set.yaml").write_text(settings)
    for file in files:
        (root / name / f"{file}.yaml").write_text(GOOD)


def test_a_base_provides_the_files_that_a_set_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.templates.sets.ROOT", tmp_path)
    make_set(tmp_path, "ground", "about: all", "open_question", "gqa")
    make_set(tmp_path, "middle", "base: ground", "gqa")
    make_set(tmp_path, "top", "base: middle", "open_question")
    files = {name: template_file("top", name, "open_question").relative_to(tmp_path).parts for name in ("gqa", "vsr")}
    assert files == {"gqa": ("top", "open_question.yaml"), "vsr": ("top", "open_question.yaml")}, "own files come first"
    assert template_file("middle", "vsr", "open_question").parent.name == "ground"
    make_set(tmp_path, "bare", "base: middle")
    assert template_file("bare", "gqa", "open_question").parent.name == "middle"
    (tmp_path / "ground" / "set.yaml").write_text("base: top")
    with pytest.raises(TemplateError, match=r"set.yaml: the base '\w+' leads back to itself"):
        template_file("bare", "x", "caption")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bass: fine", r"set.yaml:1: `bass` must be one of the keys about, base, tasks, per_dataset, inverted"),
        ("about: x\nper_dataset: 0", r"set.yaml:2: `per_dataset` must be an integer of at least 1"),
        ("inverted: yes", r"set.yaml:1: `inverted` must be an integer of at least 0"),
        ("tasks: [captions]", r"set.yaml:1: `tasks` must be a list with at least one of caption, open_question"),
        ("about: !!python/object/apply:os.getcwd []", r"set.yaml:1: `about` must be a string"),
        ("base: nowhere", r"set.yaml: the base 'nowhere' does not exist; the sets are mine"),
        ("[]", r"set.yaml:1: must be a mapping"),
        ("about: {", r"set.yaml: not valid YAML"),
    ],
)
def test_an_invalid_set_file_is_an_error(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("pipelines.templates.sets.ROOT", tmp_path)
    make_set(tmp_path, "mine", text)
    with pytest.raises(TemplateError, match=message):
        read_set("mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{question}",
            "{questoin}",
            r"t.yaml:4: unknown field \{questoin\}; open_question allows answer, dataset, question",
        ),
        ("{question}", "{question.__class__}", r"t.yaml:4: unknown field \{question.__class__\}"),
        ("{question}", "{question!r}", r"t.yaml:4: unknown field"),
        ("{question}", "{question", r"t.yaml:4: .*brace"),
        ("{question} Be", "Be", r"t.yaml:4: template 'one' lacks question"),
        ('"{answer}"', '""', r"t.yaml:5: `assistant` must be a non-empty string"),
        ("    assistant", "    asistant", r"t.yaml:3: must have exactly the keys id, user, assistant; found"),
        ("open_question", "caption", r"t.yaml:1: is for task 'caption'"),
        ("templates:", "templates: {", r"t.yaml: not valid YAML"),
        (GOOD, "[]", r"t.yaml:1: must be a mapping"),
        (GOOD, "task: open_question\ntemplates: []\n", r"t.yaml:2: `templates` must be a list of at least one"),
        (GOOD, GOOD + GOOD.split("\n", 2)[2], r"t.yaml:6: the id 'one' is used twice"),
    ],
)
def test_an_invalid_file_is_an_error_that_names_file_and_line(tmp_path, old, new, message):
    read_templates(write(tmp_path, GOOD), "open_question")
    with pytest.raises(TemplateError, match=message):
        read_templates(write(tmp_path, GOOD.replace(old, new)), "open_question")


def test_template_directories_contain_only_yaml_and_jinja_files():
    others = [p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file() and p.suffix not in (".yaml", ".jinja")]
    assert others == [Path("README.md")]
