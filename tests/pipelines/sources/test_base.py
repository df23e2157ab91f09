"""Tests of field checks, boxes, batches and the registry."""

import json
import math

import pytest

from pipelines import sources
from pipelines.core.store import Store, read_manifest
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.dataset import DatasetSpec
from pipelines.schema import ANNOTATIONS
from pipelines.sources import FILE, Reject, SourceError
from pipelines.sources.base import BATCH_ROWS, batches, file_batches, named_files
from pipelines.sources.fields import Unique, choices, field, normalised_box, number, optional_text, text


def reason(call, *arguments):
    with pytest.raises(Reject) as caught:
        call(*arguments)
    return caught.value.reason


def test_field_checks():
    row = {"a": 1, "b": True, "c": None, "d": " tea\n", "e": " ", "f": "caf\udce9", "g": 1e400, "h": 2.5}
    assert field(row, "a", int) == 1
    assert text(row, "d") == "tea"
    assert (number(row, "a"), number(row, "h")) == (1.0, 2.5)
    assert optional_text(row, "c") is None
    assert optional_text(row, "z") is None
    assert reason(field, row, "b", int) == "wrong_type"
    assert reason(field, row, "z", int) == "missing_field"
    assert reason(field, [1], "a", int) == "wrong_type"
    assert reason(text, row, "c") == "wrong_type"
    assert reason(text, row, "e", "empty_question") == "empty_question"
    assert reason(text, row, "f") == "not_utf8"
    assert reason(number, row, "g") == "bad_number"
    assert reason(number, {"g": math.nan}, "g") == "bad_number"
    assert reason(number, row, "b") == "wrong_type"
    assert reason(optional_text, row, "a") == "wrong_type"


def test_details_name_field_and_value_and_are_valid_utf8():
    with pytest.raises(Reject, match=r"conversations\[3\]\.value is \['\\udce9'\], not str"):
        text({"value": ["\udce9"]}, "value", where="conversations[3].")
    detail = Reject("any", "lone \udce9").detail
    assert detail.encode() == b"lone \\udce9"


def test_box_is_normalised_and_clipped():
    assert normalised_box(10, 20, 30, 40, 100, 200) == [0.1, 0.1, 0.3, 0.2]
    assert normalised_box(-10, 50, 60, 300, 100, 200) == [0.0, 0.25, 0.6, 1.0]
    assert reason(normalised_box, 10, 20, 10, 40, 100, 200) == "box_empty"
    assert reason(normalised_box, 30, 20, 10, 40, 100, 200) == "box_empty"
    assert reason(normalised_box, 100, 20, 130, 40, 100, 200) == "box_outside_image"
    assert reason(normalised_box, 10, -40, 30, 0, 100, 200) == "box_outside_image"
    assert reason(normalised_box, 10, 20, 30, 40, 0, 200) == "bad_image_size"


def test_choices():
    assert choices({"c": ["x ", "y"], "i": 1}, "c", "i") == (["x", "y"], 1)
    assert reason(choices, {"c": ["x", "y"], "i": 2}, "c", "i") == "answer_index_out_of_range"
    assert reason(choices, {"c": ["x", "y"], "i": -1}, "c", "i") == "answer_index_out_of_range"
    assert reason(choices, {"c": ["x", ""], "i": 0}, "c", "i") == "empty_choice"
    assert reason(choices, {"c": ["x", 3], "i": 0}, "c", "i") == "wrong_type"
    assert reason(choices, {"c": ["x"], "i": 0}, "c", "i") == "too_few_choices"


def test_unique():
    unique = Unique("question_id")
    unique.check(7)
    unique.check("7")
    with pytest.raises(Reject, match="question_id 7 occurs more than once"):
        unique.check(7)


