"""Every source on complete corpora: the sample corpus with its broken rows, and real official files."""

import re
from collections import Counter
from pathlib import Path

import pytest

from pipelines.images.table import images_table
from pipelines.sample_corpus import write_sample
from pipelines.schema import ANNOTATIONS
from pipelines.sources import SOURCES, get

# Defect in the sample corpus → the reject of the row or of its image.
BROKEN = {
    "missing image": "image_missing",
    "truncated JPEG": "image_corrupt",
    "not an image": "image_corrupt",
    "no image": "no_image",
    "image outside its root": "image_outside_root",
    "empty answer": "empty_answer",
    "empty caption": "empty_caption",
    "empty phrase": "empty_phrase",
    "empty question": "empty_question",
    "no annotation for this question": "unmatched_question",
    "correct_choice_idx out of range": "answer_index_out_of_range",
    "box without area": "box_empty",
    "box outside the image": "box_outside_image",
    "assistant speaks first": None,  # only the first answer is dropped
    "another split": "other_split",
    "a question without answer": "unmatched_answers",
    "label neither true nor false": "bad_label",
    "empty statement": "empty_question",
    "answer out of range": "answer_index_out_of_range",
    "no options": "bad_prompt",
    "no answer": "no_answer",
    "image that no file describes": "unmatched_region",
    "the last question has no answer": None,  # only that question is dropped
    "no turn": "empty_conversation",
}
SHORTENED = {("sharegpt", "empty answer")}  # the last answer of several, of which only its turn is dropped
SAMPLE = {
    "blipcapfilt": ("BLIP", "BLIP"),
    "coyo100m": ("COYO", "COYO"),
    "vqav2": ("VQAv2", "VQAv2/images"),
    "aokvqa": ("A-OKVQA", "coco/images"),
    "refcoco": ("refcoco/annotations", "coco/images/train2014"),
    "refcoco+": ("refcoco/annotations", "coco/images/train2014"),
    "refcocog": ("refcoco/annotations", "coco/images/train2014"),
    "llava150k": ("llava_instruct", "coco/images/train2017"),
    "gqa": ("GQA/annotations", "GQA/images"),
    "ocrvqa": ("OCR-VQA", "OCR-VQA/images"),
    "vsr": ("VSR", "VSR/images"),
    "scienceqa": ("ScienceQA", "ScienceQA/images"),
    "scienceqa_llava": ("ScienceQA", "ScienceQA/images/train"),
    "visual_genome": ("VisualGenome/metadata", "VisualGenome"),
    "sharegpt": ("Vicuna", "Vicuna"),
}
LAYOUTS = {"refcoco+": "refcoco", "refcocog": "refcoco", "scienceqa_llava": "scienceqa"}  # source → its layout


def read(name: str, root: Path) -> list[dict]:
    source = get(name)
    batches = list(source.read(root))
    for batch in batches:
        batch.validate(full=True)
        assert batch.schema == ANNOTATIONS[source.task]
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    return rows


def rejects(name: str, root: Path, images: Path) -> tuple[list[dict], dict[int, str]]:
    """Returns the rows, and row index → reject of the row or of its image."""
    rows = read(name, root)
    table = images_table(images, [row["image"] for row in rows if row["image"]])
    of_image = dict(zip(table["image"].to_pylist(), table["reject"].to_pylist(), strict=True))
    found = {row["row"]: row["reject"] or of_image.get(row["image"]) for row in rows}
    return rows, {row: reason for row, reason in found.items() if reason}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("sample")
    return directory, write_sample(directory, scenes=32, held_out=8, seed=0)


@pytest.mark.parametrize("name", sorted(SAMPLE))
def test_sample(sample, name):
    directory, manifest = sample
    annotations, images = (directory / folder for folder in SAMPLE[name])
    layout = manifest["layouts"][LAYOUTS.get(name, name)]
    rows, found = rejects(name, annotations, images)
    files = [str(path.relative_to(directory)) for path in get(name).files(annotations)]
    # In these sources, only the first file has rows (questions or regions).
    counted = files[:1] if name in ("vqav2", "visual_genome") else files
    first = {file: sum(layout["rows"][before] for before in counted[:i]) for i, file in enumerate(counted)}
    assert len(rows) == sum(layout["rows"][file] for file in counted)
    assert found == {
        first[broken["file"]] + broken["row"]: BROKEN[broken["what"]]
        for broken in layout["broken"]
        if broken["file"] in first and BROKEN[broken["what"]] and (name, broken["what"]) not in SHORTENED
    }


