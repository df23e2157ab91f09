"""Each JSON dataset on a tiny file in its official layout, good rows and bad ones."""

import json

import pytest

from pipelines.sources import SourceError, get

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


def read(name, root):
    return [row for batch in get(name).read(root) for row in batch.to_pylist()]


def rejects(rows):
    return {row["row"]: row["reject"] for row in rows if row["reject"]}


def write(path, content):
    path.write_text(json.dumps(content))


def vqav2(tmp_path, questions, annotations):
    write(tmp_path / QUESTIONS, {"info": {}, "questions": questions, "license": {}})
    write(tmp_path / ANNOTATIONS, {"info": {}, "annotations": annotations})
    return read("vqav2", tmp_path)


def question(number, **changed):
    return {"image_id": 9, "question": f"What is {number}?", "question_id": number, **changed}


def annotation(number, **changed):
    answers = [{"answer": "no", "answer_confidence": "yes", "answer_id": 1}]
    return {"multiple_choice_answer": f"a{number}", "answers": answers, "question_id": number, **changed}


def test_vqav2_pairs_in_any_order(tmp_path):
    numbers = range(20)
    rows = vqav2(tmp_path, [question(n) for n in numbers], [annotation(n) for n in reversed(numbers)])
    assert [(r["row"], r["question"], r["answer"]) for r in rows] == [(n, f"What is {n}?", f"a{n}") for n in numbers]
    assert {row["image"] for row in rows} == {"COCO_train2014_000000000009.jpg"}


def test_vqav2_names_what_is_wrong(tmp_path):
    rows = vqav2(
        tmp_path,
        [
            question(0),
            question(1, question=" "),
            question(2),
            question(3, image_id="9"),
            {"image_id": 9, "question_id": 4},
            question(5),
            question(0),
            question(6),
            [],
        ],
        [annotation(0), annotation(1), annotation(2, multiple_choice_answer=""), annotation(3), annotation(4),
         annotation(6, multiple_choice_answer=None), annotation(7)],
    )  # fmt: skip
    assert rejects(rows) == {
        1: "empty_question",
        2: "empty_answer",
        3: "wrong_type",
        4: "missing_field",
        5: "unmatched_question",
        6: "duplicate_id",
        7: "wrong_type",
        8: "wrong_type",
        9: "unmatched_annotation",
    }
    assert rows[3]["detail"] == "image_id is '9', not int"
    assert rows[9]["detail"] == "no question has id 7"
    assert rows[9]["question"] is None


def test_vqav2_undecodable_text_costs_its_own_row_only(tmp_path):
    write(tmp_path / ANNOTATIONS, {"annotations": [annotation(0), annotation(1)]})
    content = json.dumps({"questions": [question(0, question="A cafe?"), question(1)]}).encode()
    (tmp_path / QUESTIONS).write_bytes(content.replace(b"cafe", b"caf\xe9"))
    rows = read("vqav2", tmp_path)
    assert rejects(rows) == {0: "not_utf8"}
    assert rows[0]["detail"] == r"question is 'A caf\udce9?'"


def test_vqav2_cut_off(tmp_path):
    vqav2(tmp_path, [question(0), question(1)], [annotation(0), annotation(1)])
    content = (tmp_path / ANNOTATIONS).read_bytes()
    (tmp_path / ANNOTATIONS).write_bytes(content[:-30])
    with pytest.raises(SourceError, match=rf"{ANNOTATIONS}: line 1 column \d+ \(character \d+\): .*cut off"):
        read("vqav2", tmp_path)


def test_aokvqa(tmp_path):
    good = {
        "split": "train", "image_id": 299207, "question_id": "a", "question": "What is worn?",
        "choices": ["hat", "scarf"], "correct_choice_idx": 1, "direct_answers": [], "rationales": [],
    }  # fmt: skip
    changes = (
        {"correct_choice_idx": 2},
        {"correct_choice_idx": "1"},
        {"choices": []},
        {"choices": None},
        {"question": ""},
        {"question_id": "a"},
    )
    bad = [{**good, "question_id": f"b{i}", **change} for i, change in enumerate(changes)]
    write(tmp_path / "aokvqa_v1p0_train.json", [good, *bad])
    rows = read("aokvqa", tmp_path)
    assert rows[0] == {
        "row": 0, "image": "train2017/000000299207.jpg", "reject": None, "detail": None, "question": "What is worn?",
        "choices": ["hat", "scarf"], "answer_index": 1, "context": None,
    }  # fmt: skip
    assert list(rejects(rows).values()) == [
        "answer_index_out_of_range", "wrong_type", "too_few_choices", "wrong_type", "empty_question", "duplicate_id",
    ]  # fmt: skip
    assert rows[1]["detail"] == "correct_choice_idx is 2, of 2 choices"


