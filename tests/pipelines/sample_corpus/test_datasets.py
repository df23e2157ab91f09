"""The training files of the sample corpus have the official fields, and answers that match the images."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from pipelines.sample_corpus import write_sample
from pipelines.sample_corpus.world.facts import FOUR_WAY, open_questions, statements
from pipelines.sample_corpus.world.scenes import COLORS, Scene, SceneObject, distinct_scenes, render
from pipelines.sample_corpus.world.writing import subsample


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sample") / "corpus"
    write_sample(directory, scenes=48, held_out=16, seed=0)
    return directory


def rows_of(corpus: Path, name: str) -> dict[str, list]:
    """Returns the official lists of rows of a layout, each under a name."""
    if name == "vqav2":
        questions = json.loads((corpus / "VQAv2" / "v2_OpenEnded_mscoco_train2014_questions.json").read_text())
        annotations = json.loads((corpus / "VQAv2" / "v2_mscoco_train2014_annotations.json").read_text())
        return {"questions": questions["questions"], "annotations": annotations["annotations"]}
    if name == "aokvqa":
        return {"rows": json.loads((corpus / "A-OKVQA" / "aokvqa_v1p0_train.json").read_text())}
    if name.startswith("refcoco"):
        content = json.loads((corpus / "refcoco" / "annotations" / f"finetune_{name}_train.json").read_text())
        return {part: content[part] for part in ("images", "annotations", "categories")}
    if name == "gqa":
        rows = json.loads((corpus / "GQA" / "annotations" / "train_balanced_questions.json").read_text()).values()
        return {"rows": list(rows)} | {part: [row[part] for row in rows] for part in ("groups", "types", "annotations")}
    if name == "vsr":
        return {"rows": [json.loads(line) for line in (corpus / "VSR" / "random" / "train.jsonl").open()]}
    if name == "scienceqa":
        return {"rows": list(json.loads((corpus / "ScienceQA" / "problems.json").read_text()).values())}
    if name == "visual_genome":
        folder = corpus / "VisualGenome" / "metadata"
        described = json.loads((folder / "region_descriptions.json").read_text())
        regions = [region for entry in described for region in entry["regions"]]
        return {
            "entries": described,
            "regions": regions,
            "images": json.loads((folder / "image_data.json").read_text()),
        }
    if name == "sharegpt":
        return {"rows": json.loads((corpus / "Vicuna" / "sharegpt.json").read_text())}
    path = next(path for path in (corpus / "llava_instruct").glob("conversation*.json"))
    return {"rows": json.loads(path.read_text())}


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *((name, "corpus") for name in ("vqav2", "aokvqa", "refcoco", "refcoco+", "refcocog", "llava150k")),
        *((name, "corpus") for name in ("vsr", "scienceqa", "sharegpt")),
        *((name, "text") for name in ("gqa", "visual_genome")),
    ],
)
def test_rows_have_the_fields_of_real_rows(corpus, realdata, name, folder):
    ours, real = rows_of(corpus, name), rows_of(realdata / folder, name)
    for part, rows in real.items():
        assert {frozenset(row) for row in ours[part]} == {frozenset(row) for row in rows}


def test_gqa_answers_and_programs_agree(corpus):
    rows = rows_of(corpus, "gqa")["rows"][:-4]
    assert {row["types"]["structural"] for row in rows} == {"verify", "query", "choose"}
    for row in rows:
        words = row["question"].strip("?").split()
        named = row["annotations"]["question"]
        assert all(words[int(index)] in ("circle", "square", "triangle", "cross") for index in named)
        assert row["semanticStr"].split("->")[0] == f"select: {row['semantic'][0]['argument']}"
        image = Image.open(corpus / "GQA" / "images" / f"{row['imageId']}.jpg")
        if row["question"].startswith("What color"):
            (cell,) = named.values()
            x, y = 8 + 16 * (int(cell) % 2), 8 + 16 * (int(cell) // 2)
            assert color_at(image, x, y) == row["answer"]
            assert row["fullAnswer"] == f"The {words[-1]} is {row['answer']}."


def test_statements_of_every_relation_are_true_and_false_equally_often():
    rng = random.Random(0)
    drawn = [statement for scene in distinct_scenes(rng, 600) for statement in statements(scene, rng)]
    for relation in ("left of", "right of", "above", "below"):
        held = [statement.holds for statement in drawn if statement.relation == relation]
        assert len(held) > 100 and 0.4 < sum(held) / len(held) < 0.6
    left, right = SceneObject("red", "circle", "small"), SceneObject("blue", "square", "large")
    for seed in range(40):
        (only,) = statements(Scene((left, None, None, right)), random.Random(seed))
        true = {"left of", "above"} if only.one == left else {"right of", "below"}
        assert only.holds == (only.relation in true)


def test_covers_show_the_word_that_is_asked_for(corpus):
    books = [book for book in rows_of_books(corpus).items() if book[1]["title"]]
    assert len(books) >= 16
    for key, book in books:
        asked = dict(zip(book["questions"], book["answers"], strict=True))
        word, position = asked["What is the title of this book?"], asked["Where does the title stand?"]
        image = Image.open(corpus / "OCR-VQA" / "images" / f"{key}.jpg")
        x, y = 16 * (position.split()[1] == "right"), 16 * (position.split()[0] == "bottom")
        dark = sum(max(image.getpixel((x + i, y + j))) < 110 for i in range(16) for j in range(16))
        assert dark > 15
        (named,) = (question.rstrip("?").split()[-1] for question in book["questions"] if question.startswith("Is"))
        assert asked[f"Is the title {named}?"] == ("yes" if named == word else "no")


def rows_of_books(corpus: Path) -> dict[str, dict]:
    return json.loads((corpus / "OCR-VQA" / "dataset.json").read_text())


def test_regions_contain_their_shape_and_some_extend_beyond_the_image(corpus):
    rows = rows_of(corpus, "visual_genome")["regions"][:-4]
    for row in rows:
        image = Image.open(corpus / "VisualGenome" / "VG_100K" / f"{row['image_id']}.jpg")
        color = color_at(image, row["x"] + row["width"] // 2, row["y"] + row["height"] // 2)
        named = [name for name in COLORS if name in row["phrase"].split()]
        assert color is not None and named in ([color], [])
    assert any(row["x"] < 0 or row["y"] < 0 or row["x"] + row["width"] > 32 for row in rows)


def test_problems_have_an_image_or_describe_one(corpus):
    rows = rows_of(corpus, "scienceqa")["rows"][:-4]
    assert {row["image"] for row in rows} == {"image.png", None}
    assert all(row["image"] or "The picture shows" in row["hint"] for row in rows)
    assert {bool(row["hint"]) for row in rows if row["image"]} == {True, False}
    assert Image.open(corpus / "ScienceQA" / "images" / "train" / "1" / "image.png").format == "PNG"
    splits = json.loads((corpus / "ScienceQA" / "pid_splits.json").read_text())
    assert sorted(map(int, splits["train"] + splits["test"])) == list(range(1, len(rows) + 5))


def test_some_conversations_are_long(corpus):
    rows = rows_of(corpus, "sharegpt")["rows"][:-4]
    assert any(len(row["conversations"]) > 16 for row in rows) and any(len(row["conversations"]) <= 8 for row in rows)
    assert any(len(message["value"]) > 400 for row in rows for message in row["conversations"])


@pytest.mark.parametrize("number", [1, 5, 16, 40, 200, 20_000])
def test_layouts_of_a_subset_have_enough_images_in_a_small_corpus(number):
    images = list(range(number))
    for first in range(10):
        chosen = subsample(images, first)
        assert min(number, 16) <= len(chosen) <= max(31, number // 10)
    assert set(subsample(images, 1)) != set(subsample(images, 2)) or number < 32


def test_vqav2_pairs_by_question_id_and_has_ten_answers(corpus):
    files = rows_of(corpus, "vqav2")
    questions = {row["question_id"]: row for row in files["questions"]}
    assert len(questions) == len(files["questions"])
    for row in files["annotations"]:
        assert questions[row["question_id"]]["image_id"] == row["image_id"]
        answers = [answer["answer"] for answer in row["answers"]]
        assert len(answers) == 10
        assert max(sorted(set(answers)), key=answers.count) == row["multiple_choice_answer"]
        assert questions[row["question_id"]]["question"].lower().startswith(row["question_type"])


def test_boxes_contain_the_color_of_their_phrase(corpus):
    content = rows_of(corpus, "refcoco+")
    checked = 0
    for row, annotation in zip(content["images"][:-4], content["annotations"][:-4], strict=True):
        image = Image.open(corpus / "coco" / "images" / "train2014" / row["file_name"])
        x, y, width, height = annotation["bbox"]
        assert x >= 0 and y >= 0 and x + width <= row["width"] and y + height <= row["height"]
        assert color_at(image, x + width // 2, y + height // 2) == row["caption"].split()[1]
        assert (width > 9) == (row["caption"].split()[0] == "large")
        checked += 1
    assert checked > 40


def test_conversations_put_the_image_before_or_after_the_first_question(corpus):
    first = {row["conversations"][0]["value"] for row in rows_of(corpus, "llava150k")["rows"][:-4]}
    assert {text.startswith("<image>\n") for text in first} == {True, False}
    assert all(text.startswith("<image>\n") or text.endswith("\n<image>") for text in first)


def test_questions_about_a_scene_differ_and_answers_are_options():
    rng = random.Random(0)
    for scene in distinct_scenes(rng, 300):
        questions = open_questions(scene, rng)
        assert len({question.text for question in questions}) == len(questions)
        assert all(question.answer in question.options for question in questions)
        for ask in FOUR_WAY.values():
            assert all(len(question.options) >= 4 for question in ask(scene, rng))


def test_existence_questions_have_yes_and_no_equally_often():
    rng = random.Random(0)
    answers = [
        question.answer
        for scene in distinct_scenes(rng, 300)
        for question in open_questions(scene, rng)
        if question.text.startswith("Is there")
    ]
    assert abs(answers.count("yes") - answers.count("no")) < 0.1 * len(answers)


def test_relations_match_the_positions():
    left, right = SceneObject("red", "circle", "small"), SceneObject("blue", "square", "large")
    questions = {
        question.text: question.answer
        for seed in range(40)
        for question in open_questions(Scene((left, right, None, "GO")), random.Random(seed))
    }
    assert questions["Is the red circle left of the blue square?"] == "yes"
    assert questions["Is the blue square left of the red circle?"] == "no"
    assert questions["Is the red circle right of the blue square?"] == "no"
    assert questions["What is at the top left?"] == "red circle"
    assert questions["Which word is printed?"] == "GO"


def test_a_scene_is_drawn_at_its_positions(tmp_path):
    scene = Scene((None, SceneObject("blue", "square", "large"), "UP", None))
    scene_image = render(1, scene, random.Random(0))
    (tmp_path / "scene.jpg").write_bytes(scene_image.jpeg)
    image = Image.open(tmp_path / "scene.jpg")
    x, y, width, height = scene_image.boxes[1]
    assert (color_at(image, 24, 8), color_at(image, 8, 8), list(scene_image.boxes)) == ("blue", None, [1])
    assert (color_at(image, x + 1, y + 1), color_at(image, x + width - 2, y + height - 2)) == ("blue", "blue")
    dark = [(x, y) for x in range(16) for y in range(16, 32) if max(image.getpixel((x, y))) < 110]
    assert len(dark) > 15


def color_at(image: Image.Image, x: int, y: int) -> str | None:
    """Returns the color of a thing at a pixel, None for background or ink."""
    pixel = image.getpixel((x, y))
    near = {name: sum(abs(a - b) for a, b in zip(pixel, value, strict=True)) for name, value in COLORS.items()}
    name = min(near, key=lambda name: near[name])
    return name if near[name] < 90 else None
