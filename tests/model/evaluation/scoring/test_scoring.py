"""Scoring predictions of POPE and MMBench: the published scores, and the answers that scores must report."""

import json
from pathlib import Path

import pytest

from model.evaluation import benchmarks
from model.evaluation.asking.predictions import PredictionsFile, load
from model.evaluation.benchmarks import mmbench, pope
from model.evaluation.interface import Answer, EvaluationError, Predictions, Question
from model.evaluation.scoring.match_option import match_option


def _pope_files(realdata: Path) -> tuple[Path, Path, Path]:
    folder = realdata / "scorers" / "pope"
    return folder / "llava-v1.5-13b.jsonl", folder / "coco_v2023_2910", folder / "llava_pope_test.jsonl"


@pytest.mark.realdata
def test_pope_published_f1_is_reproduced(realdata):
    predictions = load(pope.BENCHMARK, *_pope_files(realdata))
    scores = pope.score(predictions)
    f1 = {split: round(values["f1"], 2) for split, values in scores["splits"].items()}
    assert f1 == {"adversarial": 84.46, "popular": 86.25, "random": 87.14}
    assert scores["num_scored"] == 8910
    assert scores["unclear_answers"]["count"] == 0
    assert scores["f1"] == pytest.approx((84.46 + 86.25 + 87.14) / 3, abs=0.005)


@pytest.mark.realdata
def test_mmbench_published_accuracies_are_reproduced(realdata):
    predictions = load(mmbench.BENCHMARK, realdata / "scorers" / "mmbench" / "llava-v1.5-13b.xlsx")
    scores = mmbench.score(predictions)
    assert (round(scores["accuracy"], 2), round(scores["circular"], 2)) == (75.43, 67.69)
    assert (scores["num_questions"], scores["num_rows"]) == (1176, 4377)
    assert scores["unmatched_answers"]["count"] == 0


@pytest.mark.realdata
def test_pope_predictions_for_other_files_are_refused(realdata, tmp_path):
    answers, truth, questions = _pope_files(realdata)
    with pytest.raises(EvaluationError, match="annotation folder"):
        load(pope.BENCHMARK, answers)
    with pytest.raises(EvaluationError, match="has only 0 rows of category 'random'"):
        load(pope.BENCHMARK, answers, truth / "coco_pope_popular.json", _only(questions, '"random"', tmp_path))
    with pytest.raises(EvaluationError, match="is it from another split"):
        load(pope.BENCHMARK, answers, truth, _only(questions, '"adversarial"', tmp_path))
    reordered = tmp_path / "reordered.jsonl"
    reordered.write_text("".join(reversed(questions.read_text().splitlines(keepends=True))))
    with pytest.raises(EvaluationError, match="different versions"):
        load(pope.BENCHMARK, answers, truth, reordered)
    cut = tmp_path / "cut.jsonl"
    cut.write_text(answers.read_text()[:1000])
    with pytest.raises(EvaluationError, match=r"cut\.jsonl:5: not a complete JSON line"):
        load(pope.BENCHMARK, cut, truth, questions)


@pytest.mark.realdata
def test_pope_missing_answers_are_reported_and_duplicates_refused(realdata, tmp_path):
    answers, truth, questions = _pope_files(realdata)
    some = tmp_path / "some.jsonl"
    some.write_text("".join(answers.read_text().splitlines(keepends=True)[1:]))
    predictions = load(pope.BENCHMARK, some, truth, questions)
    scores = pope.score(predictions)
    assert scores["without_answer"] == {"count": 1, "ids": ["adversarial/1"]}
    assert (scores["num_questions"], scores["num_scored"]) == (8910, 8909)
    duplicated = tmp_path / "duplicated.jsonl"
    duplicated.write_text(some.read_text() + some.read_text().splitlines()[-1] + "\n")
    with pytest.raises(EvaluationError, match="answered twice"):
        load(pope.BENCHMARK, duplicated, truth, questions)


def _only(path: Path, text: str, directory: Path) -> Path:
    out = directory / f"only-{text.strip(chr(34))}.jsonl"
    out.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if text in line))
    return out


@pytest.mark.parametrize(
    ("text", "parsed", "clear"),
    [
        ("Yes", "yes", True),
        ("yes", "yes", True),
        ("No", "no", True),
        ("no.", "no", True),
        ("No, there is no dog.", "no", True),
        ("There is not a dog in the image. Yes.", "no", False),
        ("Yes, a dog lies there.", "yes", True),
        ("", "yes", False),  # unclear, because the official rule parses everything that it does not recognise as yes
        ("NO", "yes", False),
        ("no!", "yes", False),
        ("a dog", "yes", False),
        ("Nothing", "yes", False),
    ],
)
def test_pope_answers_are_parsed_officially_and_unclear_ones_detected(text, parsed, clear):
    assert (pope.parse(text), pope.is_clear(text)) == (parsed, clear)


