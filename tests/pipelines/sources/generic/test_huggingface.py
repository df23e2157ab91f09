"""Hugging Face's file formats read by a column map: every task, both formats, good and bad rows."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from support.images import read_image_bytes

from pipelines.images.table import images_table
from pipelines.schema import ANNOTATIONS
from pipelines.sources import SourceError, SourceOptions, get


def drawn(number):
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 6), (number, 100, 3 * number)).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(number):
    return {"bytes": drawn(number), "path": f"{number}.png"}


@pytest.fixture(params=["parquet", "arrow"])
def write(request, tmp_path):
    """Returns write(columns, features) → a root with the rows in two Parquet files, or as written by `save_to_disk`."""

    def write(columns, features=None):
        dataset = Dataset.from_dict(columns, Features(features) if features else None)
        half = len(dataset) // 2
        if request.param == "arrow":
            dataset.save_to_disk(tmp_path / "saved", num_shards=2)
            return tmp_path / "saved"
        (tmp_path / "files" / "data").mkdir(parents=True, exist_ok=True)
        dataset.select(range(half)).to_parquet(tmp_path / "files" / "data" / "a.parquet", batch_size=3)
        dataset.select(range(half, len(dataset))).to_parquet(tmp_path / "files" / "data" / "b.parquet", batch_size=3)
        return tmp_path / "files"

    return write


def read(root, files=None, **columns):
    source = get("datasets", SourceOptions(columns=columns, files=files))
    batches = list(source.read(root))
    for batch in batches:
        batch.validate(full=True)
        assert batch.schema == ANNOTATIONS[source.task]
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(rows)))
    return rows


def rejects(rows):
    return {row["row"]: row["reject"] for row in rows if row["reject"]}


def test_captions_with_embedded_images(write):
    columns = {"photo": [encoded(i) for i in range(9)] + [None], "text": [f"Colour {i}." for i in range(9)] + [None]}
    root = write(columns, {"photo": Image(), "text": Value("string")})
    rows = read(root, task="caption", image="photo", caption="text")
    assert [row["caption"] for row in rows[:9]] == columns["text"][:9]
    assert [read_image_bytes(root, row["image"]) for row in rows[:9]] == [drawn(i) for i in range(9)]
    assert rejects(rows) == {9: "null_value"}
    table = images_table(root, [row["image"] for row in rows[:9]])
    assert table["reject"].null_count == 9


def test_reading_rows_does_not_read_images(write, monkeypatch):
    root = write(
        {"photo": [encoded(i) for i in range(6)], "text": ["a"] * 6}, {"photo": Image(), "text": Value("string")}
    )
    read_bytes = []
    table = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *a, **k: read_bytes.extend(k["columns"]) or table(*a, **k)
    )
    read(root, task="caption", image="photo", caption="text")
    assert set(read_bytes) <= {"text", "photo.path"}


def test_open_questions(write):
    answers = {
        "text": ["red", " ", None, "blue"],
        "count": [3, -1, None, 0],
        "share": [0.5, 1.0, None, 2.0],
        "holds": [True, False, None, True],
        "label": [1, 0, None, -1],
    }
    columns = {"image": ["a.jpg", "b.jpg", "c.jpg", None], "query": ["Q?", "Q?", "Q?", "Q?"], **answers}
    features = {name: Value("string") for name in ("image", "query", "text")}
    features |= {"count": Value("int32"), "share": Value("float32"), "holds": Value("bool")}
    root = write(columns, {**features, "label": ClassLabel(names=["no", "yes"])})

    def answered(answer, **more):
        rows = read(root, task="open_question", image="image", question="query", answer=answer, text_only=True, **more)
        return [row["reject"] or row["answer"] for row in rows]

    assert answered("text") == ["red", "empty_answer", "null_value", "blue"]
    assert answered("count") == ["3", "-1", "null_value", "0"]
    assert answered("share") == ["ambiguous_answer", "ambiguous_answer", "null_value", "ambiguous_answer"]
    assert answered("holds") == ["ambiguous_answer", "ambiguous_answer", "null_value", "ambiguous_answer"]
    assert answered("holds", answer_names=["no", "yes"]) == ["yes", "no", "null_value", "yes"]
    assert answered("label") == ["yes", "no", "null_value", "label_out_of_range"]
    assert answered("label", answer_names=["wrong", "right"]) == ["right", "wrong", "null_value", "label_out_of_range"]
    rows = read(root, task="open_question", image="image", question="query", answer="text")
    assert rows[0]["image"] == "a.jpg" and rejects(rows)[3] == "null_value"


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (["cup", "dog"], 1, 1),
        (["cup", "dog"], 2, "answer_index_out_of_range"),
        (["cup", "dog"], -1, "answer_index_out_of_range"),
        (["cup", "dog"], "B", 1),
        (["cup", "dog"], " dog ", 1),
        (["cup", "dog"], "C", "answer_not_among_choices"),
        (["cup", "dog"], "b", "answer_not_among_choices"),
        (["B", "A"], "A", "ambiguous_answer"),
        (["A", "B"], "A", 0),
        (["cup", "cup"], "cup", "ambiguous_answer"),
        (["2", "1"], "1", 1),
        (["cup"], 0, "too_few_choices"),
        (["cup", " "], 0, "empty_choice"),
        (["cup", None], 0, "wrong_type"),
        (None, 0, "null_value"),
        (["cup", "dog"], None, "null_value"),
    ],
)
def test_the_correct_choice(tmp_path, choices, answer, expected):
    kind = pa.string() if isinstance(answer, str) else pa.int64()
    table = pa.table({"o": pa.array([choices], pa.list_(pa.string())), "a": pa.array([answer], kind), "q": ["Q?"]})
    pq.write_table(table, tmp_path / "a.parquet")
    [row] = read(tmp_path, task="multiple_choice", question="q", choices="o", answer="a")
    assert (row["reject"] or row["answer_index"]) == expected
    if not row["reject"]:
        assert row["choices"] == [choice.strip() for choice in choices]


def test_choices_by_class_label_with_a_context(write):
    columns = {
        "image": [encoded(0), None],
        "q": ["Which?", "Which?"],
        "o": [["a cup", "a dog", "a tree"]] * 2,
        "a": [1, 2],
        "hint": ["", "Look."],
    }
    features = {"image": Image(), "q": Value("string"), "o": List(Value("string")), "hint": Value("string")}
    root = write(columns, {**features, "a": ClassLabel(names=["A", "B", "C"])})
    given = {"task": "multiple_choice", "image": "image", "question": "q", "choices": "o", "answer": "a"}
    rows = read(root, **given, context="hint", text_only=True)
    assert [(row["answer_index"], row["context"], row["image"] is None) for row in rows] == [
        (1, None, False), (2, "Look.", True),
    ]  # fmt: skip
    assert rejects(read(root, **given)) == {1: "null_value"}


def test_boxes_of_both_formats_and_units(write):
    columns = {
        "image": ["a.jpg"] * 4,
        "phrase": ["the cup", "the dog", "", "it"],
        "corners": [[10.0, 10.0, 30.0, 20.0], [-10.0, 25.0, 60.0, 70.0], [0.0, 0.0, 1.0, 1.0], None],
        "sized": [[10, 10, 20, 10], [-10, 25, 70, 45], [0, 0, 1, 1], [1, 2, 3]],
        "w": [100, 100, 100, 100],
        "h": [50, 50, 50, 0],
    }
    root = write(columns)
    given = {"task": "referring", "image": "image", "phrase": "phrase"}
    pixels = {**given, "box_unit": "pixels", "width": "w", "height": "h"}
    corners = read(root, **pixels, box="corners", box_format="xyxy")
    sized = read(root, **pixels, box="sized", box_format="xywh")
    assert corners[0]["box"] == sized[0]["box"] == [0.1, 0.2, 0.3, 0.4]
    assert corners[1]["box"] == sized[1]["box"] == [0.0, 0.5, 0.6, 1.0]
    assert rejects(corners) == {2: "empty_phrase", 3: "null_value"}
    assert rejects(sized) == {2: "empty_phrase", 3: "wrong_type"}
    bare = read(root, **given, box="corners", box_format="xyxy", box_unit="normalised")
    assert rejects(bare) == {0: "box_outside_image", 1: "box_outside_image", 2: "empty_phrase", 3: "null_value"}
    with pytest.raises(ValueError, match="need the columns `width` and `height`"):
        SourceOptions(columns={**given, "box": "corners", "box_format": "xyxy", "box_unit": "pixels"})


def test_conversations_with_several_images(write):
    part = {"type": Value("string"), "text": Value("string")}
    columns = {
        "images": [[encoded(0), encoded(1)], [], None, [encoded(2)], [encoded(3), None]],
        "messages": [
            [
                {"role": "user", "content": [{"type": "text", "text": "Is "}, {"type": "image", "text": None},
                                             {"type": "text", "text": " in "}, {"type": "image", "text": None}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            ],
            *[[{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
               {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]] * 4,
        ],
    }  # fmt: skip
    features = {"images": List(Image()), "messages": List({"role": Value("string"), "content": List(part)})}
    root = write(columns, features)
    rows = read(root, task="conversation", image="images", conversations="messages")
    assert rows[0]["turns"] == [{"user": "Is <image> in <image>", "assistant": "Yes."}]
    assert [read_image_bytes(root, image) for image in [rows[0]["image"], *rows[0]["more_images"]]] == [
        drawn(0),
        drawn(1),
    ]
    assert [row["image"] is None for row in rows[1:]] == [True, True, False, False]
    assert read_image_bytes(root, rows[3]["image"]) == drawn(2)
    table = images_table(root, rows[4]["more_images"])
    assert table["reject"].to_pylist() == ["image_missing"]


def test_conversations_of_other_layouts(tmp_path):
    pairs = pa.array(
        [[{"user": "Q?", "assistant": "A.", "source": "x"}, {"user": "R?", "assistant": "B.", "source": "x"}]]
    )
    messages = pa.array([[{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]])
    older = pa.array([{"from": ["human", "gpt"], "value": ["Q?", "A."]}])
    pq.write_table(pa.table({"texts": pairs, "messages": messages, "older": older}), tmp_path / "a.parquet")
    for column, questions in (("texts", ["Q?", "R?"]), ("messages", ["Q?"]), ("older", ["Q?"])):
        [row] = read(tmp_path, task="conversation", conversations=column)
        assert [turn["user"] for turn in row["turns"]] == questions


def test_batches_name_their_files(write):
    root = write({"text": [str(i) for i in range(7)], "image": ["a.jpg"] * 7})
    source = get("datasets", SourceOptions(columns={"task": "caption", "image": "image", "caption": "text"}))
    files = [path.relative_to(root).as_posix() for path in source.files(root)]
    assert [batch.schema.metadata[b"file"].decode() for batch in source.read(root)] == files
    assert len(files) == 2


def test_files_that_cannot_be_used(tmp_path):
    columns = {"task": "caption", "image": "image", "caption": "text"}
    with pytest.raises(SourceError, match="needs `columns`"):
        get("datasets")
    with pytest.raises(SourceError, match=r"no file matches \*\*/\*\.parquet in"):
        read(tmp_path, **columns)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(SourceError, match=r"a\.parquet is not a complete Parquet or Arrow file"):
        read(tmp_path, **columns)
    table = {"image": ["a.jpg"], "text": ["x"], "when": pa.array([1], pa.timestamp("s")), "raw": [[b"x"]]}
    pq.write_table(pa.table(table), path)
    for change, message in (
        ({"caption": "title"}, r"one column 'title' \(caption\): correct `columns`; the columns are image, text"),
        ({"caption": "when"}, r"'when' \(caption\) has type timestamp"),
        ({"image": "raw"}, r"'raw' \(image\) has type list.*expected bytes, Image"),
        ({"image": "when"}, r"'when' \(image\) has type timestamp"),
    ):
        with pytest.raises(SourceError, match=message):
            read(tmp_path, **{**columns, **change})
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(SourceError, match=r"a\.parquet is not a complete"):
        read(tmp_path, **columns)


def test_saved_splits(tmp_path):
    one = Dataset.from_dict({"text": ["x"], "image": ["a.jpg"]})
    DatasetDict(train=one, test=one).save_to_disk(tmp_path / "saved")
    columns = {"task": "caption", "image": "image", "caption": "text"}
    with pytest.raises(SourceError, match=r"several splits \(train, test\): set `annotations` to the directory of one"):
        read(tmp_path / "saved", **columns)
    assert len(read(tmp_path / "saved" / "train", **columns)) == 1
    assert len(read(tmp_path / "saved", files="t*/*.arrow", **columns)) == 2
    state = tmp_path / "saved" / "train" / "state.json"
    for content in ("", "[]", '{"_data_files": 3}', '{"_data_files": [{"filename": "../../x.arrow"}]}'):
        state.write_text(content)
        with pytest.raises(SourceError, match=r"state\.json"):
            read(tmp_path / "saved" / "train", **columns)


def test_text_that_is_not_utf8_rejects_only_its_row(tmp_path):
    text = pa.array([b"a cup", b"caf\xe9", b"a dog"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, text.buffers())
    pq.write_table(pa.table({"text": texts, "image": ["a.jpg"] * 3}), tmp_path / "a.parquet")
    rows = read(tmp_path, task="caption", image="image", caption="text")
    assert rejects(rows) == {1: "not_utf8"}


VALUES = st.none() | st.text(max_size=5) | st.sampled_from(["<image>", "A"])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", None]), "content": VALUES}), max_size=4
)
TABLE = st.lists(
    st.fixed_dictionaries(
        {
            "image": st.none() | st.just({"bytes": b"x", "path": None}) | st.just({"bytes": None, "path": "a.png"}),
            "many": st.none() | st.lists(st.just({"bytes": b"x", "path": None}) | st.none(), max_size=2),
            "text": VALUES,
            "number": st.none() | st.integers(-2, 4),
            "texts": st.none() | st.lists(VALUES, max_size=3),
            "box": st.none() | st.lists(st.floats(allow_nan=True) | st.none(), max_size=5),
            "talk": st.none() | MESSAGES,
        }
    ),
    min_size=1,
    max_size=5,
)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    {
        "image": IMAGE,
        "many": pa.list_(IMAGE),
        "text": pa.string(),
        "number": pa.int64(),
        "texts": pa.list_(pa.string()),
        "box": pa.list_(pa.float64()),
        "talk": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
)
MAPS = [
    {"task": "caption", "image": "image", "caption": "text"},
    {"task": "caption", "image": "text", "caption": "text"},
    {"task": "open_question", "image": "many", "question": "text", "answer": "number", "text_only": True},
    {"task": "multiple_choice", "question": "text", "choices": "texts", "answer": "number", "context": "text"},
    {"task": "multiple_choice", "question": "text", "choices": "texts", "answer": "text"},
    {"task": "referring", "image": "image", "phrase": "text", "box": "box", "box_format": "xywh",
     "box_unit": "normalised"},
    {"task": "referring", "image": "image", "phrase": "text", "box": "box", "box_format": "xyxy", "box_unit": "pixels",
     "width": "number", "height": "number"},
    {"task": "conversation", "image": "many", "conversations": "talk"},
    {"task": "conversation", "conversations": "texts"},
]  # fmt: skip


def write_as(path, table, kind):
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)


@settings(max_examples=100, deadline=None)
@given(rows=TABLE, columns=st.sampled_from(MAPS), kind=st.sampled_from(["parquet", "arrow"]))
def test_any_content(tmp_path_factory, rows, columns, kind):
    root = tmp_path_factory.mktemp("any")
    write_as(root / f"a.{kind}", pa.Table.from_pylist(rows, SCHEMA), kind)
    found = read(root, files="a.*", **columns)
    assert len(found) == len(rows)
    for row in found:
        fields = ANNOTATIONS[columns["task"]].names[4:]
        assert (row["reject"] is None) == (row["detail"] is None)
        assert row["reject"] or row[fields[0]]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), columns=st.sampled_from(MAPS), kind=st.sampled_from(["parquet", "arrow"]))
def test_damaged_files(tmp_path_factory, data, columns, kind):
    root = tmp_path_factory.mktemp("damaged")
    rows = [
        {
            "image": {"bytes": b"x", "path": "a"}, "many": [{"bytes": b"x", "path": None}], "text": f"Käfer {i}",
            "number": i, "texts": ["a", "b"], "box": [0.1, 0.2, 0.3, 0.4],
            "talk": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        }
        for i in range(4)
    ]  # fmt: skip
    path = root / f"a.{kind}"
    write_as(path, pa.Table.from_pylist(rows, SCHEMA.with_metadata({"huggingface": json.dumps({"info": {}})})), kind)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        read(root, files="a.*", **columns)
    except SourceError as error:
        assert str(path) in str(error)
