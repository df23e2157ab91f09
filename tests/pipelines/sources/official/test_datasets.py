"""Each JSON dataset on a tiny file in its official layout, with good and bad rows."""

import json

import pytest

from pipelines.sources import SourceError, SourceOptions, get

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


def test_vqav2_rejects(tmp_path):
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


def test_vqav2_undecodable_text_rejects_only_its_row(tmp_path):
    write(tmp_path / ANNOTATIONS, {"annotations": [annotation(0), annotation(1)]})
    content = json.dumps({"questions": [question(0, question="A cafe?"), question(1)]}).encode()
    (tmp_path / QUESTIONS).write_bytes(content.replace(b"cafe", b"caf\xe9"))
    rows = read("vqav2", tmp_path)
    assert rejects(rows) == {0: "not_utf8"}
    assert rows[0]["detail"] == r"question is 'A caf\udce9?'"


def test_vqav2_truncated(tmp_path):
    vqav2(tmp_path, [question(0), question(1)], [annotation(0), annotation(1)])
    content = (tmp_path / ANNOTATIONS).read_bytes()
    (tmp_path / ANNOTATIONS).write_bytes(content[:-30])
    with pytest.raises(SourceError, match=rf"{ANNOTATIONS}: line 1 column \d+ \(character \d+\): .*truncated"):
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
    assert rows[1]["detail"] == "correct_choice_idx is 2, but there are 2 choices"


def expression(number, **changed):
    return {"file_name": f"{number}.jpg", "height": 50, "width": 100, "id": number, "caption": "left cup", **changed}