def _yes_no(truths: str, split: str = "random") -> list[Question]:
    return [
        Question(f"{split}/{i}", {"question": "?"}, {"y": "yes", "n": "no"}[truth], groups={"split": split})
        for i, truth in enumerate(truths)
    ]


def test_pope_metrics_computed_by_hand():
    questions = _yes_no("yynn") + _yes_no("yn", "relation")
    texts = ["Yes", "No", "Yes", "No", "maybe", "No"]
    scores = pope.score(Predictions(questions, {q.id: Answer(t) for q, t in zip(questions, texts, strict=True)}))
    expected = {"accuracy": 50, "precision": 50, "recall": 50, "f1": 50, "yes_ratio": 50}
    assert {k: scores["splits"]["random"][k] for k in expected} == expected
    assert {k: scores[k] for k in expected} == expected, "the mean excludes splits that are not official"
    assert scores["averaged_over"] == ["random"]
    assert scores["splits"]["relation"]["accuracy"] == 100
    assert scores["unclear_answers"] == {"count": 1, "ids": ["relation/0"]}


def test_pope_undefined_metrics_are_none():
    questions = _yes_no("yn")
    scores = pope.score(Predictions(questions, {q.id: Answer("No") for q in questions}))
    assert scores["precision"] is None
    assert (scores["recall"], scores["f1"], scores["accuracy"]) == (0, 0, 50)


def test_unanswered_questions_are_reported_and_unknown_answers_refused():
    questions = _yes_no("yyn")
    answers = {"random/0": Answer("Yes"), "random/1": Answer(None, "image_missing: a.jpg")}
    scores = pope.score(Predictions(questions, answers))
    assert scores["not_asked"] == {"count": 1, "errors": {"random/1": "image_missing: a.jpg"}}
    assert scores["without_answer"]["ids"] == ["random/2"]
    assert scores["splits"]["random"]["num_scored"] == 1
    with pytest.raises(EvaluationError, match=r"belong to no question \(popular/1\)"):
        pope.score(Predictions(questions, {"popular/1": Answer("Yes")}))
    with pytest.raises(EvaluationError, match="none of 3 questions can be scored"):
        pope.score(Predictions(questions, {"random/1": Answer(None, "image_missing: a.jpg")}))


OPTIONS = ("a red circle", "a dark red circle", "two dogs", "dogs")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (c). ", "C"),
        ("C. two dogs", "C"),
        ("The answer is A.", "A"),
        ("A", "A"),
        ("A is right", "A"),
        ("Two dogs!", "C"),
        ("It shows two dogs", "C"),
        ("I see a dark red circle", "B"),
        ("There are dogs", "D"),
        ("A dark red circle stands there", "B"),  # "A" is an article here, not a letter
        ("E", None),
        ("", None),
        ("A or B", None),
        ("a red circle and two dogs", None),
        ("hotdogs", None),
        ("nothing of that", None),
    ],
)
def test_free_form_answers_are_matched_by_rule(text, letter):
    assert match_option(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("C", "C|C++|C#|Java", "A"),
        ("C++", "C|C++|C#|Java", "B"),
        ("It is C#.", "C|C++|C#|Java", "C"),
        ("A-", "A|B|C", None),
        ("The grade is A-.", "A|A-|B", "B"),
        ("A/B", "red|blue", None),
        ("- B", "red|blue", "B"),
        ("**B**", "red|blue", "B"),
        ("2.5", "1|2|3|4", None),
        ("B. 2.5", "1|2.5", "B"),
        (".5", "5|0.5|50", "B"),
        ("10:30", "10|11|12", None),
        ("at 10:30am", "10|30 am|10:30 am", "C"),
        ("twenty-two", "one|two|three", None),
        ("twenty two", "two|twenty|twenty-two", "C"),
        ("two and a half", "two|half", None),
        ("two-thirds", "two|three", None),
        ("one hundred and two", "one|two|hundred", None),
        ("-5", "5|-5", "B"),
        ("It is −5.", "5|-5", "B"),
        ("-5", "5|10", None),
        ("5-10", "5|10", None),
        ("5 – 10", "5-10|5", "A"),
        ("2020-01-05", "1|5|2020", None),
        ("1,000", "1|1000|0|10", "B"),
        ("10 000", "10|000|10,000", "C"),
        ("1e5", "1|5|10", None),
        ("3/4", "1|2|3|4", None),
        ("1½", "1|1/2|1 1/2", "C"),
        ("$5", "$5|5%|5 kg|5 m", "A"),
        ("50 percent", "5%|50%", "B"),
        ("12.5 %", "5%|12%|50%", None),
        ("5cm", "5 cm|5 mm", "A"),
        ("It is 5 cm long", "5|6|7", "A"),
        ("3 cats", "1|2|3", "C"),
        ("3 cats", "2 dogs|3|4", None),
        ("x²", "x^2|x2", "A"),
        ("H₂O", "CO₂|H₂O", "B"),
        ("x>3", "x < 3|x > 3|x", "B"),
        ("×", "+|-|×", "C"),
        ("not red but blue", "red|blue", "B"),
        ("It isn't the red one", "red|blue", None),
        ("The answer is not B", "red|blue", None),
        ("There is no cat", "yes|no|a cat", None),
        ("No, there is a dog", "yes|no", "B"),
        ("The answer is no", "yes|no", "B"),
    ],
)
def test_numbers_and_names_with_symbols_are_whole_words(text, options, letter):
    assert match_option(text, options.split("|")) == letter


