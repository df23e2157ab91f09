"""Rendering of annotations with templates into turns."""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pipelines.examples.instructify import instructify, raw_texts
from pipelines.schema import ANNOTATIONS
from pipelines.templates.sets import FIELDS, Template, load_templates

ROWS = {
    "caption": [{"caption": " a red circle "}],
    "open_question": [{"question": "What is {it}?", "answer": "a cat"}, {"question": "Why?", "answer": "so"}],
    "multiple_choice": [
        {"question": "Which?", "choices": ["red", "blue", "green", "grey"], "answer_index": 1, "context": None},
        {"question": "Who?", "choices": ["he", "she"], "answer_index": 0, "context": "A hint."},
    ],
    "referring": [{"phrase": "left man", "box": [0, 0.12345, 0.5, 1]}],
    "conversation": [
        {"turns": [{"user": "Hi", "assistant": "Hello"}, {"user": "And?", "assistant": "No"}]},
        {"turns": [{"user": "Bye", "assistant": "Bye"}]},
    ],
}


def batch(task, rows=None, first=10):
    rows = [{"row": first + i, "image": "i.jpg", **row} for i, row in enumerate(rows or ROWS[task])]
    return pa.RecordBatch.from_pylist(rows, ANNOTATIONS[task])


def render(task, templates, seed=0, dataset="some", **options):
    """Renders turns and converts their texts to lists."""
    turns = instructify(batch(task, **options), task, templates, dataset, seed)
    texts = ("user", "assistant", "template", "question", "answer")
    return dataclasses.replace(turns, **{name: getattr(turns, name).to_pylist() for name in texts})


def test_fields_are_inserted_at_their_placeholders():
    turns = render("open_question", [Template("t", "Q: {question} {{brief}}", "A: {answer}")])
    assert turns.user == ["Q: What is {it}? {brief}", "Q: Why? {brief}"]
    assert turns.assistant == ["A: a cat", "A: so"]
    assert turns.template == ["t", "t"]
    assert turns.row.tolist() == [10, 11]
    assert (turns.question, turns.answer) == (["What is {it}?", "Why?"], ["a cat", "so"])


def test_a_caption_needs_no_prompt():
    turns = render("caption", [Template("t", "", "{caption}")])
    assert (turns.user, turns.assistant) == ([""], ["a red circle"])


def test_the_letter_matches_the_correct_choice_and_the_shuffle_is_stable():
    template = [Template("t", "{context}{question}\n{options}", "{letter}. {answer}")]
    rows = ROWS["multiple_choice"] * 50
    turns = render("multiple_choice", template, rows=rows)
    for user, assistant, row in zip(turns.user, turns.assistant, rows, strict=True):
        assert assistant in user.split("\n")
        assert assistant.endswith(row["choices"][row["answer_index"]])
        assert user.startswith("A hint.\nWho?" if row["context"] else "Which?")
    assert len({a[0] for a in turns.assistant}) == 4
    single = render("multiple_choice", template, rows=rows[30:31], first=40)
    assert (single.user[0], single.assistant[0]) == (turns.user[30], turns.assistant[30])


def test_boxes_have_three_decimals():
    turns = render("referring", [Template("t", "{phrase}", "{box}")])
    assert turns.assistant == ["0.000,0.123,0.500,1.000"]


def test_a_conversation_row_yields_its_turns():
    turns = render("conversation", [Template("t", "{user}", "{assistant}")])
    assert turns.user == ["Hi", "And?", "Bye"]
    assert (turns.row.tolist(), turns.turn.tolist()) == ([10, 10, 11], [0, 1, 0])


def test_templates_of_every_task_can_use_the_dataset_name():
    for task in ROWS:
        fields = "".join(f"{{{name.lstrip('*')}}}" for name in FIELDS[task] if name.startswith("*"))
        turns = render(task, [Template("t", "{dataset}:", fields)], dataset="my {data}")
        assert set(turns.user) == {"my {data}:"}


@pytest.mark.parametrize(("dataset", "task"), [("gqa", "open_question"), ("refcoco", "referring")])
def test_the_choice_among_ten_templates_depends_only_on_seed_dataset_and_row(dataset, task):
    templates = load_templates("fine-10", dataset, task)
    rows = ROWS[task][:1] * 4000
    whole = render(task, templates, rows=rows).template
    assert render(task, templates, rows=rows[700:900], first=710).template == whole[700:900]
    counts = Counter(whole)
    assert len(counts) == 10
    assert all(320 < count < 480 for count in counts.values()), "400 expected, plus or minus four standard deviations"
    for other in (render(task, templates, rows=rows, seed=1), render(task, templates, rows=rows, dataset="other")):
        alike = sum(a == b for a, b in zip(whole, other.template, strict=True))
        assert 320 < alike < 480, "a different seed or dataset must give independent choices"


def test_each_turn_of_a_conversation_has_its_own_template():
    templates = [Template(str(i), "{user}", "{assistant}") for i in range(10)]
    rows = [{"turns": ROWS["conversation"][0]["turns"] * 10}] * 200
    chosen = np.reshape(render("conversation", templates, rows=rows).template, (200, 20)).tolist()
    assert all(len(set(row)) > 4 for row in chosen)
    assert render("conversation", templates, rows=rows[7:8], first=17).template == chosen[7]


@pytest.mark.parametrize("task", ROWS)
def test_raw_texts_equal_those_of_the_turns(task):
    name = {"caption": "coyo100m", "open_question": "vqav2", "multiple_choice": "aokvqa", "referring": "refcoco"}
    templates = load_templates("fine", name.get(task, "llava150k"), task)
    turns = render(task, templates)
    questions, answers = raw_texts(batch(task), task)
    assert (questions.to_pylist(), answers.to_pylist()) == (turns.question, turns.answer)