def test_batches_contain_every_record_once_in_order():
    def parse(record):
        if record % 3 == 0:
            raise Reject("by_three", f"record is {record}")
        return None, str(record)

    records = [Reject("before", "found early"), *range(1, BATCH_ROWS + 5)]
    found = list(batches("caption", iter(records), parse))
    assert [batch.num_rows for batch in found] == [BATCH_ROWS, 5]
    assert all(batch.schema == ANNOTATIONS["caption"] for batch in found)
    rows = [row for batch in found for row in batch.to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(records)))
    assert rows[0] == {"row": 0, "image": None, "reject": "before", "detail": "found early", "caption": None}
    assert rows[3]["reject"] == "by_three"
    assert rows[3]["caption"] is None
    assert rows[-2]["caption"] == str(BATCH_ROWS + 3)
    assert [row["reject"] for row in rows].count("by_three") == (BATCH_ROWS + 4) // 3


def test_no_records_give_no_batch():
    assert list(batches("caption", [], lambda record: record)) == []


def test_registry_lists_the_known_names():
    assert set(sources.SOURCES) == {
        "blipcapfilt", "coyo100m", "vqav2", "gqa", "ocrvqa", "vsr", "scienceqa", "scienceqa_llava", "aokvqa",
        "refcoco", "refcoco+", "refcocog", "visual_genome", "llava150k", "sharegpt",
    }  # fmt: skip
    assert set(sources.CONFIGURABLE_SOURCES) == {"llava", "datasets"}
    assert all(source.name == name and source.task in ANNOTATIONS for name, source in sources.SOURCES.items())
    with pytest.raises(SourceError, match=r"'vqav3'.*aokvqa, .*vqav2"):
        sources.get("vqav3")


@pytest.mark.parametrize("name", sorted(sources.SOURCES))
def test_missing_files_are_named(tmp_path, name):
    source = sources.get(name)
    with pytest.raises(SourceError, match=str(tmp_path)):
        source.files(tmp_path)
    with pytest.raises(SourceError, match=str(tmp_path)):
        list(source.read(tmp_path))


def test_named_files(tmp_path):
    (tmp_path / "a").touch()
    assert named_files("a")(tmp_path) == [tmp_path / "a"]
    with pytest.raises(SourceError, match="b is missing"):
        named_files("a", "b")(tmp_path)


def test_row_indices_continue_across_files_and_every_batch_names_its_file(tmp_path):
    rows = {"a.txt": BATCH_ROWS + 1, "b/c.txt": 0, "b/ä.txt": 2}
    found = list(
        file_batches(
            "caption",
            tmp_path,
            [tmp_path / name for name in rows],
            lambda path: map(str, range(rows[path.relative_to(tmp_path).as_posix()])),
            lambda record: (None, record),
        )
    )
    assert [(batch.schema.metadata[FILE].decode(), batch.column("row")[0].as_py()) for batch in found] == [
        ("a.txt", 0),
        ("a.txt", BATCH_ROWS),
        ("b/ä.txt", BATCH_ROWS + 1),
    ]
    assert all(batch.schema == ANNOTATIONS["caption"] for batch in found)


def test_the_annotations_manifest_lists_the_first_row_of_each_file(tmp_path):
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    for name, count in (("a.json", 2), ("b.json", 3)):
        path = tmp_path / "chats" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{"conversations": talk}] * count))
    (tmp_path / "gqa").mkdir()
    question = {"imageId": "n1", "question": "Is it red?", "answer": "no"}
    (tmp_path / "gqa" / "train_balanced_questions.json").write_text(json.dumps({"07": question}))
    store = Store(tmp_path / "store")
    for source, folder, files_rows in (
        ("sharegpt", "chats", [["a.json", 0], ["b.json", 2]]),
        ("gqa", "gqa", [["train_balanced_questions.json", 0]]),
    ):
        spec = DatasetSpec(source, source, tmp_path / folder, tmp_path / folder)
        manifest = read_manifest(build_annotations(store, spec, lambda line: None))
        assert manifest["files_rows"] == files_rows