def _choice(index: int, truth: str, category: str) -> Question:
    return Question(str(index), {"question": "?"}, truth, ("red", "blue"), {"category": category})


def test_mmbench_circular_requires_every_copy_and_categories_are_separate():
    questions = [
        _choice(1, "A", "color"),
        _choice(1_000_001, "B", "color"),
        _choice(2, "A", "color"),
        _choice(1_000_002, "B", "color"),
        _choice(3, "A", "count"),
        _choice(1_000_003, "B", "count"),
    ]
    texts = ["A", "blue", "red.", "A", "green", "B"]
    scores = mmbench.score(Predictions(questions, {q.id: Answer(t) for q, t in zip(questions, texts, strict=True)}))
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert scores["circular"] == pytest.approx(100 / 3)
    assert scores["categories"]["color"] == {"accuracy": 100, "circular": 50, "num_questions": 2}
    assert scores["categories"]["count"] == {"accuracy": 0, "circular": 0, "num_questions": 1}
    assert scores["unmatched_answers"] == {"count": 1, "ids": ["3"]}
    assert scores["num_questions"] == 3
    plain = mmbench.score(Predictions(questions[::2], {q.id: Answer("A") for q in questions[::2]}))
    assert (plain["accuracy"], plain["circular"]) == (100, None)
    with pytest.raises(EvaluationError, match="have only rotated copies"):
        mmbench.score(Predictions(questions[1:2], {"1000001": Answer("A")}))


def test_mmbench_circular_excludes_unanswered_questions():
    questions = [_choice(1, "A", "color"), _choice(1_000_001, "B", "color")]
    answers = {"1": Answer("A"), "1000001": Answer(None, "image_corrupt: x")}
    scores = mmbench.score(Predictions(questions, answers))
    assert (scores["accuracy"], scores["circular"]) == (100, None)
    assert scores["not_asked"]["count"] == 1


def test_honeybees_predictions_are_scored_without_official_files(tmp_path):
    questions = _yes_no("yn")
    header = {"benchmark": "pope", "num_questions": 2, "settings": {"batch_size": 2}}
    path = tmp_path / "pope.predictions.jsonl"
    file = PredictionsFile(path, header, [q.id for q in questions], 2)
    with pytest.raises(EvaluationError, match="contains 0 of 2 answers: the evaluation is unfinished"):
        load(benchmarks.get("pope"), path)
    file.append(questions, [Answer("Yes"), Answer("Yes")])
    predictions = load(benchmarks.get("pope"), path)
    assert predictions.settings == {"batch_size": 2}
    assert pope.score(predictions)["accuracy"] == 50
    with pytest.raises(EvaluationError, match="contains predictions for pope, not for mmbench"):
        load(benchmarks.get("mmbench"), path)
    with pytest.raises(EvaluationError, match="no such predictions file"):
        load(benchmarks.get("pope"), tmp_path / "no.jsonl")
    with pytest.raises(EvaluationError, match=r"no benchmark 'mme2'; known: .*mmbench, .*pope"):
        benchmarks.get("mme2")


def test_scores_are_valid_json(tmp_path):
    questions = _yes_no("yn")
    scores = pope.score(Predictions(questions, {q.id: Answer("Yes") for q in questions}))
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@pytest.mark.parametrize("name", ["pope", "mme"])
def test_choices_include_both_spellings_of_yes_and_no_in_the_training_data(name):
    benchmark = benchmarks.get(name)
    question = Question("count/1/Is it?", {"question": "Is it?"}, "yes")
    choices = benchmark.choices_of(question)
    assert {"yes", "no", "Yes", "No"} == set(choices)  # VQAv2 uses lower case, LLaVA capitalises
