"""The embeddings stage: the same bytes cold, warm and after a kill; nothing is embedded twice."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel

from pipelines import embedder
from pipelines.arrow_files import read_table
from pipelines.build import DatasetSpec, build_annotations
from pipelines.embed import EmbedderError, embedder_path
from pipelines.embed_stage import build_embeddings
from pipelines.store import MANIFEST, Store, read_manifest

MODEL = "all-MiniLM-L6-v2"
# fmt: off
THINGS = [
    "cup", "car", "dog", "tree", "chair", "table", "lamp", "horse", "bottle", "phone", "boat", "bird", "clock", "shoe",
]
# fmt: on
COLORS = ["red", "blue", "green", "white", "brown"]
# A process of its own, which is killed when its third part is written.
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from pipelines import embed, embed_stage
from pipelines.build import DatasetSpec
from pipelines.store import Store

def write_and_die(out, embedder, table):
    write_part(out, embedder, table)
    if len(list(out.glob("part-*"))) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

embed.PART_TEXTS = 1
write_part, embed_stage._write_part = embed_stage._write_part, write_and_die
root = Path(sys.argv[1])
embed_stage.build_embeddings(Store(sys.argv[2]), [DatasetSpec("vqav2", "vqav2", root, root, max_turns=9)], sys.argv[3])
"""


def write_vqav2(root: Path, things: list[str]) -> DatasetSpec:
    """Three turns about each thing, two of which tell the same, and unusual texts."""
    turns = []
    for k, thing in enumerate(things):
        color = COLORS[k % len(COLORS)]
        turns += [
            (k, f"What color is the {thing}?", color),
            (k, f"Is there a {color} {thing} beside the wall?", "yes"),
            (k, "How is the weather?", "sunny"),
        ]
    unusual = [
        "😀😀",
        "Wie viele Tassen stehen da?",
        "猫は何匹ですか",
        "word " * 10_000,
        "?!",
        "Is it red?",
        "Is it red?",
    ]
    turns += [(len(things), question, "ja 😀") for question in unusual]
    turns.append((len(things) + 1, "Who is never compared?", "a hermit"))
    root.mkdir()
    questions = [{"question_id": n, "image_id": image, "question": q} for n, (image, q, _) in enumerate(turns)]
    answers = [{"question_id": n, "multiple_choice_answer": a} for n, (_, _, a) in enumerate(turns)]
    (root / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": answers}))
    return DatasetSpec("vqav2", "vqav2", root, root, max_turns=9)


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> DatasetSpec:
    return write_vqav2(tmp_path_factory.mktemp("official") / "VQAv2", THINGS)


@pytest.fixture(scope="module")
def cold(spec, tmp_path_factory) -> Path:
    return build_embeddings(Store(tmp_path_factory.mktemp("store")), [spec], MODEL, log=print)


def table_bytes(directory: Path) -> bytes:
    return (directory / "embeddings.arrow").read_bytes()


def embedded(caplog) -> int:
    """How many texts went through the model."""
    return sum(record.args[0] for record in caplog.records if record.msg == "embedded %d texts")


def test_only_what_is_in_doubt_is_embedded(cold):
    texts = set(read_table(cold / "embeddings.arrow")["text"].to_pylist())
    assert {"cup", "weather", "cup red"} <= texts
    assert "weather sunny" not in texts  # like nothing else about its image
    assert "hermit" not in texts  # alone with its image
    assert not list(cold.glob("part-*"))


def test_a_warm_table_is_byte_equal(cold, spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = Store(tmp_path / "store")
    half = build_embeddings(store, [write_vqav2(tmp_path / "half", THINGS[::2])], MODEL)
    first = embedded(caplog)
    whole = build_embeddings(store, [spec], MODEL)
    assert half != whole and table_bytes(whole) == table_bytes(cold)
    assert embedded(caplog) - first < first  # only the other half


def test_a_second_build_embeds_nothing_and_reads_no_annotation(spec, tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = build_embeddings(store, [spec], MODEL)
    [table] = build_annotations(store, spec).glob("*.arrow")
    table.unlink()
    monkeypatch.setattr(embedder, "load", lambda *_: pytest.fail("the model was loaded"))
    assert build_embeddings(store, [spec], MODEL) == first


def test_a_killed_build_is_taken_up_again(cold, spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command = [sys.executable, "-c", KILLED_BUILD, str(spec.annotations), str(tmp_path), MODEL]
    killed = subprocess.run(command, cwd=Path(__file__).resolve().parents[2])
    assert killed.returncode == -signal.SIGKILL
    parts = list(tmp_path.rglob("part-*.arrow"))
    assert len(parts) == 3 and not (parts[0].parent / MANIFEST).exists()
    parts[0].write_bytes(parts[0].read_bytes()[:-1])  # a damaged part is made again, not taken over
    directory = build_embeddings(Store(tmp_path), [spec], MODEL)
    assert table_bytes(directory) == table_bytes(cold)
    assert 0 < embedded(caplog) < read_manifest(directory)["num_texts"]
    assert not list(tmp_path.rglob("part-*"))


def test_thresholds_and_comparisons_have_tables_of_their_own(spec, tmp_path):
    def texts(**dedup) -> set[str]:
        options = {f"dedup_{name}": value for name, value in dedup.items()}
        changed = DatasetSpec(**{**vars(spec), **options})
        directory = build_embeddings(Store(tmp_path), [changed], MODEL)
        return set(read_table(directory / "embeddings.arrow")["text"].to_pylist()) if directory else set()

    usual, strict = texts(), texts(threshold=0.999)
    assert strict < usual < texts(threshold=0.01)
    assert texts(compare="answer") == {"yes", "sunny", "ja 😀", *COLORS}
    assert texts(rule="off") == texts(rule="answer") == set()


def test_an_embedder_of_another_dimension_has_a_table_of_its_own(cold, spec, tmp_path):
    small = tmp_path / "small"
    words = Transformer(str(write_bert(tmp_path / "bert")), max_seq_length=64)
    SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu").save(str(small))
    first = build_embeddings(Store(tmp_path / "store"), [spec], MODEL)
    other = build_embeddings(Store(tmp_path / "store"), [spec], str(small))
    assert table_bytes(first) == table_bytes(cold)
    assert read_table(other / "embeddings.arrow").schema.field("vector").type.list_size == 32


def write_bert(directory: Path) -> Path:
    """A BERT of width 32 that has learned nothing."""
    AutoTokenizer.from_pretrained(str(embedder_path(MODEL))).save_pretrained(directory)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(directory)
    return directory


def test_unusable_embedders_are_refused_before_anything_is_read(spec, tmp_path):
    with pytest.raises(EmbedderError, match=r"modules\.json"):
        build_embeddings(Store(tmp_path), [spec], "nowhere")
    with pytest.raises(EmbedderError, match="'tpu' is none of cpu, cuda"):
        build_embeddings(Store(tmp_path), [spec], MODEL, "tpu")
