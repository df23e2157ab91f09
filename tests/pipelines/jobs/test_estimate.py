"""Estimates from a sample of rows are close to the counts of all rows."""

import dataclasses

import pyarrow as pa
import pytest
from support.example_settings import settings_of as settings_for

from pipelines.dedup.settings import Dedup
from pipelines.examples.render import Renderer
from pipelines.jobs.dataset import DatasetSpec
from pipelines.jobs.estimate import SAMPLE_ROWS, count_examples, estimate, sample_rows
from pipelines.schema import ANNOTATIONS
from pipelines.templates.sets import load_templates


def annotations(num_rows: int) -> pa.Table:
    """Builds annotations with several questions per image and occasional rows without an image."""
    rows = []
    for row in range(num_rows):
        image = None if row % 97 == 0 else f"{(row * row + 7 * row) % (num_rows // 3)}.jpg"
        rows.append(
            {"row": row, "image": image, "question": f"Which? {'very ' * (row % 9)}", "answer": "so " * (row % 5 + 1)}
        )
    rows[3] = {"row": 3, "reject": "missing_field", "detail": "question"}
    return pa.Table.from_pylist(rows, ANNOTATIONS["open_question"])


@pytest.fixture
def settings_of(tokenizer_dir, tmp_path):
    def make(rule: str = "off"):
        spec = DatasetSpec("vqav2", "vqav2", tmp_path, tmp_path / "nowhere", max_turns=3, dedup=Dedup(rule=rule))
        return spec, settings_for(spec, tokenizer_dir, max_text_tokens=3000)

    return make


def test_a_sample_keeps_the_rows_of_an_image_together():
    table = annotations(9000)
    sample = sample_rows(table, False, 500)
    assert 400 <= sample.num_rows <= 500
    assert sample["row"].to_pylist() == sorted(sample["row"].to_pylist())
    chosen = set(sample["image"].drop_null().to_pylist())
    assert sample.filter(pa.compute.is_valid(sample["image"])).num_rows == sum(
        image in chosen for image in table["image"].to_pylist()
    )
    assert sample_rows(table, True, 500).num_rows == 500
    assert sample_rows(table, False, 9000).equals(table)


def test_an_estimate_is_close_to_the_counts_of_all_rows(settings_of):
    table = annotations(4 * SAMPLE_ROWS)
    spec, settings = settings_of()
    exact = Renderer(settings).render(table, None).counts
    found = estimate(spec, table, settings, embeddings=None, images=None, embed_images=False)
    assert found.rendered <= SAMPLE_ROWS
    assert found.examples == pytest.approx(exact["num_examples"], rel=0.05)
    assert found.turns == pytest.approx(exact["turns"]["examples"], rel=0.05)
    assert found.supervised == pytest.approx(exact["num_supervised"], rel=0.05)
    assert count_examples(table, False, 3) == exact["num_examples"]


def test_duplicates_that_need_vectors_are_not_removed_which_is_reported(settings_of):
    table = annotations(300)
    assert (
        estimate(*_swap(settings_of("answer"), table), embeddings=None, images=None, embed_images=False).not_removed
        == ()
    )
    found = estimate(*_swap(settings_of("semantic"), table), embeddings=None, images=None, embed_images=False)
    assert found.not_removed == ("duplicates",)
    assert found.turns == 299


def test_missing_images_are_predicted(settings_of, tmp_path):
    (tmp_path / "nowhere").mkdir()
    spec, settings = settings_of()
    found = estimate(spec, annotations(300), settings, embeddings=None, images=None, embed_images=True)
    assert found.examples == 4  # the rows without an image


def _swap(pair, table):
    spec, settings = pair
    return spec, table, settings


def test_all_images_of_a_conversation_are_looked_up(settings_of, tmp_path):
    _, settings = settings_of()
    (tmp_path / "here.jpg").touch()
    turns = [{"user": "What differs?", "assistant": "All."}]
    rows = [
        {"row": row, "image": "here.jpg", "turns": turns, "more_images": [other]}
        for row, other in enumerate(("here.jpg", "gone.jpg"))
    ]
    table = pa.Table.from_pylist(rows, ANNOTATIONS["conversation"])
    spec = DatasetSpec("chats", "llava", tmp_path, tmp_path)
    settings = dataclasses.replace(
        settings, dataset="chats", task="conversation", templates=load_templates("fine", "chats", "conversation")
    )
    found = estimate(spec, table, settings, embeddings=None, images=None, embed_images=True)
    assert (found.examples, found.images) == (1, 2)
