"""Tests of the embeddings stage: same bytes cold, warm and after a kill, and no text is embedded twice."""

import dataclasses
import json
import logging
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from support.example_settings import settings_of
from transformers import AutoTokenizer, BertConfig, BertModel

from pipelines.core.arrow_files import read_table
from pipelines.core.store import MANIFEST, Store, read_manifest
from pipelines.dedup import embedder
from pipelines.dedup.embedder import EmbedderError
from pipelines.dedup.embeddings import embedder_path
from pipelines.dedup.settings import Dedup
from pipelines.jobs import examples
from pipelines.jobs.dataset import DatasetSpec, Tables
from pipelines.jobs.embeddings import build_embeddings
from pipelines.jobs.examples import build_examples
from pipelines.templates import sets

pytestmark = pytest.mark.slow

MODEL = "all-MiniLM-L6-v2"
# fmt: off
THINGS = [
    "cup", "car", "dog", "tree", "chair", "table", "lamp", "horse", "bottle", "phone", "boat", "bird", "clock", "shoe",
]
# fmt: on
COLORS = ["red", "blue", "green", "white", "brown"]
# Runs in a separate process, which is killed after writing its third part.
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from pipelines.dedup import embeddings as vectors
from pipelines.jobs import embeddings as job
from pipelines.jobs.dataset import DatasetSpec
from pipelines.core.store import Store

def write_and_die(out, embedder, table):
    write_part(out, embedder, table)
    if len(list(out.glob(".part-*"))) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

