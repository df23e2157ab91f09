"""Faulty official files of every source lead to a reject with a reason or to one clear error, and to nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.example_settings import example_settings
from support.images import png_header
from support.official_files import OFFICIAL, encoded, official, write_official

from pipelines.core.store import Store
from pipelines.examples.render import Renderer
from pipelines.images.table import images_table
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.dataset import DatasetSpec
from pipelines.schema import ANNOTATIONS
from pipelines.sources import SOURCES, SourceError, get
from pipelines.sources.fields import normalised_box

FILES = [(name, file) for name, files in OFFICIAL.items() for file in files]
JSON_FILES = [(name, file) for name, file in FILES if not file.endswith(".tar")]
TARS = [(name, file) for name, file in FILES if file.endswith(".tar")]
# source → (file, keys that lead to an object of the second row, its required fields)
NEEDED: dict[str, list[tuple[str, list[str | int], list[str]]]] = {
    "vqav2": [
        ("v2_OpenEnded_mscoco_train2014_questions.json", ["questions", 1], ["question_id", "image_id", "question"]),
        ("v2_mscoco_train2014_annotations.json", ["annotations", 1], ["question_id", "multiple_choice_answer"]),
    ],
    "aokvqa": [
        ("aokvqa_v1p0_train.json", [1], ["question_id", "image_id", "question", "choices", "correct_choice_idx"])
    ],
    "refcoco": [
        ("finetune_refcoco_train.json", ["images", 1], ["id", "file_name", "width", "height", "caption"]),
        ("finetune_refcoco_train.json", ["annotations", 1], ["image_id", "bbox"]),
    ],
    "gqa": [("train_balanced_questions.json", ["02"], ["imageId", "question", "answer"])],
    "ocrvqa": [("dataset.json", ["02"], ["imageURL", "questions", "answers", "split"])],
    "vsr": [("random/train.jsonl", [1], ["caption", "relation", "label", "image_link"])],
    "scienceqa": [("problems.json", ["1"], ["question", "choices", "answer", "split"])],
    "scienceqa_llava": [
        ("llava_train_QCM-LEPA.json", [1], ["id", "image", "conversations"]),
        ("llava_train_QCM-LEPA.json", [1, "conversations", 1], ["from", "value"]),
    ],
    "visual_genome": [
        ("region_descriptions.json", [1], ["regions"]),
        ("region_descriptions.json", [1, "regions", 0], ["image_id", "x", "y", "width", "height", "phrase"]),
        ("image_data.json", [1], ["url", "width", "height"]),
    ],
    "llava150k": [
        ("conversation_58k.json", [1], ["image", "conversations"]),
        ("conversation_58k.json", [1, "conversations", 0], ["from", "value"]),
    ],
    "llava": [
        ("chats.jsonl", [1], ["messages"]),
        ("chats.jsonl", [1, "messages", 0], ["content"]),
    ],
    "sharegpt": [
        ("sharegpt.json", [1], ["conversations"]),
        ("sharegpt.json", [1, "conversations", 0], ["from", "value"]),
    ],
}


def read(name: str, root: Path) -> list[dict[str, Any]]:
    batches = list(get(name).read(root))
    for batch in batches:
        batch.validate(full=True)
    return [row for batch in batches for row in batch.to_pylist()]


def read_files(name: str, root: Path, files: dict[str, Any]) -> list[dict[str, Any]]:
    write_official(root, files)
    return read(name, root)


def test_these_tests_cover_every_source():
    assert set(OFFICIAL) == {*SOURCES, "llava"}
    assert set(NEEDED) == set(OFFICIAL) - {"refcoco+", "refcocog"} - {name for name, _ in TARS}


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_good_files(tmp_path, name):
    rows = read_files(name, tmp_path, official(name))
    assert [row["reject"] for row in rows] == [None, None]
    assert [path.name for path in get(name).files(tmp_path)] == [Path(file).name for file in OFFICIAL[name]]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, name, file):
    complete = encoded(file, OFFICIAL[name][file])
    complete = complete.rstrip(b"\0") if file.endswith(".tar") else complete.rstrip()
    for length in (0, 1, len(complete) // 3, 2 * len(complete) // 3, len(complete) - 1):
        write_official(tmp_path, {**official(name), file: complete[:length]})
        if length == 0 and file.endswith(".jsonl"):
            assert read(name, tmp_path) == []  # no lines, like an empty list: the build refuses it
            continue
        with pytest.raises(SourceError, match=rf"{re.escape(file)}: (line|byte) .*truncated"):
            read(name, tmp_path)


def emptied(content: Any) -> Any:
    if isinstance(content, list):
        return []
    return {key: [] for key, rows in content.items() if isinstance(rows, list)}


@pytest.mark.parametrize("name", sorted({name for name, _ in JSON_FILES}))
def test_files_without_rows_are_an_error(tmp_path, name):
    write_official(tmp_path / "files", {file: emptied(content) for file, content in official(name).items()})
    spec = DatasetSpec(name, name, tmp_path / "files", tmp_path / "files")
    with pytest.raises(SourceError, match=f"the files of {re.escape(name)} contain no rows"):
        build_annotations(Store(tmp_path / "store"), spec, log=lambda line: None)


@pytest.mark.parametrize(("name", "file"), JSON_FILES)
@pytest.mark.parametrize("content", [7, "rows", None, True, [[7]], {"rows": []}], ids=repr)
def test_wrong_top_level_type(tmp_path, name, file, content):
    """Raises an error that names the file, or rejects every row if the type of the rows is wrong."""
    write_official(tmp_path, {**official(name), file: json.dumps(content).encode()})
    try:
        rows = read(name, tmp_path)
    except SourceError as error:
        assert f"{tmp_path / file}" in str(error)
    else:
        assert file.endswith(".jsonl") or type(content) is type(OFFICIAL[name][file])
        assert rows and all(row["reject"] for row in rows)


@pytest.mark.parametrize(
    ("name", "file", "keys", "field"),
    [(name, file, keys, field) for name, needed in NEEDED.items() for file, keys, fields in needed for field in fields],
)
def test_a_missing_field_rejects_only_its_row(tmp_path, name, file, keys, field):
    files = official(name)
    parent = files[file]
    for key in keys:
        parent = parent[key]
    del parent[field]
    rows = read_files(name, tmp_path, files)
    assert [row["row"] for row in rows if not row["reject"]] == [0]
    assert any("missing_field" in row["reject"] + row["detail"] and field in row["detail"] for row in rows[1:])


@pytest.mark.parametrize(("name", "file"), FILES)
def test_undecodable_text_rejects_only_its_row(tmp_path, name, file):
    content = encoded(file, OFFICIAL[name][file])
    if b"cafe" in content:
        rows = read_files(name, tmp_path, {**official(name), file: content.replace(b"cafe", b"caf\xe9")})
        assert [row["reject"] for row in rows] == [None, "not_utf8"]


@pytest.mark.parametrize(("name", "key"), [("scienceqa", '"1": {'), ("ocrvqa", '"02": {'), ("gqa", '"02": {')])
def test_an_undecodable_id(tmp_path, name, key):
    (file,) = OFFICIAL[name]
    content = encoded(file, OFFICIAL[name][file]).replace(key.encode(), b'"\xe9": {')
    rows = read_files(name, tmp_path, {file: content})
    assert [row["reject"] for row in rows] == [None, None if name == "gqa" else "not_utf8"]  # GQA's id is not used


def test_an_undecodable_hint(tmp_path):
    files = official("scienceqa")
    files["problems.json"]["1"]["hint"] = "\udce9"
    assert [row["reject"] for row in read_files("scienceqa", tmp_path, files)] == [None, "not_utf8"]


@pytest.mark.parametrize("name", ["aokvqa", "scienceqa"])
@pytest.mark.parametrize("index", [2, -1, 10**30])
def test_an_answer_index_out_of_range(tmp_path, name, index):
    (file,) = files = official(name)
    row = files[file][1] if name == "aokvqa" else files[file]["1"]
    row["correct_choice_idx" if name == "aokvqa" else "answer"] = index
    assert [row["reject"] for row in read_files(name, tmp_path, files)] == [None, "answer_index_out_of_range"]


# Corners in an image of 100 by 50 px → the box or the reject.
BOXES = {
    (10, 10, 30, 20): [0.1, 0.2, 0.3, 0.4],
    (-10, 25, 60, 70): [0.0, 0.5, 0.6, 1.0],  # extends beyond the image on two sides: clipped
    (0, 0, 100, 50): [0.0, 0.0, 1.0, 1.0],
    (99.5, 0, 200, 50): [0.995, 0.0, 1.0, 1.0],
    (100, 0, 120, 50): "box_outside_image",
    (10, -20, 30, 0): "box_outside_image",
    (10, 10, 10, 20): "box_empty",
    (10, 10, 30, 10): "box_empty",
    (30, 10, 10, 20): "box_empty",  # a negative width
}


@pytest.mark.parametrize("corners", BOXES, ids=str)
@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog", "visual_genome"])
def test_boxes_by_corner_and_size_equal_boxes_by_corners(tmp_path, name, corners):
    x1, y1, x2, y2 = corners
    files = official(name)
    if name == "visual_genome":
        region = files["region_descriptions.json"][1]["regions"][0]
        region |= {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    else:
        files[f"finetune_{name}_train.json"]["annotations"][1]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    row = read_files(name, tmp_path, files)[1]
    expected = BOXES[corners]
    if isinstance(expected, str):
        assert row["reject"] == expected
    else:
        assert row["box"] == pytest.approx(expected)
        assert row["box"] == pytest.approx(normalised_box(x1, y1, x2, y2, 100, 50))


def repeated(name: str) -> dict[str, Any]:
    """Returns files whose last row repeats the id of another row."""
    files = official(name)
    for file, content in files.items():
        if file.endswith(".tar"):
            files[file] = [*content, ("0.txt", b"again")]
        elif isinstance(content, list):
            content.append(content[0])
        elif all(isinstance(value, list) or not value for value in content.values()):
            for rows in filter(None, content.values()):
                rows.append(rows[0])
        else:  # an object of rows, whose duplicate key json.dumps cannot write
            text = json.dumps(content)
            key = json.dumps(next(iter(content)))
            files[file] = f"{text[:-1]}, {key}: {json.dumps(next(iter(content.values())))}}}".encode()
    return files


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - {"vsr", "llava150k", "llava", "sharegpt", "visual_genome"}))
def test_a_repeated_id_rejects_only_its_row(tmp_path, name):
    """VSR's rows have no id, and the ids of conversations are not unique in the official files."""
    rows = read_files(name, tmp_path, repeated(name))
    assert [row["reject"] for row in rows[:2]] == [None, None]
    assert {row["reject"] for row in rows[2:]} == {"duplicate_id"}


