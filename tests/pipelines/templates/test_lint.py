"""Every kind of fault is reported at its line, and the project's own sets have none."""

import re

import pytest

from pipelines.sources import SOURCES
from pipelines.templates.lint import lint
from pipelines.templates.sets import TemplateError, set_names

DATASETS = {source.name: source.task for source in SOURCES.values()}
TASKS = "[caption, open_question, multiple_choice, referring]"


def templates(task, *pairs):
    lines = [f"task: {task}", "templates:"]
    for number, (user, assistant) in enumerate(pairs):
        lines += [f"  - id: mine.{task}.{number}", f'    user: "{user}"', f'    assistant: "{assistant}"']
    return "\n".join(lines) + "\n"


MC = "{context}{question}\\n{options}"
GOOD = {
    "set.yaml": f"tasks: {TASKS}\nper_dataset: 1\n",
    "caption.yaml": templates("caption", ("Describe this.", "{caption}")),
    "open_question.yaml": templates("open_question", ("{question} Be brief.", "{answer}")),
    "multiple_choice.yaml": templates("multiple_choice", (MC, "{letter}")),
    "referring.yaml": templates("referring", ('Find \\"{phrase}\\".', "{box}"), ("Name {box}.", "{phrase}")),
}


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Lints a set `mine` that is valid except for the given files; None removes a file."""
    monkeypatch.setattr("pipelines.templates.sets.ROOT", tmp_path)
    monkeypatch.setattr("pipelines.templates.lint.ROOT", tmp_path)

    def found(files, datasets=DATASETS):
        (tmp_path / "mine").mkdir(exist_ok=True)
        for name, text in (GOOD | files).items():
            if text is not None:
                (tmp_path / "mine" / name).write_text(text)
        return [fault.replace(f"{tmp_path}/mine/", "") for fault in lint(["mine"], datasets)]

    return found


def test_the_sets_of_the_project_have_no_faults():
    assert lint(set_names(), DATASETS) == []


def test_a_valid_set_has_no_faults(faults):
    assert faults({}) == []


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (" {question} Be brief.", "has leading or trailing whitespace"),
        ("{question} Be brief.\\n", "has leading or trailing whitespace"),
        ("{question}  Be brief.", "double spaces"),
        ("Be brief. \\n{question}", "spaces at the start or end of a line"),
        ("Be\\tbrief. {question}", "tabs"),
        ("Be brief.\\n\\n\\n{question}", "two consecutive empty lines"),
        ("Be brief : {question}", "space before a punctuation mark"),
        ("Be be brief. {question}", "repeats a word: 'Be be brief. {questi'"),
        ("{question} be brief. be kind.", "starts a sentence with a lower-case letter"),
        ("{question}Be brief.", "without a space before or after it"),
        ("Answer{question}", "without a space before or after it"),
        ("Asked {question}, be brief?", None),
        ("Answer {question}? Be brief.", "may end with its own"),
        ("{question} Be brief", "must end with punctuation"),
        ("{question} Be (brief.", "has different numbers of ( and )"),
        ('{question} Be \\"brief.', "odd number of quotation marks"),
        ("<image>\\n{question}", "contains the image token or a role name"),
        ("Human: {question}", "contains the image token or a role name"),
    ],
)
def test_faults_of_the_wording(faults, user, message):
    found = faults({"open_question.yaml": templates("open_question", (user, "{answer}"))})
    if message is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith("open_question.yaml:4: the user text ")
        assert message in found[0]


@pytest.mark.parametrize(
    ("task", "pairs", "messages"),
    [
        ("open_question", [("{question} {answer}", "Yes.")], ["4: the assistant text has no field"]),
        ("open_question", [("{question} Is it {answer}?", "{answer}")], ["4: {answer} is in both texts"]),
        ("open_question", [("{dataset}: {question}", "{dataset}: {answer}")], []),
        ("caption", [("{caption}", "A caption.")], ["4: the assistant text has no field"]),
        ("multiple_choice", [("{context}{question}", "{letter}")], ["4: {letter} is meaningless"]),
        ("multiple_choice", [("{context}{question}", "{answer}")], []),
        ("multiple_choice", [(MC + "\\nIs it {letter}?", "{answer}")], ["4: {letter} and {answer} are in different"]),
        ("multiple_choice", [("{question}\\n{options}", "{letter}")], ["4: the user text lacks {context}"]),
        (
            "multiple_choice",
            [("{context}\\n{question}\\n{options}", "{letter}")],
            ["4: the user text has whitespace after"],
        ),
        (
            "referring",
            [("Find {phrase}", "{box}"), ("At {box}, what?", "{phrase}")],
            ["7: the user text has a comma"],
        ),
        ("open_question", [("{question}", "{answer}")] * 2, ["1: has 2 templates", "7: the user text is the same as"]),
        ("open_question", [("It is {answer}.", "{question}")], ["1: has 1 templates that ask for the question; set"]),
        (
            "referring",
            [("Find {phrase}", "{box}")],
            ["1: has 1 templates; ", "1: has 0 templates that ask for the phr"],
        ),
        ("referring", [("Find {phrase}", "{box}"), ("Box {phrase}", "{box}")], ["1: has 0 templates that ask for the"]),
    ],
)
def test_faults_of_fields_and_template_counts(faults, task, pairs, messages):
    found = faults({f"{task}.yaml": templates(task, *pairs)})
    assert len(found) == len(messages)
    for fault, message in zip(sorted(found), sorted(messages), strict=True):
        assert fault.startswith(f"{task}.yaml:{message}")


def test_conversations_are_not_inverted(faults):
    found = faults({"conversation.yaml": templates("conversation", ("{assistant}", "{user}"))})
    assert found == ["conversation.yaml:4: {assistant} must be in the assistant text: conversations are not inverted"]


def test_inverted_templates_are_counted(faults):
    """One of four templates is inverted. Half of four referring templates ask for a box; one of these is inverted."""
    plain = [("A {question}", "{answer}"), ("B {question}", "{answer}"), ("C {question}", "{answer}")]
    captions = [(f"{letter}?", "{caption}") for letter in "ABCD"]
    choices = [(f"{letter}\\n{MC}", "{letter}") for letter in "ABC"]
    files = {
        "set.yaml": f"tasks: {TASKS}\nper_dataset: 4\ninverted: 1\n",
        "caption.yaml": templates("caption", *captions),
        "open_question.yaml": templates("open_question", *plain, ("Why {answer}", "{question}")),
        "multiple_choice.yaml": templates("multiple_choice", *choices, ("{context}Why {answer}", "{question}")),
        "referring.yaml": templates(
            "referring", ("Find {phrase}", "{box}"), *((f"{x} {{box}}", "{phrase}") for x in "ABC")
        ),
    }
    assert faults(files) == []
    files["open_question.yaml"] = templates("open_question", *plain, ("D {question}", "{answer}"))
    assert faults(files) == ["open_question.yaml:1: has 0 templates that ask for the question; set.yaml requires 1"]


def test_file_names_must_be_those_of_datasets_or_tasks(faults, tmp_path):
    text = GOOD["open_question.yaml"].replace("mine.", "mydata.")
    (fault,) = faults({"mydata.yaml": text})
    assert re.match(r"mydata.yaml:1: must be named after a dataset or a task; the known names .*vqav2.*caption", fault)
    assert faults({}, DATASETS | {"mydata": "open_question"}) == [], "a dataset of a recipe is a valid name"
    (fault,) = faults({}, DATASETS | {"mydata": "caption"})
    assert fault == "mydata.yaml:1: is for task 'open_question', but the dataset's is 'caption'"
    (fault,) = faults({"notes.txt": "…"}, DATASETS | {"mydata": "open_question"})
    assert fault == "notes.txt:1: is not a template file: a set is a directory of .yaml files"


def test_every_dataset_must_have_a_template(faults, tmp_path):
    found = faults({"referring.yaml": None})
    assert len(found) == 4
    assert all("'mine' has no templates for dataset " in fault for fault in found)
    (tmp_path / "ground").mkdir()
    (tmp_path / "ground" / "referring.yaml").write_text(GOOD["referring.yaml"])
    assert faults({"referring.yaml": None, "set.yaml": GOOD["set.yaml"] + "base: ground\n"}) == []


def test_an_id_is_unique_across_all_sets(faults, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "caption.yaml").write_text(GOOD["caption.yaml"])
    (fault,) = faults({})
    assert fault == f"caption.yaml:3: the id 'mine.caption.0' is also used in {tmp_path}/other/caption.yaml"
    (fault,) = faults({"caption.yaml": GOOD["caption.yaml"].replace("id: mine", "id: My one")})
    assert fault == "caption.yaml:3: the id 'My one.caption.0' must consist of lower-case letters, digits and _ + . -"


def test_an_invalid_file_does_not_hide_other_faults(faults):
    found = faults({"caption.yaml": "task: {", "open_question.yaml": "task: open_question\ntemplates: []\n"})
    assert [fault.split(": ")[0] for fault in found] == ["caption.yaml", "open_question.yaml:2"]
    (fault,) = faults({"set.yaml": "base: 3"})
    assert fault == "set.yaml:1: `base` must be the name of a set"


def test_a_missing_set_is_an_error(faults):
    with pytest.raises(TemplateError, match="template set 'fein' does not exist; the sets are "):
        lint(["fein"], DATASETS)