@pytest.mark.parametrize("annotations_first", [False, True])
def test_refcoco(tmp_path, annotations_first):
    images = [expression(n) for n in range(6)] + [expression(6, width=0), expression(7, caption=""), expression(8)]
    boxes = [
        [10, 10, 20, 20.5],
        [90, -10, 20, 20],  # extends beyond the image
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
    write(tmp_path / "b.json", [dialogue("Q?\n<image>", "A."), dialogue("No image?", "No.", image=None)])
    write(tmp_path / "a.json", [dialogue("<image>\nQ?", "A.", "R?", "B."), dialogue("Q?", "A.")])
    rows = read("llava150k", tmp_path)
    first = {"user": "Q?", "assistant": "A."}
    assert [row["turns"] for row in rows] == [
        [first, {"user": "R?", "assistant": "B."}], [first], [first], [{"user": "No image?", "assistant": "No."}],
    ]  # fmt: skip
    assert [row["image"] for row in rows] == ["1.jpg", "1.jpg", "1.jpg", None]


def test_llava_rejects(tmp_path):
    system = dialogue("Q", "A")
    system["conversations"][0]["from"] = "system"
    write(
        tmp_path / "conversation_58k.json",
        [
            dialogue("Q"),
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
        "odd_turns", "empty_conversation", "empty_answer", "empty_question", "missing_field", "system_message",
        "wrong_type", "wrong_type", "missing_field", "wrong_type",
    ]  # fmt: skip
    assert rows[5]["detail"] == "conversations[0].value has the role 'system'"


def test_llava_refuses_the_merged_file_together_with_its_parts(tmp_path):
    for name in ("llava_instruct_150k.json", "detail_23k.json"):
        write(tmp_path / name, [])
    with pytest.raises(SourceError, match=r"llava_instruct_150k\.json and parts of it \(detail_23k\.json\)"):
        get("llava150k").files(tmp_path)


def test_wrong_top_level(tmp_path):
    write(tmp_path / "a.json", {"rows": []})
    with pytest.raises(SourceError, match=r"a\.json: line 1 column 1 .*'\['"):
        read("llava150k", tmp_path)


def test_gqa(tmp_path):
    good = {"imageId": "n1", "question": "Is it red?", "answer": "no", "fullAnswer": "No, it is blue."}
    write(
        tmp_path / "train_balanced_questions.json", {"07": good, "08": {**good, "answer": " "}, "09": {"question": 1}}
    )
    rows = read("gqa", tmp_path)
    assert (rows[0]["image"], rows[0]["question"], rows[0]["answer"]) == ("n1.jpg", "Is it red?", "no")
    assert rejects(rows) == {1: "empty_answer", 2: "missing_field"}


def test_ocrvqa_yields_a_row_per_question_of_a_training_book(tmp_path):
    book = {"imageURL": "http://x/y/I/1.jpg", "questions": ["Who?", "What?"], "answers": ["She", ""], "split": 1}
    write(
        tmp_path / "dataset.json",
        {
            "0310": book,
            "0311": {**book, "split": 2},
            "0312": {**book, "answers": ["She"]},
            "0313": {**book, "imageURL": "http://[x"},
            "0314": {**book, "imageURL": "http://x/y.gif?a=b.png"},
        },
    )
    rows = read("ocrvqa", tmp_path)
    assert [row["image"] for row in rows if row["image"]] == ["0310.jpg", "0314.gif"]
    assert (rows[0]["question"], rows[0]["answer"]) == ("Who?", "She")
    assert rejects(rows) == {
        1: "empty_answer",
        2: "other_split",
        3: "unmatched_answers",
        4: "bad_address",
        6: "empty_answer",
    }


def test_scienceqa_with_and_without_image_and_hint(tmp_path):
    good = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None, "split": "train"}
    write(
        tmp_path / "problems.json",
        {
            "1": good,
            "2": {**good, "image": "image.png", "hint": "Look."},
            "3": {**good, "split": "test"},
            "4": {**good, "answer": 2},
        },
    )
    rows = read("scienceqa", tmp_path)
    assert [(row["image"], row["context"]) for row in rows[:2]] == [(None, None), ("train/2/image.png", "Look.")]
    assert rejects(rows) == {2: "other_split", 3: "answer_index_out_of_range"}


@pytest.mark.parametrize(
    ("statement", "relation", "expected"),
    [
        ("The dish is in this island.", "in", "Is the dish in this island?"),
        ("The cat that is red is on top of the car.", "on top of", "Is the cat that is red on top of the car?"),
        ("The cats are near the dish", "near", "Are the cats near the dish?"),
        ("The bowl contains the apple.", "contains", "Does the bowl contain the apple?"),
        ("The cake consists of the banana.", "consists of", "Does the cake consist of the banana?"),
        ("The car has as a part the wheel.", "has as a part", "Does the car have the wheel as a part?"),
        ("The car that has a dent contains the dog.", "contains", "Does the car that has a dent contain the dog?"),
        ("The scissors is beside the cup.", "beside", "Are the scissors beside the cup?"),
        ("The skis has as a part the boot.", "has as a part", "Do the skis have the boot as a part?"),
        ("The cat that is on the car is on the mat.", "on", "Is the cat that is on the car on the mat?"),
        ("The cat is on the mat that is on the floor.", "on", "Is the cat on the mat that is on the floor?"),
        ("Two cats are near the dish.", "near", "Are two cats near the dish?"),
        ("That is on the table.", "on", "Is that on the table?"),
        ("Rome is near the  river", "near", "Is Rome near the river?"),
        ("The cat is not on the car.", "on", "Is it true that the cat is not on the car?"),
        ("The cat can be under the car.", "under", "Is it true that the cat can be under the car?"),
        ("There is a cat on the mat.", "on", "Is it true that there is a cat on the mat?"),
        ("Paris lies on a river.", "beside", "Is it true that Paris lies on a river?"),
    ],
)
def test_vsr_statements_become_questions(tmp_path, statement, relation, expected):
    (tmp_path / "random").mkdir()
    link = "http://images.cocodataset.org/val2017/000000000001.jpg"
    row = {"caption": statement, "relation": relation, "image_link": link, "label": 1}
    lines = [row, {**row, "label": 0}, {**row, "label": 2}, {**row, "label": True}]
    (tmp_path / "random" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = read("vsr", tmp_path)
    assert [(r["question"], r["answer"]) for r in rows[:2]] == [(expected, "yes"), (expected, "no")]
    assert rows[0]["image"] == "val2017/000000000001.jpg"
    assert rejects(rows) == {2: "bad_label", 3: "wrong_type"}


def test_visual_genome_boxes_are_normalised_by_the_size_in_image_data(tmp_path):
    region = {"image_id": 1, "x": 80, "y": 60, "width": 160, "height": 600, "phrase": "a clock"}
    write(
        tmp_path / "region_descriptions.json",
        [
            {"id": 1, "regions": [region, {**region, "width": 0}, {**region, "image_id": 2}, {**region, "phrase": ""}]},
            {"id": 2},
            {"id": 3, "regions": [{**region, "image_id": 3}]},
        ],
    )
    url = "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"
    write(
        tmp_path / "image_data.json",
        [{"image_id": 1, "url": url, "width": 800, "height": 600}, {"image_id": 3, "url": url, "width": "8"}],
    )
    rows = read("visual_genome", tmp_path)
    assert (rows[0]["image"], rows[0]["phrase"]) == ("VG_100K_2/1.jpg", "a clock")
    assert rows[0]["box"] == [0.1, 0.1, 0.3, 1.0]  # clipped to the image
    assert rejects(rows) == {
        1: "box_empty",
        2: "unmatched_region",
        3: "empty_phrase",
        4: "missing_field",
        5: "bad_image_data",
    }


def test_sharegpt_is_text_only(tmp_path):
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    write(tmp_path / "sharegpt.json", [{"id": "a", "conversations": talk}, {"id": "b", "conversations": talk[1:]}])
    rows = read("sharegpt", tmp_path)
    assert (rows[0]["image"], rows[0]["turns"]) == (None, [{"user": "Hi", "assistant": "Hello"}])
    assert rejects(rows) == {1: "wrong_role"}


def chat(*contents, **fields):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)], **fields}