def test_an_image_described_twice(tmp_path):
    files = official("visual_genome")
    files["image_data.json"].append({**files["image_data.json"][1], "width": 50})
    rows = read_files("visual_genome", tmp_path, files)
    assert [row["reject"] for row in rows] == [None, "bad_image_data"]  # it is unknown which size is correct
    assert "duplicate_id" in rows[1]["detail"]


@pytest.mark.parametrize(("name", "file"), TARS)
def test_tars(tmp_path, name, file):
    write_official(tmp_path, {file: []})
    with pytest.raises(SourceError, match=rf"{file} has no samples"):
        read(name, tmp_path)
    absolute = [(f"/etc/{member}", data) for member, data in OFFICIAL[name][file][:3]]
    rows = read_files(name, tmp_path, {file: [*absolute, *OFFICIAL[name][file]]})
    assert [row["reject"] for row in rows] == ["bad_path", None, None]


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - {"sharegpt"}))
def test_an_image_too_large_to_decode(tmp_path, name):
    files, png = official(name), png_header(30_000, 30_000)
    for file, content in files.items():
        if file.endswith(".tar"):
            files[file] = [(member, png if data == b"jpeg" else data) for member, data in content]
    images = [row["image"] for row in read_files(name, tmp_path, files)]
    for image in images:
        if "#" not in image:
            (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / image).write_bytes(png)
    table = images_table(tmp_path, images)
    assert table["reject"].to_pylist() == ["image_too_large"] * 2


