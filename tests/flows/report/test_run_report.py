"""Tables, gallery and loss curve agree with manifests, shards and metrics."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.report import charts, gallery, score_tables
from pipelines.core.integrity import write_manifest
from pipelines.schema import SHARD

BOX = "0.250,0.500,0.750,1.000"


def png(color: str = "white") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), color).save(buffer, format="PNG")
    return buffer.getvalue()


def row(index: int, dataset: str, user: str, assistant: str, *images: bytes) -> dict:
    return {
        "index": index,
        "dataset": dataset,
        "example": index,
        "images": [{"bytes": image, "path": "a.png"} for image in images],
        "turns": [{"user": user, "assistant": assistant, "template": "t.x", "row": 7}],
        "input_ids": [1, 2],
        "loss_mask": [False, True],
        "num_tokens": 2,
        "num_supervised": 1,
    }


@pytest.fixture
def shards(tmp_path):
    rows = [row(i, "many", f"question {i}", "yes", png()) for i in range(600)]
    rows.append(row(600, "rare", "Where is it? ``` <b>", BOX, png()))
    rows.append(row(601, "text", "Hello", "Hello"))
    rows.append(row(602, "two", "<image> or <image>?", BOX, png("red"), png("blue")))
    pq.write_table(pa.Table.from_pylist(rows, SHARD), tmp_path / "s.parquet", row_group_size=100)
    datasets = {"many": {"samples": 600}, "rare": {"samples": 1}, "text": {"samples": 1}}
    datasets["two"] = {"samples": 1}
    write_manifest(tmp_path, {"shards": [{"file": "s.parquet"}], "datasets": datasets})
    return tmp_path


def test_the_gallery_shows_every_dataset_even_rare_ones(shards):
    cards = gallery.cards(shards, 2)
    assert [card.title.split(",")[0] for card in cards] == ["many", "many", "rare", "text", "two"]
    assert cards[0].text.startswith("Human: question 0\nAI: yes\n")
    assert "row 7 with template t.x" in cards[0].text
    assert cards[3].images == ()


def test_all_images_of_a_sample_are_shown_in_order(shards):
    cards = gallery.cards(shards, 1)
    colours = [Image.open(io.BytesIO(image)).getcolors() for image in cards[-1].images]
    assert colours == [[(224 * 112, (255, 0, 0))], [(224 * 112, (0, 0, 255))]]  # no box: its image is ambiguous
    text = gallery.markdown(cards, lambda number, _: f"{number}.png")
    assert [line for line in text.splitlines() if line.startswith("![two")] == [
        "![two, sample 602 (example 602)](2.png)", "![two, sample 602 (example 602)](3.png)",
    ]  # fmt: skip


def test_boxes_of_the_text_are_drawn_into_the_image(shards):
    plain, boxed = (Image.open(io.BytesIO(gallery.cards(shards, 1)[i].images[0])) for i in (0, 1))
    assert plain.size == boxed.size == (224, 112)
    assert plain.getcolors() == [(224 * 112, (255, 255, 255))]
    marked = boxed.getpixel((224 // 4, 112 * 3 // 4))
    assert marked != (255, 255, 255)
    assert boxed.getpixel((224 // 2, 112 * 3 // 4)) == boxed.getpixel((10, 10)) == (255, 255, 255)


def test_text_cannot_break_out_of_its_code_block(shards):
    text = gallery.markdown([gallery.cards(shards, 1)[1]], lambda number, _: f"{number}.png")
    assert "](0.png)" in text
    assert "\n````text\nHuman: Where is it? ``` <b>" in text


def test_scores_are_shown_next_to_the_shuffled_image_control():
    summary = {
        "pope": {
            "accuracy": 90.0,
            "num_questions": 3,
            "recall": None,
            "splits": {"random": {"accuracy": 95.0, "tp": 1}},
        },
        "shuffled": {"pope": {"accuracy": 51.0, "splits": {"random": {"accuracy": 52.0}}}},
        "settings": {"seed": 0, "pope": {"accuracy": 1.0}},
    }
    assert score_tables.scores(summary) == [
        {"benchmark": "pope", "part": "all", "measure": "accuracy", "score": "90.0", "shuffled images": "51.0"},
        {"benchmark": "pope", "part": "random", "measure": "accuracy", "score": "95.0", "shuffled images": "52.0"},
    ]
    assert "shuffled images" not in score_tables.scores({"pope": {"accuracy": 90.0}})[0]


def test_a_step_logged_twice_counts_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": s, "loss": v, "losses": {"a": v}, "learning_rate": 0.1} for s, v in ((2, 5.0), (4, 4.0), (4, 3.0))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row["loss"] for row in charts.read_metrics(path)] == [5.0, 3.0]
    assert Image.open(io.BytesIO(charts.loss_curve({"pretrain": path}))).format == "PNG"
