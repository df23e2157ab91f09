import pytest

from pipelines import sources
from pipelines.templates import ROOT, TemplateError, load_templates, read_templates, template_file

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


def test_every_source_has_fine_templates():
    for source in sources.SOURCES.values():
        assert load_templates("fine", source.name, source.task)


def test_instruction_tuning_always_instructs_and_pretraining_never():
    for source in sources.SOURCES.values():
        assert all(template.user.strip() for template in load_templates("fine", source.name, source.task))
        if source.task == "caption":
            assert [template.user for template in load_templates("plain", source.name, source.task)] == [""]


def test_ids_are_unique_over_a_set():
    ids = [t.id for s in sources.SOURCES.values() for t in load_templates("fine", s.name, s.task)]
    assert len(ids) == len(set(ids))


def test_the_file_of_the_dataset_wins_over_that_of_its_task(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.templates.ROOT", tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "open_question.yaml").write_text(GOOD)
    assert template_file("set", "vqav2", "open_question").stem == "open_question"
    (tmp_path / "set" / "vqav2.yaml").write_text(GOOD)
    assert template_file("set", "vqav2", "open_question").stem == "vqav2"
    with pytest.raises(TemplateError, match=r"template set 'none' has nothing for dataset vqav2.*the sets are set"):
        template_file("none", "vqav2", "open_question")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{question}", "{questoin}", r"t.yaml:4: unknown field \{questoin\}; open_question has answer, question"),
        ("{question}", "{question.__class__}", r"t.yaml:4: unknown field \{question.__class__\}"),
        ("{question}", "{question!r}", r"t.yaml:4: unknown field"),
        ("{question}", "{question", r"t.yaml:4: .*brace"),
        ("{question} Be", "Be", r"t.yaml:4: template 'one' lacks question"),
        ('"{answer}"', '""', r"t.yaml:5: `assistant` must be a text that is not empty"),
        ("    assistant", "    asistant", r"t.yaml:3: must have exactly the keys id, user, assistant; found"),
        ("open_question", "caption", r"t.yaml:1: is for task 'caption'"),
        ("templates:", "templates: {", r"t.yaml: not valid YAML"),
        (GOOD, "[]", r"t.yaml:1: must be a mapping"),
        (GOOD, "task: open_question\ntemplates: []\n", r"t.yaml:2: `templates` must be a list of at least one"),
        (GOOD, GOOD + GOOD.split("\n", 2)[2], r"t.yaml:6: the id 'one' stands twice"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_line(tmp_path, old, new, message):
    read_templates(write(tmp_path, GOOD), "open_question")
    with pytest.raises(TemplateError, match=message):
        read_templates(write(tmp_path, GOOD.replace(old, new)), "open_question")


def test_all_template_files_are_text_only():
    assert not [p for p in ROOT.rglob("*") if p.is_file() and p.suffix not in (".yaml", ".jinja")]
