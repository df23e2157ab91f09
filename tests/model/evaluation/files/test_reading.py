"""Reading the official files of POPE and MMBench and the prompts, including invalid ones."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from model.evaluation.benchmarks import mmbench, pope
from model.evaluation.interface import EvaluationError, Question
from model.evaluation.prompts import Prompt, load_prompt
from pipelines.core.errors import ImageRefError
from pipelines.templates.sets import TemplateError


def _image(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def _pope(directory: Path, split: str, rows: list[dict]) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"coco_pope_{split}.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(**changes) -> dict:
    return {"question_id": 1, "image": "a.png", "text": "Is there a dog in the image?", "label": "yes"} | changes


def test_pope_reads_every_split_of_a_directory(tmp_path):
    _pope(tmp_path, "random", [_row(), _row(question_id=2, label="no")])
    _pope(tmp_path, "relation", [_row()])
    (tmp_path / "a.png").write_bytes(_image("red"))
    questions = pope.read(tmp_path, tmp_path)
    assert [q.id for q in questions] == ["random/1", "random/2", "relation/1"]
    assert [q.truth for q in questions] == ["yes", "no", "yes"]
    assert questions[0].images[0].read() == _image("red")
    assert [q.id for q in pope.read(tmp_path / "coco_pope_relation.json", None)] == ["relation/1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_row(), _row()], "1 duplicate question ids: random/1"),
        ([_row(label="maybe")], r"coco_pope_random\.json:1: field `label` must be 'yes' or 'no', found 'maybe'"),
        ([_row(), {"image": "a.png"}], r"coco_pope_random\.json:2: has no field `question_id`"),
        ([_row(image=3)], "field `image` has the wrong type, found 3"),
        ([], "contains no questions"),
    ],
)
def test_pope_invalid_rows_are_errors(tmp_path, rows, message):
    with pytest.raises(EvaluationError, match=message):
        pope.read(_pope(tmp_path, "random", rows), None)


def test_pope_invalid_files_are_errors(tmp_path):
    path = _pope(tmp_path, "random", [_row()])
    path.write_text(path.read_text() + '{"question_id": 2, "ima')
    with pytest.raises(EvaluationError, match=r"coco_pope_random\.json:2: not a complete JSON line"):
        pope.read(path, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="contains no file named like"):
        pope.read(tmp_path / "empty", None)
    with pytest.raises(EvaluationError, match="there is no such file"):
        pope.read(tmp_path / "coco_pope_popular.json", None)


HEADER = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "split"]


def _tsv(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    return path


def _choice(index: str, image: str, answer: str = "A", d: str = "") -> list[str]:
    return [index, "Which color?", "Look.", "red", "blue", "green", d, answer, "color", "attribute", image, "dev"]


def test_mmbench_reads_options_hints_and_shared_images(tmp_path):
    red, blue = (base64.b64encode(_image(color)).decode() for color in ("red", "blue"))
    rows = [_choice("5", red), _choice("1000005", "5", "B", d="gray"), _choice("6", blue), _choice("7", red)]
    questions = mmbench.read(_tsv(tmp_path / "dev.tsv", rows), None)
    assert [q.id for q in questions] == ["5", "1000005", "6", "7"]
    assert questions[0].options == ("red", "blue", "green")
    assert questions[1].options == ("red", "blue", "green", "gray")
    assert questions[0].fields["context"] == "Look.\n"
    assert questions[0].groups == {"category": "color", "l2_category": "attribute", "split": "dev"}
    assert [q.images[0].name for q in questions] == ["dev.tsv#5", "dev.tsv#5", "dev.tsv#6", "dev.tsv#5"]
    assert [q.images[0].read() for q in questions[:3]] == [_image("red"), _image("red"), _image("blue")]


def test_mmbench_invalid_images_are_errors_when_read(tmp_path):
    questions = mmbench.read(_tsv(tmp_path / "dev.tsv", [_choice("1", "*not base64*"), _choice("2", "")]), None)
    with pytest.raises(ImageRefError, match=r"dev\.tsv:2: not base64") as caught:
        questions[0].images[0].read()
    assert caught.value.reason == "image_corrupt"
    with pytest.raises(ImageRefError, match=r"dev\.tsv:3: the image field is empty"):
        questions[1].images[0].read()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_choice("x", "i")], r"dev\.tsv:2: field `index` must be an integer, found 'x'"),
        ([_choice("1", "i"), _choice("1", "i")], "1 duplicate question ids: 1"),
        ([_choice("1", "i", "D")], "field `answer` must be one of A, B, C, found 'D'"),
        ([_choice("1", "i")[:5]], "has 5 fields, but the header has 12"),
        ([_choice("1", "9")], "refers to the image of index 9, which is not in the file"),
        ([["1", "?", "", "red", "", "blue", "", "A", "c", "l", "i", "dev"]], "without gaps"),
        ([], "contains no questions"),
    ],
)
def test_mmbench_invalid_rows_are_errors(tmp_path, rows, message):
    with pytest.raises(EvaluationError, match=message):
        mmbench.read(_tsv(tmp_path / "dev.tsv", rows), None)


def test_mmbench_invalid_files_are_errors(tmp_path):
    with pytest.raises(EvaluationError, match="there is no such file"):
        mmbench.read(tmp_path / "no.tsv", None)
    with pytest.raises(EvaluationError, match="has no column 'image'"):
        mmbench.read(_tsv(tmp_path / "a.tsv", [["1", "?", "a", "b"]], ["index", "question", "A", "B"]), None)
    cut = tmp_path / "cut.tsv"
    cut.write_text("\t".join(HEADER) + '\n1\t"an open quote')
    with pytest.raises(EvaluationError, match="not a complete TSV file"):
        mmbench.read(cut, None)


def test_prompts_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("model.evaluation.prompts.ROOT", tmp_path)
    (tmp_path / "eval").mkdir()
    path = tmp_path / "eval" / "pope.yaml"
    with pytest.raises(TemplateError, match="is missing"):
        load_prompt("pope")
    for text, message in [
        ("prompt: [", "not valid YAML"),
        ("prompt: x", "exactly the keys prompt, max_new_tokens"),
        ("prompt: ''\nmax_new_tokens: 1", "`prompt` must be a non-empty string"),
        ("prompt: x\nmax_new_tokens: 0", "`max_new_tokens` must be a positive integer"),
        ("prompt: '{a'\nmax_new_tokens: 1", "write a literal brace as"),
        ("prompt: '{question.id}'\nmax_new_tokens: 1", "is not a plain field name"),
    ]:
        path.write_text(text)
        with pytest.raises(TemplateError, match=message):
            load_prompt("pope")


def test_prompts_render_options_and_refuse_unknown_fields():
    question = Question("7", {"question": "Which?"}, "A", ("red", "blue"))
    assert Prompt("{question}\n{options}", 1).render(question) == "Which?\nA. red\nB. blue"
    with pytest.raises(TemplateError, match=r"uses \{hint\}, but question 7 has only options, question"):
        Prompt("{hint}", 1).render(question)