def test_the_sample_corpus_covers_every_source():
    assert set(SAMPLE) == set(SOURCES)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "annotations", "images", "count"),
    [
        ("vqav2", "VQAv2", "VQAv2/images", 73),
        ("aokvqa", "A-OKVQA", "coco/images", 26),
        ("refcoco", "refcoco/annotations", "coco/images/train2014", 14),
        ("refcoco+", "refcoco/annotations", "coco/images/train2014", 12),
        ("refcocog", "refcoco/annotations", "coco/images/train2014", 4),
        ("blipcapfilt", "BLIP", "BLIP", 200),
        ("coyo100m", "coyo", "coyo", 32),
        ("llava150k", "llava_instruct", "llava_instruct/images", 82),
        ("llava", "llava_instruct", "llava_instruct/images", 82),
        ("vsr", "VSR", "VSR/images", 21),
        ("scienceqa", "ScienceQA", "ScienceQA/images", 300),
        ("sharegpt", "Vicuna", "Vicuna", 115),
    ],
)
def test_real_corpus(realdata, name, annotations, images, count):
    corpus = realdata / "corpus"
    rows, found = rejects(name, corpus / annotations, corpus / images)
    assert len(rows) == count
    assert Counter(found.values()) == ({"image_missing": 20} if name == "vqav2" else {})


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "root", "count"),
    [
        ("vqav2", "VQAv2", 48_061),
        ("refcoco", "refcoco/annotations", 10_752),
        ("refcoco+", "refcoco/annotations", 10_615),
        ("refcocog", "refcoco/annotations", 4_896),
        ("gqa", "GQA/annotations", 12_578),
        ("visual_genome", "VisualGenome/metadata", 1_278),
        ("vsr", "VSR", 7_680),
    ],
)
def test_real_text(realdata, name, root, count):
    rows = read(name, realdata / "text" / root)
    assert len(rows) == count
    assert not [row for row in rows if row["reject"]]


@pytest.mark.realdata
def test_every_real_statement_becomes_a_question(realdata):
    rows = read("vsr", realdata / "text" / "VSR")
    for row in rows:
        # verb, subject with its article, …, and no remains of the statement's own verb
        assert re.fullmatch(r"(Is|Are|Does) the [a-z ]+ [a-z ]+ the [a-z ]+\?", row["question"], re.IGNORECASE), row
        assert not re.search(r"\b(is|contains|consists|has)\b", row["question"][2:]), row
        assert row["question"].startswith("Are ") == row["question"].startswith("Are the scissors ")
        assert not re.match(r"(Is|Does) the scissors ", row["question"])
    assert {row["answer"] for row in rows} == {"yes", "no"}


@pytest.mark.realdata
def test_real_conversations_mixed_with_another_layout(realdata):
    rows = read("llava150k", realdata / "text" / "LLaVA")
    bad = [row for row in rows if row["reject"]]
    assert len(rows) - len(bad) == 420 + 90
    assert Counter(row["reject"] for row in bad) == {"missing_field": 6}
    assert not any("<image>" in turn["user"] for row in rows for turn in row["turns"] or ())


@pytest.mark.realdata
def test_real_conversations_of_two_trainers(realdata):
    rows = read("llava", realdata / "text" / "LLaVA")
    assert len(rows) == 420 + 90 + 6
    assert not [row for row in rows if row["reject"]]
    many = [row for row in rows if row["more_images"]]
    assert [row["row"] for row in many] == [510, 513]  # the first and fourth of six rows in the layout with `messages`
    assert [many[0]["image"], *many[0]["more_images"]] == ["mllm_demo_data/1.jpg"] * 2
    assert [turn["user"] for turn in many[0]["turns"]] == ["<image>Who are they?", "What are they doing?<image>"]
    assert not any("<image>" in turn["user"] for row in rows if row not in many for turn in row["turns"])


@pytest.mark.realdata
def test_real_boxes_are_inside_their_images(realdata):
    boxes = [row["box"] for row in read("refcoco", realdata / "text" / "refcoco" / "annotations")]
    assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in boxes)
