"""Flipped bits in every kind of entry that a build makes: found, named, and rebuilt with the same bytes."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from support.damage import files_of, flip
from support.example_settings import settings_of

from pipelines.core.integrity import faults
from pipelines.core.store import MANIFEST, Store
from pipelines.images.references import ImageRoot
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.benchmark_items import BenchmarkImage, BenchmarkItems, build_benchmark_items
from pipelines.jobs.dataset import DatasetSpec, Tables
from pipelines.jobs.examples import build_examples
from pipelines.jobs.images import build_images
from pipelines.jobs.shards import build_shards
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.mixture.shares import Balance
from pipelines.shards.settings import ShardSettings
from pipelines.shards.verify import verify

pytestmark = pytest.mark.slow

KINDS = ("annotations", "images", "tokenizers", "benchmark_items", "examples", "shards")


@dataclass(frozen=True)
class World:
    """Official files, and a store in which everything is built from them."""

    spec: DatasetSpec
    llm: str
    store: Path

    def build(self, store: Store) -> dict[str, Path]:
        """Builds all kinds of entries; returns their directories."""

        def quiet(line: str) -> None:
            pass

        annotations = build_annotations(store, self.spec, quiet)
        images = build_images(store, [self.spec], quiet)["vqav2"]
        tokenizer = prepare_tokenizer(store, self.llm)
        root = ImageRoot(self.spec.images)
        shown = [BenchmarkImage("one", "1", lambda: root.read(next(self.spec.images.glob("*.jpg")).name))]
        items = build_benchmark_items(store, BenchmarkItems("bench", shown, [("1", "What is it?")]), quiet)
        settings = settings_of(self.spec, tokenizer)
        examples = build_examples(store, self.spec, settings, Tables(images), log=quiet)
        of_shards = ShardSettings(
            balance=Balance(strategy="tuned"),
            weights={"vqav2": 1},
            num_samples=12,
            shard_bytes=1 << 20,
            tokenizer=tokenizer,
        )
        shards = build_shards(store, {"vqav2": examples}, {"vqav2": self.spec.images}, of_shards, log=quiet)
        return dict(zip(KINDS, (annotations, images, tokenizer, items, examples, shards), strict=True))


@pytest.fixture(scope="module")
def world(llm_dir, tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("official")
    for number in range(3):
        Image.new("RGB", (9, 8), (80 * number, 0, 0)).save(root / f"COCO_train2014_{number:012d}.jpg")
    asked = [(number, number % 4, f"What is thing {number}?") for number in range(8)]  # the last image is missing
    questions = [{"question_id": n, "image_id": image, "question": question} for n, image, question in asked]
    answers = [{"question_id": n, "multiple_choice_answer": "red"} for n, *_ in asked]
    (root / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": answers}))
    built = World(DatasetSpec("vqav2", "vqav2", root, root), str(llm_dir), root / "store")
    built.build(Store(built.store))
    return built


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["files", "manifest"])
def test_a_flipped_bit_is_found_named_and_made_again(world, tmp_path, kind, what):
    shutil.copytree(world.store, tmp_path / "store")
    (directory,) = (tmp_path / "store" / kind).glob("[!.]*")
    expected = files_of(tmp_path / "store")
    contents = json.loads((directory / MANIFEST).read_text())["contents"]
    names = [MANIFEST] if what == "manifest" else [name for name, (size, _) in contents.items() if size]
    assert names
    for seed, name in enumerate(names):
        flip(directory / name, seed)
    log: list[str] = []
    assert world.build(Store(tmp_path / "store", log=log.append))[kind] == directory
    for name in names:
        assert any(line.startswith(f"{directory / name} ") and "it is rebuilt" in line for line in log), name
    assert files_of(tmp_path / "store") == expected
    assert world.build(Store(tmp_path / "store", log=pytest.fail))[kind] == directory


def test_every_file_of_a_store_is_covered(world):
    entries = [path.parent for path in world.store.glob(f"*/*/{MANIFEST}")]
    assert {entry.parent.name for entry in entries} == set(KINDS)
    for entry in entries:
        assert faults(entry) == []
        assert {*json.loads((entry / MANIFEST).read_text())["contents"], MANIFEST} == set(files_of(entry))


def test_verify_finds_a_flipped_bit_in_any_file_of_shards(world, tmp_path):
    (directory,) = world.store.glob("shards/[!.]*")
    for number, path in enumerate(sorted(path for path in directory.iterdir() if path.name != MANIFEST)):
        copy = shutil.copytree(directory, tmp_path / str(number))
        assert verify(str(copy), lambda line: None) == []
        flip(copy / path.name, number)
        assert any(path.name in fault for fault in verify(str(copy), lambda line: None))
