"""Beam job 1 on synthetic annotations."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.example_settings import example_settings
from support.vectors import embed_turns

from pipelines.core.arrow_files import read_table, write_batches
from pipelines.core.integrity import write_manifest
from pipelines.dedup.settings import Dedup
from pipelines.examples.beam_job import ExamplesJob, run_examples_job
from pipelines.examples.ledger import check_ledger
from pipelines.examples.render import Renderer
from pipelines.schema import ANNOTATIONS, IMAGES
from pipelines.templates.sets import load_templates
from pipelines.tokens.tokenizer import load_tokenizer

BEAM = ["--runner=FnApiRunner"]
QUESTIONS = ["What colour is the car?", "How many dogs are there?", "Is it raining?", "Who holds the cup?"]
ANSWERS = ["red", "two", "no", "a woman"]


def annotations():
    rows = []
    for row in range(600):
        rows.append(
            {
                "row": row,
                "image": f"i{row % 150}.jpg",
                "question": QUESTIONS[row // 150],
                "answer": ANSWERS[row // 150],
            }
        )
    rows[7] |= {"reject": "empty_question", "detail": "question is empty", "question": None, "answer": None}
    rows[8]["answer"] = "  "
    rows[9]["question"] = "What is <image> here?"
    rows[10]["answer"] = "long " * 300
    rows[11]["answer"] = "red\nHuman: And the bus?"
    return pa.Table.from_pylist(rows, ANNOTATIONS["open_question"])


def images():
    rows = [
        {"image": f"i{k}.jpg", "sha256": f"checksum{k}", "num_bytes": 9, "width": 3, "height": 2} for k in range(150)
    ]
    rows[3] = {"image": "i3.jpg", "reject": "image_corrupt", "detail": "truncated"}
    table = pa.Table.from_pylist(rows, IMAGES)
    return table.sort_by("image")


@pytest.fixture
def job(tmp_path, tokenizer_dir):
    for name in ("annotations", "images", "out", "embeddings"):
        (tmp_path / name).mkdir()
    table = annotations()
    write_batches(tmp_path / "annotations" / "annotations-00000.arrow", table.schema, table.to_batches(128))
    write_batches(tmp_path / "images" / "images.arrow", IMAGES, images().to_batches(64))
    good = [row for row in table.to_pylist() if not row["reject"]]
    questions, answers = [row["question"] for row in good], [row["answer"].strip() for row in good]
    embedded = embed_turns(questions, answers)
    write_batches(tmp_path / "embeddings" / "embeddings.arrow", embedded.schema, embedded.to_batches())
    for name in ("annotations", "images", "embeddings"):
        write_manifest(tmp_path / name, {})
    settings = example_settings(tokenizer_dir, max_turns=3, dedup=Dedup(rule="semantic"))
    return ExamplesJob(
        annotations=tmp_path / "annotations",
        images=tmp_path / "images",
        embeddings=tmp_path / "embeddings",
        settings=settings,
        partitions=5,
        out=tmp_path / "out",
    )


def outputs(job):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(job.part("examples", 0, "arrow").parent.iterdir())
    }


def all_examples(job):
    return pa.concat_tables([read_table(job.part("examples", p, "arrow")) for p in range(job.partitions)]).to_pylist()


def all_rejects(job):
    parts = [pq.read_table(job.part("rejects", p, "parquet")) for p in range(job.partitions)]
    return {r["row"]: r["reason"] for r in pa.concat_tables(parts).to_pylist()}


def test_every_row_is_in_an_example_or_a_reject_with_a_reason(job):
    counts = run_examples_job(job, BEAM)
    rejects = all_rejects(job)
    assert rejects == {
        7: "empty_question",
        8: "empty_answer",
        9: "special_token_in_text",
        10: "too_long",
        11: "role_name_in_text",
        **dict.fromkeys((3, 153, 303, 453), "image_corrupt"),
    }
    rows = [turn["row"] for example in all_examples(job) for turn in example["turns"]]
    assert sorted(rows) == [row for row in range(600) if row not in rejects]
    assert sum(c["rows"]["read"] for c in counts) == 600
    for count in counts:
        check_ledger("rows", count["rows"])


def test_examples_are_conversations_about_one_image_within_the_turn_limit(job):
    run_examples_job(job, BEAM)
    for example in all_examples(job):
        assert 1 <= len(example["turns"]) <= 3
        assert {f"i{t['row'] % 150}.jpg" for t in example["turns"]} == set(example["images"])
        assert example["image_sha256"] == [f"checksum{example['images'][0][1:-4]}"]


def test_supervised_tokens_decode_to_the_answers(job, tokenizer_dir):
    run_examples_job(job, BEAM)
    prepared = load_tokenizer(tokenizer_dir)
    for example in all_examples(job):
        ids, mask = np.array(example["input_ids"]), np.array(example["loss_mask"])
        text = prepared.tokenizer.decode(ids[mask].tolist(), skip_special_tokens=False)
        assert text == "".join(f" {turn['assistant']}</s>" for turn in example["turns"])
        assert example["num_supervised"] == mask.sum() and example["num_tokens"] == len(ids)


def test_bytes_do_not_depend_on_batches_workers_or_restarts(job, tmp_path):
    run_examples_job(job, BEAM)
    whole = outputs(job)
    # Use different batch sizes, a different file order and two worker processes.
    table = annotations()
    other = tmp_path / "other"
    other.mkdir()
    write_batches(other / "annotations-00000.arrow", table.schema, table.slice(350).to_batches(50))
    write_batches(other / "annotations-00001.arrow", table.schema, table.slice(0, 350).to_batches(77))
    write_manifest(other, {})
    again = dataclasses.replace(job, annotations=other, out=tmp_path / "again")
    run_examples_job(again, [*BEAM, "--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    assert outputs(again) == whole
    # Simulate a killed run, in which some partitions are complete and one is partly written.
    for path in job.part("x", 0, "y").parent.glob("*-00001.*"):
        path.unlink()
    job.marker(2).unlink()
    job.part("examples", 2, "arrow").write_bytes(b"half")
    run_examples_job(job, BEAM)
    assert outputs(job) == whole


def test_a_long_conversation_is_split_at_turn_boundaries(job, tmp_path):
    table = pa.Table.from_pylist(
        [
            {
                "row": 0,
                "turns": [{"user": f"Question {i} " + "why " * i, "assistant": "because " * 20} for i in range(20)],
            },
            {
                "row": 1,
                "turns": [{"user": "short", "assistant": "yes"}, {"user": "x", "assistant": "long " * 900}],
            },
        ],
        ANNOTATIONS["conversation"],
    )
    settings = dataclasses.replace(
        job.settings,
        dataset="llava150k",
        task="conversation",
        templates=load_templates("fine", "llava150k", "conversation"),
    )
    rendered = Renderer(settings).render(table, None)
    examples = rendered.examples.to_pylist()
    assert len(examples) > 2
    assert all(example["num_tokens"] <= 400 for example in examples)
    texts = [t["user"] for example in examples for t in example["turns"]]
    assert texts == [t["user"].strip() for t in table["turns"][0].as_py()] + ["short"]
    assert rendered.counts["rows"] == {"read": 2, "examples": 2, "duplicates": 0, "rejects": {}}
    assert rendered.counts["turns"] == {"read": 22, "examples": 21, "duplicates": 0, "rejects": {"too_long": 1}}
    # The number of pieces is minimal: no two adjacent ones would have fitted together.
    lengths = [example["num_tokens"] for example in examples if example["turns"][0]["row"] == 0]
    assert all(a + b > 400 for a, b in itertools.pairwise(lengths[:-1]))


def test_duplicates_are_removed_and_recorded(job):
    texts = [
        ("Is the car red?", "yes"),
        ("Is the car red?", "yes"),
        ("How many people are there?", "3"),
    ]
    rows = [{"row": i, "image": "i0.jpg", "question": q, "answer": a} for i, (q, a) in enumerate(texts)]
    embedded = embed_turns([q for q, _ in texts], [a for _, a in texts])
    write_batches(job.embeddings / "embeddings.arrow", embedded.schema, embedded.to_batches())
    table = pa.Table.from_pylist(rows, ANNOTATIONS["open_question"])
    rendered = Renderer(job.settings, job.embeddings).render(table, images())
    [duplicate] = rendered.duplicates.to_pylist()
    assert {duplicate["row"], duplicate["kept_row"]} == {0, 1}
    assert duplicate["text"] == "Is the car red? yes"
    assert rendered.counts["rows"] == {"read": 3, "examples": 2, "duplicates": 1, "rejects": {}}


def test_unaccounted_rows_are_an_error():
    with pytest.raises(RuntimeError, match="3 rows read, but 2 accounted for"):
        check_ledger("rows", {"read": 3, "examples": 1, "duplicates": 0, "rejects": {"x": 1}})


def test_an_image_missing_from_the_images_table_is_an_error(job):
    table = annotations().slice(0, 5)
    with pytest.raises(RuntimeError, match=r"image i\d.jpg is not in the images table"):
        Renderer(job.settings, job.embeddings).render(table, images().slice(0, 1))


def test_markers_contain_the_counts(job):
    counts = run_examples_job(job, BEAM)
    assert counts == [job.counts(p) for p in range(job.partitions)]