def test_conversations_in_the_layouts_of_several_trainers(tmp_path):
    (tmp_path / "deep").mkdir()
    lines = [
        chat("<image>\nQ?", "A.", images=["1.jpg"]),
        chat("<image>What differs from <image>?", "A.", "And <image>?", "B.", images=["1.jpg", "2.jpg", "3.jpg"]),
        chat([{"type": "image"}, {"type": "text", "text": "Q?"}], [{"type": "text", "text": "A."}], image="1.jpg"),
        {"conversations": [{"user": "Q?", "assistant": "A."}, {"user": "R?", "assistant": "B."}], "image": ["1", "2"]},
        chat("Q?", "A.", images=[], image=None),
        {**dialogue("R <image>?", "A."), "images": None},
    ]
    (tmp_path / "deep" / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write(tmp_path / "a.json", [dialogue("Q?\n<image>", "A.")])
    (tmp_path / "c.json").write_text("\n".join(map(json.dumps, lines[:1])))  # JSON Lines in a file called .json
    rows = read("llava", tmp_path)
    questions = [[turn["user"] for turn in row["turns"]] for row in rows]
    assert questions == [
        ["Q?"], ["Q?"], ["Q?"], ["<image>What differs from <image>?", "And <image>?"], ["Q?"], ["Q?", "R?"], ["Q?"],
        ["R <image>?"],
    ]  # fmt: skip
    assert [[row["image"], *(row["more_images"] or [])] for row in rows] == [
        ["1.jpg"], ["1.jpg"], ["1.jpg"], ["1.jpg", "2.jpg", "3.jpg"], ["1.jpg"], ["1", "2"], [None], ["1.jpg"],
    ]  # fmt: skip


def test_conversations_that_cannot_be_used(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    bad = {
        "image_count_mismatch": chat("<image> and <image>", "A.", images=["1.jpg"]),
        "missing_field": chat("See <image>.", "A."),
        "system_message": {"messages": [system, *chat("Q?", "A.")["messages"]]},
        "two_picture_fields": chat("Q?", "A.", image="1.jpg", images=["2.jpg"]),
        "image_address": chat("Q?", "A.", image="data:image/png;base64,AAAA"),
        "wrong_type": chat([{"type": "video"}], "A."),
        "wrong_role": {"messages": chat("Q?", "A.")["messages"][::-1]},
        "empty_field": chat("Q?", "A.", images=[" "]),
        "odd_turns": chat("Q?"),
        "empty_question": chat("<image>", "A.", images=["1.jpg"]),
    }
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, bad.values())))
    assert list(rejects(read("llava", tmp_path)).values()) == list(bad)


def test_options_that_a_source_does_not_take(tmp_path):
    write(tmp_path / "a.json", [dialogue("Q?", "A.")])
    write(tmp_path / "b.json", [dialogue("R?", "A.")])
    only = get("llava", SourceOptions(files="b.*"))
    assert [path.name for path in only.files(tmp_path)] == ["b.json"]
    with pytest.raises(SourceError, match="gqa reads only its official files"):
        get("gqa", SourceOptions(files="b.*"))
    for files in ("../*.json", "/tmp/*.json", ""):
        with pytest.raises(ValueError, match="files"):
            SourceOptions(files=files)
    with pytest.raises(SourceError, match=r"files: \*\*x is not a valid glob pattern"):
        get("llava", SourceOptions(files="**x")).files(tmp_path)