def expression(number, **changed):
    return {"file_name": f"{number}.jpg", "height": 50, "width": 100, "id": number, "caption": "left cup", **changed}


@pytest.mark.parametrize("annotations_first", [False, True])
def test_refcoco(tmp_path, annotations_first):
    images = [expression(n) for n in range(6)] + [expression(6, width=0), expression(7, caption=""), expression(8)]
    boxes = [
        [10, 10, 20, 20.5],
        [90, -10, 20, 20],  # sticks out
        [100, 0, 5, 5],
        [10, 10, 0, 5],
        [10, 10, 5],
        [10, 10, "5", 5],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
    ]
    boxed = [{"image_id": n, "id": 100 + n, "bbox": box, "area": 1.0} for n, box in enumerate(boxes)]
    content = {"info": [], "images": images, "annotations": boxed, "categories": [{"id": 1}]}
    write(tmp_path / "finetune_refcoco+_train.json", dict(sorted(content.items())) if annotations_first else content)
    rows = read("refcoco+", tmp_path)
    assert len(rows) == len(images)
    assert (rows[0]["image"], rows[0]["phrase"]) == ("0.jpg", "left cup")
    assert rows[0]["box"] == pytest.approx([0.1, 0.2, 0.3, 0.61])
    assert rows[1]["box"] == [0.9, 0.0, 1.0, 0.2]
    assert list(rejects(rows).values()) == [
        "box_outside_image", "box_empty", "wrong_type", "wrong_type", "bad_image_size", "empty_phrase",
        "unmatched_expression",
    ]  # fmt: skip


def dialogue(*values, image="1.jpg"):
    roles = ("human", "gpt")
    turns = [{"from": roles[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "1", "conversations": turns} | ({"image": image} if image else {})


def test_llava_placeholder_and_text_only(tmp_path):
    write(tmp_path / "b.json", [dialogue("Q?\n<image>", "A."), dialogue("No picture?", "No.", image=None)])
    write(tmp_path / "a.json", [dialogue("<image>\nQ?", "A.", "R?", "B."), dialogue("Q?", "A.")])
    rows = read("llava150k", tmp_path)
    first = {"user": "Q?", "assistant": "A."}
    assert [row["turns"] for row in rows] == [
        [first, {"user": "R?", "assistant": "B."}], [first], [first], [{"user": "No picture?", "assistant": "No."}],
    ]  # fmt: skip
    assert [row["image"] for row in rows] == ["1.jpg", "1.jpg", "1.jpg", None]


def test_llava_rejects(tmp_path):
    system = dialogue("Q", "A")
    system["conversations"][0]["from"] = "system"
    write(
        tmp_path / "conversation_58k.json",
        [
            dialogue("Q", "A", "R"),
            dialogue(),
            dialogue("Q", ""),
            dialogue("<image>\n", "A"),
            dialogue("<image>\nQ", "A", image=None),
            system,
            {"id": "1", "image": ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value": "Q"}] * 2},
            {"id": "1", "conversations": ["Q", "A"]},
            {"id": "1", "messages": []},
            None,
        ],
    )
    rows = read("llava150k", tmp_path)
    assert list(rejects(rows).values()) == [
        "odd_turns", "empty_conversation", "empty_answer", "empty_question", "missing_field", "wrong_role",
        "wrong_type", "wrong_type", "missing_field", "wrong_type",
    ]  # fmt: skip
    assert rows[5]["detail"] == "conversations[0].from is 'system', not 'human'"


def test_llava_refuses_the_merged_file_beside_its_parts(tmp_path):
    for name in ("llava_instruct_150k.json", "detail_23k.json"):
        write(tmp_path / name, [])
    with pytest.raises(SourceError, match=r"llava_instruct_150k\.json and parts of it \(detail_23k\.json\)"):
        get("llava150k").files(tmp_path)


def test_wrong_top_level(tmp_path):
    write(tmp_path / "a.json", {"rows": []})
    with pytest.raises(SourceError, match=r"a\.json: line 1 column 1 .*'\['"):
        read("llava150k", tmp_path)
