"""The sample corpus is deterministic, either complete or rewritten, and never overwrites other files."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pipelines.sample_corpus import TRAINING, write_sample

SMALL = {"scenes": 48, "held_out": 16, "seed": 0}


def digest(directory: Path) -> str:
    """Returns a digest of all file names and bytes."""
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(directory)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sample") / "corpus"
    write_sample(directory, **SMALL)
    return directory


def test_the_same_parameters_give_the_same_bytes(corpus, tmp_path):
    write_sample(tmp_path / "again", **SMALL)
    write_sample(tmp_path / "other", **{**SMALL, "seed": 1})
    assert digest(tmp_path / "again") == digest(corpus)
    assert digest(tmp_path / "other") != digest(corpus)


def test_a_complete_corpus_is_reused(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    manifest = write_sample(corpus, **SMALL)
    assert manifest["key"]["scenes"] == 48
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_other_parameters_do_not_overwrite(corpus):
    with pytest.raises(FileExistsError, match="remove it or choose another"):
        write_sample(corpus, **{**SMALL, "scenes": 49})


def test_other_files_are_not_overwritten(tmp_path):
    annotations = tmp_path / "VQAv2" / "mine.json"
    annotations.parent.mkdir()
    annotations.write_text("precious")
    with pytest.raises(FileExistsError, match="empty directory"):
        write_sample(tmp_path, **SMALL)
    assert annotations.read_text() == "precious"


def test_a_corpus_is_rewritten_after_an_interrupted_write(corpus, tmp_path, monkeypatch):
    def killed(directory, scene_images, rng):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(TRAINING, "vqav2", killed)
        with pytest.raises(KeyboardInterrupt):
            write_sample(tmp_path / "corpus", **{**SMALL, "scenes": 60})
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    write_sample(tmp_path / "corpus", **SMALL)
    assert digest(tmp_path / "corpus") == digest(corpus)


def test_too_many_scenes_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="at most 200000"):
        write_sample(tmp_path / "corpus", scenes=10_000_000, held_out=4, seed=0)


def test_every_broken_row_has_the_defect_that_the_manifest_lists(corpus):
    layouts = json.loads((corpus / "manifest.json").read_text())["layouts"]
    listed = {(row["file"], row["row"]): row["what"] for layout in layouts.values() for row in layout["broken"]}
    assert len(listed) == 54
    found = {}
    for name in ("BLIP/00000.tar", "COYO/00000.tar"):
        for number, sample in enumerate(tar_samples(corpus / name)):
            if "jpg" not in sample:
                found[name, number] = "no image"
            elif not sample["txt"]:
                found[name, number] = "empty caption"
            elif (problem := image_problem(sample["jpg"])) is not None:
                found[name, number] = problem
    name = "VQAv2/v2_OpenEnded_mscoco_train2014_questions.json"
    answers = {
        row["question_id"]: row["multiple_choice_answer"]
        for row in json.loads((corpus / "VQAv2" / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    }
    for number, row in enumerate(json.loads((corpus / name).read_text())["questions"]):
        image = corpus / "VQAv2" / "images" / f"COCO_train2014_{row['image_id']:012d}.jpg"
        if row["question_id"] not in answers:
            found[name, number] = "no annotation for this question"
        elif not answers[row["question_id"]]:
            found[name, number] = "empty answer"
        elif not image.exists():
            found[name, number] = "missing image"
        elif image_problem(image.read_bytes()) is not None:
            found[name, number] = "truncated JPEG"
    name = "A-OKVQA/aokvqa_v1p0_train.json"
    for number, row in enumerate(json.loads((corpus / name).read_text())):
        if not (corpus / "coco" / "images" / "train2017" / f"{row['image_id']:012d}.jpg").exists():
            found[name, number] = "missing image"
        elif row["correct_choice_idx"] >= len(row["choices"]):
            found[name, number] = "correct_choice_idx out of range"
        elif not row["question"]:
            found[name, number] = "empty question"
    for dataset in ("refcoco", "refcoco+", "refcocog"):
        name = f"refcoco/annotations/finetune_{dataset}_train.json"
        content = json.loads((corpus / name).read_text())
        for number, (row, annotation) in enumerate(zip(content["images"], content["annotations"], strict=True)):
            x, y, width, height = annotation["bbox"]
            if not (corpus / "coco" / "images" / "train2014" / row["file_name"]).exists():
                found[name, number] = "missing image"
            elif width * height <= 0:
                found[name, number] = "box without area"
            elif x < 0 or y < 0 or x + width > row["width"] or y + height > row["height"]:
                found[name, number] = "box outside the image"
            elif not row["caption"]:
                found[name, number] = "empty phrase"
    name = "llava_instruct/conversation_58k.json"
    for number, row in enumerate(json.loads((corpus / name).read_text())):
        messages = row["conversations"]
        if ".." in row["image"]:
            found[name, number] = "image outside its root"
        elif not (corpus / "coco" / "images" / "train2017" / row["image"]).exists():
            found[name, number] = "missing image"
        elif messages[0]["from"] != "human":
            found[name, number] = "assistant speaks first"
        elif not all(message["value"] for message in messages):
            found[name, number] = "empty answer"
    found |= found_in_keyed_files(corpus) | found_in_lists(corpus)
    assert found == listed


def found_in_keyed_files(corpus: Path) -> dict[tuple[str, int], str]:
    """Finds the broken rows of GQA, OCR-VQA and ScienceQA."""
    found = {}
    name = "GQA/annotations/train_balanced_questions.json"
    for number, row in enumerate(json.loads((corpus / name).read_text()).values()):
        image = corpus / "GQA" / "images" / f"{row['imageId']}.jpg"
        if not row["question"] or not row["answer"]:
            found[name, number] = "empty answer" if row["question"] else "empty question"
        elif not image.exists():
            found[name, number] = "missing image"
        elif image_problem(image.read_bytes()):
            found[name, number] = "truncated JPEG"
    name, number = "OCR-VQA/dataset.json", 0
    for key, book in json.loads((corpus / name).read_text()).items():
        if book["split"] != 1:
            found[name, number] = "another split"
        elif len(book["answers"]) != len(book["questions"]):
            found[name, number] = "a question without answer"
        elif not all(book["answers"]):
            found[name, number] = "empty answer"
        elif not (corpus / "OCR-VQA" / "images" / f"{key}.jpg").exists():
            found[name, number] = "missing image"
        number += len(book["questions"])
    name = "ScienceQA/problems.json"
    for number, (pid, row) in enumerate(json.loads((corpus / name).read_text()).items()):
        if row["split"] != "train":
            found[name, number] = "another split"
        elif row["answer"] >= len(row["choices"]):
            found[name, number] = "answer out of range"
        elif not row["question"]:
            found[name, number] = "empty question"
        elif row["image"] and not (corpus / "ScienceQA" / "images" / "train" / pid / row["image"]).exists():
            found[name, number] = "missing image"
    return found


def found_in_lists(corpus: Path) -> dict[tuple[str, int], str]:
    """Finds the broken rows of VSR, Visual Genome, ShareGPT and ScienceQA in LLaVA's layout."""
    found = {}
    name = "VSR/random/train.jsonl"
    for number, line in enumerate((corpus / name).read_text().splitlines()):
        row = json.loads(line)
        if not row["caption"]:
            found[name, number] = "empty statement"
        elif row["label"] not in (0, 1):
            found[name, number] = "label neither true nor false"
        elif not (corpus / "VSR" / "images" / "train2017" / row["image"]).exists():
            found[name, number] = "missing image"
    name = "VisualGenome/metadata/region_descriptions.json"
    images = {row["image_id"]: row for row in json.loads((corpus / name).with_name("image_data.json").read_text())}
    regions = [region for entry in json.loads((corpus / name).read_text()) for region in entry["regions"]]
    for number, row in enumerate(regions):
        if row["image_id"] not in images:
            found[name, number] = "image that no file describes"
        elif not row["phrase"]:
            found[name, number] = "empty phrase"
        elif row["width"] * row["height"] <= 0:
            found[name, number] = "box without area"
        elif row["x"] >= images[row["image_id"]]["width"]:
            found[name, number] = "box outside the image"
    name = "Vicuna/sharegpt.json"
    for number, row in enumerate(json.loads((corpus / name).read_text())):
        messages = row["conversations"]
        if not messages:
            found[name, number] = "no turn"
        elif messages[0]["from"] == "gpt":
            found[name, number] = "assistant speaks first"
        elif len(messages) % 2:
            found[name, number] = "the last question has no answer"
        elif not all(message["value"] for message in messages):
            found[name, number] = "empty answer"
    name = "ScienceQA/llava_train_QCM-LEPA.json"
    for number, row in enumerate(json.loads((corpus / name).read_text())):
        question, answer = (message["value"] for message in row["conversations"])
        if "(B)" not in question:
            found[name, number] = "no options"
        elif "ANSWER: " not in answer:
            found[name, number] = "no answer"
        elif f"({answer[-2]})" not in question:
            found[name, number] = "answer out of range"
    return found


def tar_samples(path: Path) -> list[dict[str, bytes]]:
    """Returns extension → content for each sample key, in the order of the tar."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return list(samples.values())


def image_problem(data: bytes) -> str | None:
    try:
        image = Image.open(io.BytesIO(data))
    except OSError:
        return "not an image"
    try:
        image.load()
    except OSError:
        return "truncated JPEG"
    return None