vectors.PART_TEXTS = 1
write_part, job._write_part = job._write_part, write_and_die
root = Path(sys.argv[1])
job.build_embeddings(Store(sys.argv[2]), [DatasetSpec("vqav2", "vqav2", root, root, max_turns=9)], sys.argv[3])
"""


def write_vqav2(root: Path, things: list[str]) -> DatasetSpec:
    """Writes three turns about each thing, two of which state the same fact, and some unusual texts."""
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
        "Is there a ukulele, a chrysanthemum or a kaleidoscopically coloured boomerang?",
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
    """Returns the number of texts that the model has embedded."""
    return sum(record.args[0] for record in caplog.records if record.msg == "embedded %d texts")


def test_only_contents_of_undecided_turns_are_embedded(cold):
    texts = set(read_table(cold / "embeddings.arrow")["text"].to_pylist())
    assert {"cup", "weather", "cup red"} <= texts
    assert "weather sunny" not in texts  # dissimilar to all other turns about its image
    assert "hermit" not in texts  # the only turn about its image
    assert not list(cold.glob(".part-*"))


def test_a_warm_table_is_byte_equal(cold, spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = Store(tmp_path / "store")
    half = build_embeddings(store, [write_vqav2(tmp_path / "half", THINGS[::2])], MODEL)
    first = embedded(caplog)
    complete = build_embeddings(store, [spec], MODEL)
    assert half != complete and table_bytes(complete) == table_bytes(cold)
    assert embedded(caplog) - first < first  # only the other half is embedded


def test_a_second_build_embeds_nothing_and_reads_no_annotation(spec, tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = build_embeddings(store, [spec], MODEL)
    monkeypatch.setattr("pipelines.jobs.embeddings.annotation_batches", lambda _: pytest.fail("annotations were read"))
    monkeypatch.setattr(embedder, "load", lambda *_: pytest.fail("the model was loaded"))
    assert build_embeddings(store, [spec], MODEL) == first


def test_a_killed_build_is_resumed(cold, spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command = [sys.executable, "-c", KILLED_BUILD, str(spec.annotations), str(tmp_path), MODEL]
    killed = subprocess.run(command, cwd=Path(__file__).resolve().parents[3])
    assert killed.returncode == -signal.SIGKILL
    parts = list(tmp_path.rglob(".part-*.arrow"))
    assert len(parts) == 3 and not (parts[0].parent / MANIFEST).exists()
    parts[0].write_bytes(parts[0].read_bytes()[:-1])  # a damaged part must be rebuilt, not reused
    directory = build_embeddings(Store(tmp_path), [spec], MODEL)
    assert table_bytes(directory) == table_bytes(cold)
    assert 0 < embedded(caplog) < read_manifest(directory)["num_texts"]
    assert not list(tmp_path.rglob(".part-*"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:9000] + bytes(9) + b[9009:]])
def test_a_damaged_table_is_rebuilt_and_its_vectors_are_not_reused(cold, spec, tmp_path, caplog, damage):
    store = Store(tmp_path / "store")
    table = build_embeddings(store, [spec], MODEL) / "embeddings.arrow"
    table.write_bytes(damage(table.read_bytes()))
    other, log = write_vqav2(tmp_path / "half", THINGS[::2]), []
    build_embeddings(store, [other], MODEL)
    assert build_embeddings(Store(tmp_path / "store", log=log.append), [spec], MODEL) == table.parent
    assert f"{table} is damaged" in log[0] and "it is rebuilt" in log[0]
    assert table_bytes(table.parent) == table_bytes(cold)


def test_decisions_depend_on_neither_cache_nor_workers(cold, spec, tmp_path, tokenizer_dir, monkeypatch):
    monkeypatch.setattr(examples, "BYTES_PER_PARTITION", 20_000)  # several partitions, so that both workers get some

    def decisions(store: Store, embeddings: Path, *workers: str) -> dict[str, bytes]:
        beam = ["--runner=FnApiRunner", *workers]
        built = build_examples(store, spec, settings_of(spec, tokenizer_dir), Tables(None, embeddings), beam)
        return {path.name: path.read_bytes() for path in built.iterdir() if path.name != MANIFEST}

    first = decisions(Store(tmp_path / "cold"), cold)
    assert sum(name.startswith("duplicates-") for name in first) > 1
    warm = Store(tmp_path / "warm")
    build_embeddings(warm, [write_vqav2(tmp_path / "half", THINGS[::2])], MODEL)
    embeddings = build_embeddings(warm, [spec], MODEL)
    two = "--direct_num_workers=2", "--direct_running_mode=multi_processing"
    assert decisions(warm, embeddings, *two) == first


def test_a_changed_template_requires_no_embedding(spec, tmp_path, tokenizer_dir, monkeypatch):
    other = dataclasses.replace(write_vqav2(tmp_path / "other", THINGS[:5]), name="gqa")
    store = Store(tmp_path / "store")

    def built() -> list[Path]:
        embeddings = build_embeddings(store, [spec, other], MODEL)
        examples = [
            build_examples(store, s, settings_of(s, tokenizer_dir), Tables(None, embeddings)) for s in (spec, other)
        ]
        return [embeddings, *examples]

    before = built()
    shutil.copytree(sets.ROOT, tmp_path / "templates")
    file = tmp_path / "templates/fine/gqa.yaml"
    file.write_text(file.read_text().replace("{question}", "Look, then say: {question}"))
    monkeypatch.setattr(sets, "ROOT", tmp_path / "templates")
    monkeypatch.setattr(embedder, "load", lambda *_: pytest.fail("the model was loaded"))
    after = built()
    assert after[:2] == before[:2] and after[2] != before[2]


def test_the_embedded_texts_depend_on_threshold_comparison_and_rule(spec, tmp_path):
    def texts(**dedup) -> set[str]:
        changed = dataclasses.replace(spec, dedup=Dedup(**dedup))
        directory = build_embeddings(Store(tmp_path), [changed], MODEL)
        return set(read_table(directory / "embeddings.arrow")["text"].to_pylist()) if directory else set()

    usual, strict = texts(), texts(threshold=0.999)
    assert strict < usual < texts(threshold=0.01)
    assert texts(compare="answer") == {"yes", "sunny", "ja 😀", *COLORS}
    assert texts(rule="off") == texts(rule="answer") == set()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """An untrained embedder of dimension 32."""
    directory = tmp_path_factory.mktemp("small")
    AutoTokenizer.from_pretrained(str(embedder_path(MODEL))).save_pretrained(directory / "bert")
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(directory / "bert")
    words = Transformer(str(directory / "bert"), max_seq_length=64)
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu")
    model.save(str(directory / "model"))
    return directory / "model"


def test_an_embedder_of_a_different_dimension_gets_its_own_table(cold, spec, small, tmp_path):
    first = build_embeddings(Store(tmp_path), [spec], MODEL)
    other = build_embeddings(Store(tmp_path), [spec], str(small))
    assert table_bytes(first) == table_bytes(cold)
    assert read_table(other / "embeddings.arrow").schema.field("vector").type.list_size == 32


def scale_layer_norm(model: Path, factor: float) -> None:
    weights = load_file(model / "model.safetensors")
    name = "embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"
    changed = {key: value * factor if key in name else value for key, value in weights.items()}
    save_file(changed, model / "model.safetensors", {"format": "pt"})


def remove_vocabulary(model: Path) -> None:
    for file in ("tokenizer.json", "vocab.txt"):
        (model / file).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: scale_layer_norm(model, math.nan), "zero or NaN vectors"),
        (lambda model: (model / "model.safetensors").write_bytes(b"half"), "cannot be loaded"),
        (lambda model: (model / "model.safetensors").unlink(), "contains no weights"),
        (lambda model: (model / "modules.json").write_text("{"), "cannot be loaded"),
        (lambda model: (model / "config.json").unlink(), "cannot be loaded"),
        (remove_vocabulary, "gives different words the same tokens"),
    ],
)
def test_a_damaged_embedder_is_an_error_and_not_a_wrong_decision(spec, small, tmp_path, damage, message):
    model = tmp_path / "model"
    shutil.copytree(small, model)
    damage(model)
    with pytest.raises(EmbedderError, match=message):
        build_embeddings(Store(tmp_path / "store"), [spec], str(model))
    assert not list((tmp_path / "store").glob(f"embeddings/*/{MANIFEST}"))


def test_unusable_embedders_are_refused_before_reading_data(spec, tmp_path):
    with pytest.raises(EmbedderError, match=r"modules\.json"):
        build_embeddings(Store(tmp_path), [spec], "nowhere")
    with pytest.raises(EmbedderError, match="'tpu' is not one of cpu, cuda"):
        build_embeddings(Store(tmp_path), [spec], MODEL, "tpu")
