"""MMBench's judge, the judge prompts of all benchmarks, and the sample files of judged and open benchmarks."""

import pytest
from support.judge_server import ask_judge, last, serving

from model.evaluation import benchmarks
from model.evaluation.benchmarks import mmbench
from model.evaluation.interface import Answer, Predictions, Question
from model.evaluation.judging.verdicts import load_judge_prompt
from pipelines.templates.sets import TemplateError

pytestmark = pytest.mark.usefixtures("judge_key")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("Letter: C", "C"),
        ("B. a dog", "B"),
        ("(A)", "A"),
        ("NONE", "NONE"),
        ("None of them fits.", None),
        ("none", "NONE"),
        ("D", None),
        ("A dog", None),
        ("The answer is B", None),
        ("", None),
    ],
)
def test_letters_are_parsed_from_replies(reply, verdict):
    assert mmbench.parse(reply, 3) == verdict


def test_the_judge_is_asked_only_about_answers_that_the_rule_does_not_match(tmp_path):
    questions = [Question(str(i), {"question": "?"}, "A", ("red", "blue")) for i in range(1, 6)]
    texts = ["A", "crimson", "no idea", "", "navy"]
    predictions = Predictions(questions, {q.id: Answer(t) for q, t in zip(questions, texts, strict=True)})
    by_rule = mmbench.score(predictions)
    assert by_rule["accuracy"] == 20 and by_rule["matched"] == {"rule": 1, "judge": 0, "neither": 4}
    assert by_rule["judge"].startswith("none")
    replies = {"crimson": "A", "no idea": "NONE", "navy": "B"}
    with serving(lambda body: replies[last(body).rpartition("Answer: ")[2].partition("\n")[0]]) as server:
        predictions = ask_judge(mmbench.BENCHMARK, predictions, server, tmp_path)
        assert len(server.requests) == 3
    scores = mmbench.score(predictions)
    assert scores["accuracy"] == 40 and scores["matched"] == {"rule": 1, "judge": 2, "neither": 2}
    assert scores["unmatched_answers"] == {"count": 2, "ids": ["3", "4"]}
    assert {key: mark.read for key, mark in mmbench.mark(predictions).items()} == {
        "1": "A", "2": "A", "3": None, "4": None, "5": "B",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mm_vet", "llava_bench", "mmbench"])
def test_judge_prompts_use_all_their_fields_and_no_others(name):
    fields = {
        "mm_vet": ("question", "truth", "answer"),
        "llava_bench": ("caption", "question", "reference", "answer"),
        "mmbench": ("question", "options", "answer"),
    }[name]
    system, user = load_judge_prompt(name).render({field: f"<{field}>" for field in fields})
    assert system["role"] == "system" and all(user["content"].count(f"<{field}>") == 1 for field in fields)
    with pytest.raises(TemplateError, match="it may use only question"):
        load_judge_prompt(name).render({"question": "x"})


@pytest.mark.parametrize("name", ["mm_vet", "llava_bench", "mmmu", "owleval"])
def test_sample_questions_are_read_with_their_images(judged_corpus, name):
    folder = {"mm_vet": "MM-Vet", "llava_bench": "LLaVA-Bench", "mmmu": "MMMU", "owleval": "OwlEval"}[name]
    images = {"mmmu": "", "owleval": "cases"}.get(name, "images")
    questions = benchmarks.get(name).read(judged_corpus / folder, judged_corpus / folder / images)
    assert len(questions) > 20
    assert all(image.read()[:2] == b"\xff\xd8" for question in questions for image in question.images)
    assert all(question.images and question.fields["question"] for question in questions)