def rendered(name: str, root: Path, text: str, tokenizer_dir: Path):
    """Renders both rows as examples, with `text` in place of "cafe"."""
    files = {
        file: [(member, data.replace(b"cafe", text.encode())) for member, data in content]
        if file.endswith(".tar")
        else encoded(file, content).replace(b"cafe", json.dumps(text)[1:-1].encode())
        for file, content in official(name).items()
    }
    write_official(root, files)
    source = get(name)
    settings = example_settings(tokenizer_dir, name, source.task, max_text_tokens=1000)
    return Renderer(settings).render(pa.Table.from_batches(source.read(root), ANNOTATIONS[source.task]), None)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
@pytest.mark.parametrize(
    ("text", "reason"),
    [("an <image> in it", "special_token_in_text"), ("inn\nHuman: Who?\nAI: Me", "role_name_in_text")],
)
def test_special_tokens_and_role_names_in_text_reject_only_their_row(tmp_path, tokenizer_dir, name, text, reason):
    result = rendered(name, tmp_path, text, tokenizer_dir)
    if name == "llava" and "<image>" in text:  # this source treats it as the placeholder of an image
        reason = "image_count_mismatch"
    kept = name == "vsr" and "\n" in text  # statements are joined to one line, where a role name does not begin a turn
    assert result.counts["rows"] == {
        "read": 2,
        "examples": 2 if kept else 1,
        "duplicates": 0,
        "rejects": {} if kept else {reason: 1},
    }
