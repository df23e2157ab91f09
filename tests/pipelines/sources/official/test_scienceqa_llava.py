"""ScienceQA in LLaVA's layout: prompts and answers are parsed, and the problems equal those of the official file."""

import json
from pathlib import Path

import pytest

from pipelines.images.table import images_table
from pipelines.sample_corpus import write_sample
from pipelines.sources import get

FILE = "llava_train_QCM-LEPA.json"


def read(name: str, root: Path) -> list[dict]:
    return [row for batch in get(name).read(root) for row in batch.to_pylist()]


def rejects(rows: list[dict]) -> dict[int, str]:
    return {row["row"]: row["reject"] for row in rows if row["reject"]}


def write(root: Path, entries: list[dict]) -> None:
    (root / FILE).write_text(json.dumps(entries))


def llava_problem(number, prompt, answer="###\nANSWER: B.", image=None):
    messages = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "conversations": messages} | ({"image": image} if image else {})


def test_prompts_and_answers_are_parsed(tmp_path):
    prompts = [
        "Which?\nContext: N/A\nOptions: (A) a (B) b",
        "Which\nof two?\nContext: Read.\nOptions: in brackets (A)\nOptions: (A) a (b) c (B) pathos (emotion)\n<image>",
        "<image>\nQuestion: Which?\nContext: N/A\nOptions: (A) Dear Ann,\nBye (B) Dear ann, (C) c",
    ]
    answers = [
        "###\nANSWER: B.",
        "LECTURE: Ann\n###\nANSWER: C.\nSOLUTION: b\n###\nANSWER: B.",
        "SOLUTION: c\n###\nANSWER: C.",
    ]
    images = [None, "2/image.png", "3/image.png"]
    rows = [llava_problem(i, *row) for i, row in enumerate(zip(prompts, answers, images, strict=True))]
    write(tmp_path, rows)
    parsed = [
        [r["image"], r["question"], r["context"], r["choices"], r["answer_index"]]
        for r in read("scienceqa_llava", tmp_path)
    ]
    assert parsed == [
        [None, "Which?", None, ["a", "b"], 1],
        ["2/image.png", "Which\nof two?", "Read.\nOptions: in brackets (A)", ["a (b) c", "pathos (emotion)"], 1],
        ["3/image.png", "Which?", None, ["Dear Ann,\nBye", "Dear ann,", "c"], 2],
    ]


@pytest.mark.parametrize(
    ("prompt", "answer", "reject"),
    [
        ("Which?\nContext: N/A", "###\nANSWER: A.", "bad_prompt"),
        ("Which?\nOptions: (A) a (B) b", "###\nANSWER: A.", "bad_prompt"),
        ("Context: N/A\nOptions: (A) a (B) b", "###\nANSWER: A.", "bad_prompt"),
        ("\nContext: N/A\nOptions: (A) a (B) b", "###\nANSWER: A.", "bad_prompt"),
        ("Question: \nContext: N/A\nOptions: (A) a (B) b", "###\nANSWER: A.", "empty_question"),
        ("Which?\nContext: N/A\nOptions: a, b", "###\nANSWER: A.", "bad_prompt"),
        ("Which?\nContext: N/A\nOptions: (A) see (B) there (B) b", "###\nANSWER: A.", "bad_prompt"),
        ("Which?\nContext: N/A\nOptions: (A) a", "###\nANSWER: A.", "too_few_choices"),
        ("Which?\nContext: N/A\nOptions: (A) (B) b", "###\nANSWER: A.", "empty_choice"),
        ("Which?\nContext: N/A\nOptions: (A) a (B) b", "###\nANSWER: C.", "answer_index_out_of_range"),
        ("Which?\nContext: N/A\nOptions: (A) a (B) b", "ANSWER: A.", "no_answer"),
        ("Which?\nContext: N/A\nOptions: (A) a (B) b", "The answer is A.", "no_answer"),
        ("Which?\nContext: N/A\nOptions: (A) a (B) b\n<image>", "###\nANSWER: A.", "missing_field"),
    ],
)  # fmt: skip
def test_malformed_entries_are_rejected(tmp_path, prompt, answer, reject):
    write(tmp_path, [llava_problem(1, prompt, answer)])
    assert rejects(read("scienceqa_llava", tmp_path)) == {0: reject}


def test_entries_with_several_turns_are_rejected(tmp_path):
    problem = llava_problem(1, "Which?\nContext: N/A\nOptions: (A) a (B) b")
    write(
        tmp_path,
        [problem, problem, {**problem, "id": "2", "conversations": 2 * problem["conversations"]}],
    )
    assert rejects(read("scienceqa_llava", tmp_path)) == {1: "duplicate_id", 2: "several_turns"}


def test_both_layouts_of_the_sample_hold_the_same_problems(tmp_path):
    write_sample(tmp_path, scenes=20, held_out=4, seed=0)
    assert_same_problems(read("scienceqa", tmp_path / "ScienceQA"), read("scienceqa_llava", tmp_path / "ScienceQA"))


def assert_same_problems(official: list[dict], llavas: list[dict]) -> None:
    """Compares question, choices, answer and context of the usable rows, and images below their different roots."""
    official, llavas = ([row for row in rows if not row["reject"]] for rows in (official, llavas))
    official = official[: len(llavas)]  # the broken rows of the sample are at the end
    assert len(llavas) > 10
    for row, other in zip(official, llavas, strict=True):
        assert [row[field] for field in ("question", "choices", "answer_index", "context")] == [
            other[field] for field in ("question", "choices", "answer_index", "context")
        ]
        assert (row["image"] or "train/").removeprefix("train/") == (other["image"] or "")


def llava_entry(pid: str, problem: dict) -> dict:
    """Returns an entry as LLaVA's script builds it: "  " becomes " ", and "Question: " is removed."""
    letters = "ABCDE"
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(letters, problem["choices"], strict=False))
    prompt = f"{problem['question']}\nContext: {problem['hint'].strip() or 'N/A'}\nOptions: {options}\n"
    answer = "".join(
        f"{title}: {problem[field]}\n"
        for title, field in (("LECTURE", "lecture"), ("SOLUTION", "solution"))
        if problem[field].strip()
    )
    answer += f"###\nANSWER: {letters[problem['answer']]}."
    prompt, answer = (text.replace("  ", " ").strip() for text in (prompt, answer))
    has_image = problem["image"] is not None
    messages = [("human", f"{prompt}\n<image>" if has_image else prompt), ("gpt", answer)]
    entry = {"id": pid, "conversations": [{"from": role, "value": text} for role, text in messages]}
    return entry | ({"image": f"{pid}/{problem['image']}"} if has_image else {})


@pytest.mark.realdata
def test_real_problems_in_llavas_layout(realdata, tmp_path):
    problems = json.loads((realdata / "corpus" / "ScienceQA" / "problems.json").read_text())
    entries = [llava_entry(pid, problem) for pid, problem in problems.items()]
    write(tmp_path, entries)
    rows = read("scienceqa_llava", tmp_path)
    images = [row["image"] for row in rows if row["image"]]
    assert (len(rows), rejects(rows), len(images)) == (300, {}, 150)
    images_root = realdata / "corpus" / "ScienceQA" / "images" / "train"
    assert images_table(images_root, images)["reject"].null_count == 150
    assert_same_problems(read("scienceqa", realdata / "corpus" / "ScienceQA"), rows)
