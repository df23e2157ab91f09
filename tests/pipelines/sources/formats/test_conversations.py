"""Chat layouts of other trainers and exports: read as meant, or one named reject; never trained as text."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources import SKIPPED, SourceOptions, get
from pipelines.sources.fields import Reject
from pipelines.sources.formats.chat_layouts import TABLE
from pipelines.sources.formats.conversations import talk

QA = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]


def said(*texts, first="human"):
    roles = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]


def outcome(tmp_path, row, name="llava"):
    """Returns (images, turns as pairs) of the only row, or its reject."""
    (tmp_path / "a.json").write_text(json.dumps([row]))
    [found, *_] = [each for batch in get(name).read(tmp_path) for each in batch.to_pylist()]
    if found["reject"]:
        return found["reject"]
    images = [found["image"], *(found["more_images"] or [])] if found["image"] else []
    return images, [(turn["user"], turn["assistant"]) for turn in found["turns"]]


@pytest.mark.parametrize("layout", [{"role": None, "content": None}, {"user": None, "assistant": None}, {}])
def test_null_members_of_merged_layouts_count_as_absent(layout):
    assert talk({"conversations": [{**layout, **message} for message in QA]}).turns == [("Q?", "A.")]
    other = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    assert talk({"x": [{"from": None, "value": None, **each} for each in other]}, "x").turns == [("Q?", "A.")]
    pair = {"user": "Q?", "assistant": "A.", "role": None, "from": None}
    assert talk({"x": [pair]}, "x").turns == [("Q?", "A.")]


def test_rows_with_null_fields_of_another_layout(tmp_path):
    row = {"conversations": None, "messages": QA, "image": None, "images": [], "system": "", "tools": "[]"}
    assert outcome(tmp_path, row) == ([], [("Q?", "A.")])
    assert outcome(tmp_path, {**row, "conversations": said("Other?", "B.")}) == "ambiguous_fields"
    assert outcome(tmp_path, {"conversations": None}) == "wrong_type"


@pytest.mark.parametrize("user", TABLE["roles"]["user"])
@pytest.mark.parametrize("assistant", TABLE["roles"]["assistant"])
def test_the_roles_of_other_exports(user, assistant):
    messages = [{"from": user.upper(), "value": "Q?"}, {"role": f" {assistant}", "content": "A."}]
    assert talk({"conversations": messages}).turns == [("Q?", "A.")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"system": "Answer in French."}, "system_message"),
        ({"system_prompt": "Answer in French."}, "system_message"),
        ({"conversations": [{"from": "system", "value": "Be brief."}, *QA]}, "system_message"),
        ({"conversations": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, *QA]}, "system_message"),
        ({"conversations": [*QA, {"from": "system", "value": "Now in French."}, *QA]}, "system_message"),
        ({"conversations": [*QA, {"from": "system", "value": "Late."}]}, "system_message"),
        ({"conversations": [QA[0], {"from": "function_call", "value": "{}"}, QA[1]]}, "tool_message"),
        ({"conversations": [QA[0], {"role": "assistant", "content": "A.", "tool_calls": [{}]}]}, "tool_message"),
        ({"tools": [{"name": "f"}]}, "tool_message"),
        ({"video": "a.mp4"}, "other_media"),
        ({"conversations": [{"from": "narrator", "value": "x"}, *QA]}, "wrong_role"),
        ({"conversations": [{"from": "human", "role": "assistant", "value": "x"}, *QA]}, "ambiguous_fields"),
        ({"conversations": [{"from": "human", "value": "x", "content": "y"}, QA[1]]}, "ambiguous_fields"),
        ({"conversations": [{"from": None, "value": "x"}, QA[1]]}, "wrong_type"),
        ({"conversations": [None, *QA]}, "wrong_type"),
        ({"conversations": said("Q?", "A.", "Q?", "", "Q?", "A.")}, "empty_answer"),
        ({"conversations": [QA[0], *QA]}, "wrong_role"),
        ({"conversations": said("", "A.")}, "empty_question"),
        ({"conversations": said("Q?", "")}, "empty_answer"),
        ({"conversations": said("Q?")}, "odd_turns"),
        ({"conversations": said("A.", first="gpt")}, "wrong_role"),
        ({"image": "a.jpg", "width": 3, "height": 0}, "bad_image_size"),
        ({"image": "a.jpg", "width": [3, 4], "height": [3, 4]}, "size_count_mismatch"),
    ],
)
def test_what_cannot_be_read_as_meant_is_a_named_reject(tmp_path, change, reason):
    assert outcome(tmp_path, {"conversations": QA, **change}) == reason


def test_an_empty_system_message_is_none(tmp_path):
    for text in ("", " ", None):
        row = {"system": text, "conversations": [{"from": "system", "value": text}, *QA]}
        assert outcome(tmp_path, row) == ([], [("Q?", "A.")])


@pytest.mark.parametrize("name", ["llava", "sharegpt", "llava150k"])
def test_a_conversation_loses_its_leading_answer_and_its_unanswered_end(tmp_path, name):
    talks = [
        said("Hi!", "Q?", "A.", "R?", "B.", "S?", first="gpt"), said("Q?", "A.", "R?", " "), said("Q?", "A."),
        [*said("Q?", "A.", "R?"), QA[0]],
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": each} for each in talks]))
    *batches, last = get(name).read(tmp_path)
    turns = [[turn["user"] for turn in row["turns"]] for batch in batches for row in batch.to_pylist()]
    assert turns == [["Q?", "R?"], ["Q?"], ["Q?"], ["Q?"]]
    skipped = json.loads(last.schema.metadata[SKIPPED])
    assert {reason: each["count"] for reason, each in skipped.items()} == {"leading_answer": 1, "unanswered_end": 5}
    assert skipped["leading_answer"]["examples"] == ["conversations[0].value 'Hi!'"]
    assert last.num_rows == 0


@pytest.mark.parametrize(
    ("texts", "images", "expected"),
    [
        (["<ImageHere> Q?", "A."], ["a"], (["a"], "Q?")),
        (["<Img><ImageHere></Img> Q?", "A."], ["a"], (["a"], "Q?")),
        (["(<image>./</image>)\nQ?", "A."], ["a"], (["a"], "Q?")),
        (["<|vision_start|><|image_pad|><|vision_end|>Q?", "A."], ["a"], (["a"], "Q?")),
        (["<image_placeholder>Q?", "A."], ["a"], (["a"], "Q?")),
        (["<ImageHere>Q?", "A."], [], "missing_field"),
        (["<ImageHere> and <ImageHere>?", "A."], ["a"], "image_count_mismatch"),
        (["Picture 1: <img>d/a.jpg</img>\nQ?", "A."], [], (["d/a.jpg"], "Picture 1: <image>\nQ?")),
        (["<img>a.jpg</img> Q?", "A."], ["a.jpg"], (["a.jpg"], "Q?")),
        (["<img>b.jpg</img> Q?", "A."], ["a.jpg"], "image_count_mismatch"),
        (["<img>b.jpg</img> or <image>?", "A."], ["a.jpg"], "image_count_mismatch"),
        (["Is <image_2> like <image_1>?", "A."], ["a", "b"], (["b", "a"], "Is <image> like <image>?")),
        (["<image 1>\nQ?", "A."], ["a"], (["a"], "Q?")),
        (["Is <image_1> like <image_1>?", "A."], ["a"], "image_count_mismatch"),
        (["Is <image_3>?", "A."], ["a"], "image_count_mismatch"),
        (["<image>Q?", "A.", "And <image>?"], ["a", "b"], (["a"], "Q?")),
        (["<img>a</img>Q?", "A.", "And <img>b</img>?"], [], (["a"], "Q?")),
        (["What is <img src='x.jpg'>?", "A."], [], ([], "What is <img src='x.jpg'>?")),
    ],
)
def test_markers_of_images_are_placeholders(tmp_path, texts, images, expected):
    found = outcome(tmp_path, {"images": images, "conversations": said(*texts)})
    assert found == (expected if isinstance(expected, str) else (expected[0], [(expected[1], "A.")]))


def test_a_marker_in_an_answer_is_not_trained_as_text(tmp_path):
    assert outcome(tmp_path, {"conversations": said("Q?", "See <ImageHere>.")}) == ([], [("Q?", "See <image>.")])
    assert outcome(tmp_path, {"conversations": said("<img>a.jpg</img>?", "A.")}, "sharegpt") == "unexpected_image"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image", "image": "a.jpg"}, ["a.jpg"]),
        ({"type": "image_url", "image_url": {"url": "a.jpg"}}, ["a.jpg"]),
        ({"type": "image", "path": "a.jpg", "url": None, "text": None}, ["a.jpg"]),
        ({"image": "a.jpg"}, ["a.jpg"]),
        ({"type": "image", "image": None}, "missing_field"),
        ({"type": "image", "image": "https://x/a.jpg"}, "image_address"),
        ({"type": "image", "image": "data:image/png;base64,xx"}, "image_address"),
        ({"type": "image", "image": 3}, "wrong_type"),
        ({"type": "video", "video": "a.mp4"}, "wrong_type"),
        ({"image": "a.jpg", "text": "x"}, "ambiguous_fields"),
        ({}, "missing_field"),
    ],
)
def test_parts_that_name_their_image(tmp_path, part, expected):
    parts = [part, {"type": "text", "text": "Q?"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A."}]}
    found = outcome(tmp_path, row)
    assert found == (expected if isinstance(expected, str) else (expected, [("Q?", "A.")]))


def test_parquet_rows_of_merged_layouts_with_a_system_column(tmp_path):
    message = {"from": None, "value": None, "role": None, "content": None}
    talks = [
        [{**message, **each} for each in QA],
        [{**message, "role": "user", "content": "Q?"}, {**message, "role": "model", "content": "A."}],
    ]
    for image in (pa.nulls(2), pa.array([[], None], pa.list_(pa.null())), pa.array([None, None], pa.string())):
        table = {"image": image, "chat": talks, "system": ["", None], "width": [1, 2]}
        assert parquet(tmp_path, table) == [None, None]
    assert parquet(tmp_path, {**table, "system": [None, "Be brief."]}) == [None, "system_message"]


def parquet(tmp_path, table):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    columns = {"task": "conversation", "image": "image", "conversations": "chat"}
    source = get("datasets", SourceOptions(columns=columns))
    return [row["reject"] for batch in source.read(tmp_path) for row in batch.to_pylist()]


def test_a_huge_text_of_a_parquet_file_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.sources.generic.huggingface.MAX_ROW_BYTES", 1 << 16)
    talks = [QA, said("Q?", "x" * (1 << 17)), QA]
    assert parquet(tmp_path, {"image": pa.nulls(3), "chat": talks}) == [None, "row_too_large", None]


def test_sizes_belong_to_the_images(tmp_path):
    row = {
        "images": ["a", "b"],
        "width": [3, 4],
        "height": [5, None],
        "conversations": said("<image_2> <image_1>", "A."),
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    [batch] = get("llava").read(tmp_path)
    assert batch.to_pylist()[0]["sizes"] == [4.0, None, 3.0, 5.0]


def test_a_duplicate_key_is_one_reject(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"conversations": [{"from": "human", "from": "gpt", "value": "Q?"}]}\n')
    [batch] = get("llava").read(tmp_path)
    assert batch.column("reject").to_pylist() == ["duplicate_key"]


def test_lone_surrogates_are_rejected():
    with pytest.raises(Reject, match="not_utf8"):
        talk({"conversations": said("\ud800", "A.")})
