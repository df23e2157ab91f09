"""MME: the published scores, scores computed by hand, and valid and invalid official files."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from model.evaluation.asking.predictions import load
from model.evaluation.benchmarks import mme
from model.evaluation.interface import Answer, EvaluationError, Predictions, Question
from pipelines.core.errors import ImageRefError


@pytest.mark.realdata
def test_published_scores_are_reproduced(realdata):
    folder = realdata / "scorers" / "mme"
    scores = mme.score(load(mme.BENCHMARK, folder / "llava-v1.5-13b.jsonl", folder / "ground_truth"))
    assert (round(scores["perception"], 2), round(scores["cognition"], 2)) == (1531.32, 295.36)
    assert (scores["perception_of"], scores["cognition_of"], scores["total_of"]) == (2000, 800, 2800)
    assert (scores["num_questions"], scores["num_scored"], scores["missing_tasks"]) == (2374, 2374, [])
    assert scores["tasks"]["position"]["score"] == pytest.approx(100 * 46 / 60 + 100 * 17 / 30)
    assert scores["other_answers"]["count"] == 11  # "Church", "Portrait", …
    assert "incomplete_images" not in scores


@pytest.mark.realdata
def test_a_results_folder_and_json_lines_have_equal_scores(realdata, tmp_path):
    folder = realdata / "scorers" / "mme"
    predictions = load(mme.BENCHMARK, folder / "llava-v1.5-13b.jsonl", folder / "ground_truth")
    for file in (folder / "ground_truth").iterdir():
        rows = []
        for line in file.read_text().splitlines():
            image, question, truth = line.split("\t")
            text = question.removesuffix("Please answer yes or no.").strip()
            answer = predictions.answers[f"{file.stem}/{Path(image).stem}/{' '.join(text.split())}"].text
            rows.append(f"{image}\t{question}\t{truth}\t{answer}\n")
        (tmp_path / file.name).write_text("".join(rows))
    assert mme.score(load(mme.BENCHMARK, tmp_path)) == mme.score(predictions)
    assert mme.score(load(mme.BENCHMARK, tmp_path, folder / "ground_truth")) == mme.score(predictions)


def _folder(path: Path, **tasks: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for task, text in tasks.items():
        (path / f"{task}.txt").write_text(text)
    return path


COLOR = "1.jpg\tIs it red? Please answer yes or no.\tYes\n1.jpg\tIs it blue? Please answer yes or no.\tNo\n"
COUNT = "1.jpg\tIs there 1? Please answer yes or no.\tYes\n1.jpg\tAre there 2? Please answer yes or no.\tNo\n"


def _results(*answers: str) -> str:
    return "".join(f"{line}\t{answer}\n" for line, answer in zip(COLOR.splitlines(), answers, strict=True))


def test_accuracy_and_accuracy_plus_computed_by_hand(tmp_path):
    two = COLOR.replace("1.jpg", "2.jpg")
    results = "".join(
        f"{line}\t{answer}\n"
        for line, answer in zip((COLOR + two).splitlines(), ["Yes", "No", "Yes", "yes"], strict=True)
    )
    path = _folder(tmp_path, color=results, code_reasoning=_results("No", "No"))
    scores = mme.score(load(mme.BENCHMARK, path))
    expected = {"score": 125.0, "accuracy": 75.0, "accuracy_plus": 50.0, "num_scored": 4, "num_images": 2}
    assert scores["tasks"]["color"] == expected
    assert scores["tasks"]["code_reasoning"]["score"] == 50.0
    assert (scores["perception"], scores["cognition"], scores["total"]) == (125.0, 50.0, 175.0)
    assert (scores["perception_of"], scores["cognition_of"], scores["total_of"]) == (200, 200, 400)
    assert scores["accuracy"] == pytest.approx(400 / 6)
    assert scores["accuracy_plus"] == pytest.approx(100 / 3)
    assert len(scores["missing_tasks"]) == 12 and "existence" in scores["missing_tasks"]
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_sums_of_thirds_are_exact():
    """Six tasks with one of three images correct score 200/3 each, whose sum in floats would be inexact."""
    questions, answers = [], {}
    for task in mme.PERCEPTION[:6]:
        for image in "123":
            for text, truth in (("a?", "yes"), ("b?", "no")):
                key = f"{task}/{image}/{text}"
                groups = {"task": task, "image": f"{task}/{image}"}
                questions.append(Question(key, {"question": text}, truth, groups=groups))
                answers[key] = Answer(truth if image == "1" else "no" if truth == "yes" else "yes")
    scores = mme.score(Predictions(questions, answers))
    assert scores["perception"] == 400.0
    assert scores["cognition"] is None


@pytest.mark.parametrize(
    ("text", "parsed", "clear"),
    [
        ("Yes", "yes", True),
        ("yes.", "yes", True),
        ("NO", "no", True),
        ("No, there is none", "no", True),
        (" Yes", "yes", True),
        ("", "other", True),
        ("Church", "other", True),
        ("Norway", "no", False),  # unclear, because the official rule looks at four letters and not at words
        ("The answer is yes", "other", False),
        ("Not sure, yes", "no", False),
    ],
)
def test_answers_are_parsed_officially_and_unclear_ones_reported(text, parsed, clear):
    question = Question("color/1/?", {"question": "?"}, "yes", groups={"task": "color", "image": "color/1"})
    scores = mme.score(Predictions([question], {question.id: Answer(text)}))
    assert mme.parse(text) == parsed
    assert scores["other_answers"]["count"] == (parsed == "other")
    assert scores["unclear_answers"]["ids"] == ([] if clear else ["color/1/?"])


def test_an_image_with_an_unanswered_question_is_excluded_from_accuracy_plus():
    groups = {"task": "color", "image": "color/1"}
    questions = [Question(f"color/1/{text}", {"question": text}, "yes", groups=groups) for text in "ab"]
    answers = {"color/1/a": Answer("Yes"), "color/1/b": Answer(None, "image_missing: 1.jpg")}
    scores = mme.score(Predictions(questions, answers))
    assert scores["incomplete_images"] == {"count": 1, "ids": ["color/1"]}
    assert (scores["accuracy"], scores["accuracy_plus"], scores["perception"]) == (100.0, None, None)
    assert scores["not_asked"]["count"] == 1


def _png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


def test_both_release_layouts_and_the_ground_truth_have_equal_questions(tmp_path):
    release = tmp_path / "release"
    text = "Is it red? Please answer yes or no.\tYes\nIs it  blue? Please answer yes or no.\tNo\n\n"
    for folder in (release / "color", release / "artwork" / "questions_answers_YN"):
        folder.mkdir(parents=True)
        (folder / "1.txt").write_text(text)
    (release / "artwork" / "images").mkdir()
    (release / "eval_tool").mkdir()
    (release / "eval_tool" / "readme.txt").write_text("no questions\n")
    for image in ("color/1.png", "artwork/images/1.jpg"):
        (release / image).write_bytes(_png())
    questions = mme.read(release, release)
    assert [q.id for q in questions][:2] == ["artwork/1/Is it red?", "artwork/1/Is it blue?"]
    assert [q.truth for q in questions] == ["yes", "no", "yes", "no"]
    assert [q.images[0].name for q in questions[1:3]] == ["artwork/images/1.jpg", "color/1.png"]
    assert questions[0].images[0].read() == _png()
    truth = _folder(tmp_path / "truth", color=COLOR, artwork=COLOR)
    assert mme.read(release, None) == mme.read(truth, None)
    assert [q.images for q in mme.read(truth, release)] == [q.images for q in questions]


def test_missing_and_ambiguous_images(tmp_path):
    truth = _folder(tmp_path / "truth", color=COLOR)
    with pytest.raises(ImageRefError, match=r"color/1\.jpg") as caught:
        mme.read(truth, tmp_path)[0].images[0].read()
    assert caught.value.reason == "image_missing"
    (tmp_path / "color").mkdir()
    for name in ("1.jpg", "1.png"):
        (tmp_path / "color" / name).write_bytes(_png())
    with pytest.raises(EvaluationError, match=r"color/1\.jpg and color/1\.png both match the same question"):
        mme.read(truth, tmp_path)
    with pytest.raises(EvaluationError, match=r"image root .* is not a directory"):
        mme.read(truth, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"color": COLOR + COLOR}, "2 duplicate question ids: color/1/Is it red"),
        (
            {"color": "1.jpg\tIs it red?\n"},
            r"color\.txt:1: must have 3 tab-separated fields \(image, question, answer\), found 2",
        ),
        (
            {"color": COLOR + "1.jpg\tIs it?\tMaybe\n"},
            r"color\.txt:3: the correct answer must be Yes or No, found 'Maybe'",
        ),
        ({"color": "1.jpg\tPlease answer yes or no.\tYes\n"}, r"color\.txt:1: has no question"),
        ({"colour": COLOR}, "'colour' is not a task of MME; its tasks are existence, count"),
        ({"color": "\n"}, "contains no questions"),
        ({}, "contains neither task folders nor files such as existence.txt"),
    ],
)
def test_invalid_ground_truth_is_an_error(tmp_path, tasks, message):
    with pytest.raises(EvaluationError, match=message):
        mme.read(_folder(tmp_path, **tasks), None)


def test_a_release_with_a_task_without_questions_is_an_error(tmp_path):
    _folder(tmp_path / "color", **{"1": "Is it red?\tYes\nIs it blue?\tNo\n"})
    (tmp_path / "count").mkdir()
    with pytest.raises(EvaluationError, match=r"count: contains no \.txt file with questions, although .*color does"):
        mme.read(tmp_path, None)


def test_invalid_results_are_errors(tmp_path):
    truth = _folder(tmp_path / "truth", color=COLOR, count=COUNT)

    def refused(message: str, truth: Path | None = None, **tasks: str) -> None:
        results = tmp_path / message[:12]
        with pytest.raises(EvaluationError, match=message):
            load(mme.BENCHMARK, _folder(results, **tasks), truth)

    refused(r"color\.txt:3: 'color/1/Is it red\?' is answered twice", color=_results("Yes", "No") * 2)
    refused(r"must have 4 tab-separated fields \(image, question, truth, answer\), found 3", color=COLOR)
    other = _results("Yes", "No").replace("red", "green")
    refused(r"'color/1/Is it green\?' is not in .*truth: is it from another version", truth, color=other)
    flipped = _results("Yes", "No").replace("Yes\tYes", "No\tYes")
    refused(r"color\.txt:1: the correct answer is no, but yes in ", truth, color=flipped)
    scores = mme.score(load(mme.BENCHMARK, _folder(tmp_path / "part", color=_results("Yes", "")), truth))
    assert scores["without_answer"]["ids"] == ["count/1/Is there 1?", "count/1/Are there 2?"]
    assert scores["tasks"]["color"]["score"] == 50.0  # the official rule parses an empty answer as "other"
    assert scores["other_answers"]["ids"] == ["color/1/Is it blue?"]
    assert scores["tasks"]["count"]["accuracy"] is None and scores["perception"] is None


def _lines(path: Path, *rows: tuple[str, str, str]) -> Path:
    names = ("question_id", "prompt", "text")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def test_json_lines_are_matched_to_questions_by_prompt(tmp_path):
    nested = "1.jpg\tIs it 22? Please answer yes or no.\tNo\n1.jpg\tIs it 22?! Please answer yes or no.\tYes\n"
    truth = _folder(tmp_path / "truth", color=nested)
    path = tmp_path / "a.jsonl"
    _lines(
        path, ("color/images/1.png", "<image>\nIs it 22?!\nIn a word.", "Yes"), ("color/1.jpg", "Is it 22? Say.", "No")
    )
    predictions = load(mme.BENCHMARK, path, truth)
    assert {key: answer.text for key, answer in predictions.answers.items()} == {
        "color/1/Is it 22?!": "Yes",
        "color/1/Is it 22?": "No",
    }
    with pytest.raises(EvaluationError, match="require the ground-truth folder"):
        load(mme.BENCHMARK, path)
    _lines(path, ("color/1.jpg", "Is it 23?", "No"))
    with pytest.raises(
        EvaluationError, match=r"a\.jsonl:1: the ground truth has no question 'Is it 23\?' for color/1\.jpg"
    ):
        load(mme.BENCHMARK, path, truth)
    _lines(path, *[("color/1.jpg", "Is it 22?", "No")] * 2)
    with pytest.raises(EvaluationError, match=r"a\.jsonl:2: 'color/1/Is it 22\?' is answered twice"):
        load(mme.BENCHMARK, path, truth)
