"""Tests the loader: which samples a rank gets, the tensors made from them, and the handling of damaged data."""

import hashlib
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.training_data import encoded_image, rows, write_shards

from model.processing import HoneybeeProcessor
from model.training.data.collate import IGNORE_INDEX, Batch, Collator
from model.training.data.decode import Decoder
from model.training.data.loader import Loader
from model.training.data.rank_assignment import PackAssignment
from model.training.data.shard_reader import DataError, Example, Shards
from model.training.engine.packed_attention import Examples
from model.training.settings import Loading
from pipelines.core.integrity import write_manifest
from pipelines.packing.plan import Packing, make_plan
from pipelines.shards.remote import push

M = 4  # visual tokens
COUNT = 96


@pytest.fixture(scope="module")
def processor(tiny_backbones: Path) -> HoneybeeProcessor:
    return HoneybeeProcessor.from_backbones(str(tiny_backbones / "vision"), str(tiny_backbones / "llm"), M)


@pytest.fixture(scope="module")
def samples(processor: HoneybeeProcessor) -> list[dict]:
    return rows(processor.tokenizer, COUNT)


@pytest.fixture
def write(tiny_backbones: Path, processor: HoneybeeProcessor, tmp_path: Path) -> Callable[[list[dict]], Shards]:
    def write(samples: list[dict], name: str = "shards") -> Shards:
        return Shards(write_shards(tmp_path / name, samples, tiny_backbones / "llm", processor.image_token_id))

    return write


def collator(processor: HoneybeeProcessor, shards: Shards, max_length: int = 512) -> Collator:
    return Collator(processor.image_token_id, M, processor.tokenizer.pad_token_id, max_length, shards.datasets)


def loader(
    processor: HoneybeeProcessor, shards: Shards, deal: PackAssignment, packing: Packing | None = None, **settings: int
) -> Loader:
    plan = make_plan(shards.lengths, packing, M)
    decode = Decoder.like(processor.image_processor)
    return Loader(shards, plan, deal, collator(processor, shards), decode, Loading(**settings))


def first_batch(loader: Loader) -> Batch:
    """Returns the only batch of the first step, for a loader with one forward pass per step."""
    steps = iter(loader)
    (batch,) = next(steps)
    steps.close()
    return batch


def names(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.names]


def expected_names(samples: list[dict], indices: Iterable[int]) -> list[str]:
    return [f"sample {i} ({samples[i]['dataset']} example {samples[i]['example']})" for i in indices]


def test_samples_are_read_as_written(write: Callable, samples: list[dict]) -> None:
    read = write(samples).read(range(COUNT))
    assert [example.index for example in read] == list(range(COUNT))
    for example, sample in zip(read, samples, strict=True):
        assert example.input_ids.tolist() == sample["input_ids"]
        assert example.loss_mask.tolist() == sample["loss_mask"]
        assert [image.read() for image in example.images] == [image["bytes"] for image in sample["images"]]


def test_indices_across_shards_and_row_groups(write: Callable, samples: list[dict]) -> None:
    shards = write(samples)
    for wanted in (range(30, 90), [3, 4], [], [0, 15, 16, 39, 40, 95], [95, 0, 50]):  # shards of 40, groups of 16
        assert [example.index for example in shards.read(wanted)] == list(wanted)
    with pytest.raises(IndexError, match="has no sample 96"):
        shards.read([96])


def test_files_before_the_limit_are_closed(write: Callable, samples: list[dict]) -> None:
    shards = write(samples)
    before = len(_paths_held(shards))
    shards.read(range(COUNT))
    assert len(_paths_held(shards)) == before + 2 * 3  # each twice: with and without page checksums
    shards.read([90], forget_before=81)
    assert len(_paths_held(shards)) == before + 2


def _paths_held(shards: Shards) -> list[str]:
    """Returns the shard files that this process has open."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return [str(path) for path in links if path.is_relative_to(Path(shards.where)) and "shard-" in path.name]


@pytest.mark.parametrize("packing", [None, Packing(max_tokens=120, window=24)])
@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 12), (2, 3), (3, 2), (4, 1), (6, 2)])
def test_samples_of_a_step_do_not_depend_on_ranks(
    write: Callable,
    processor: HoneybeeProcessor,
    samples: list[dict],
    ranks: int,
    micro_batch: int,
    packing: Packing | None,
) -> None:
    """Resumes after the first step with different ranks: each step has each sample of the plan exactly once."""
    shards = write(samples)
    plan = make_plan(shards.lengths, packing, M)
    first = loader(processor, shards, PackAssignment(12, 12), packing)
    steps = iter(first)
    next(steps)
    steps.close()
    state = json.loads(json.dumps(first.state_dict()))
    count = plan.num_packs // 12 - 1
    assert count > 0
    found: list[list[str]] = [[] for _ in range(count)]
    for rank in range(ranks):
        own = loader(
            processor, shards, PackAssignment(12, micro_batch, rank, ranks), packing, prefetch_steps=1, decode_threads=3
        )
        own.load_state_dict(state)
        for step, batches in zip(found, own, strict=True):
            assert [len(batch.input_ids) for batch in batches] == [micro_batch] * (12 // ranks // micro_batch)
            step += names(batches)
    for step, found_names in enumerate(found, start=1):
        packs = plan.packs(step * 12, step * 12 + 12)
        expected = sorted(i for pack in packs for i in pack.samples.tolist())
        assert sorted(found_names) == sorted(expected_names(samples, expected))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_steps_are_the_same_wherever_the_run_is_stopped_and_resumed(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict], tmp_path_factory: Any, data: st.DataObject
) -> None:
    """A run stopped several times and resumed with different ranks has the same steps as an uninterrupted one, for any
    stopping points, ranks, micro-batches, threads and packings."""
    packing = data.draw(st.sampled_from([None, Packing(max_tokens=100, window=20), Packing(max_tokens=64, window=7)]))
    directory = str(tmp_path_factory.mktemp("any"))
    shards = write(samples[: data.draw(st.integers(40, COUNT))], directory)
    size = data.draw(st.sampled_from([4, 6, 12]))

    def run(state: dict | None, steps: int) -> tuple[list[set[str]], dict]:
        """Returns the samples of some steps over all ranks, and the state after them."""
        ranks = data.draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if size % n == 0]))
        micro = data.draw(st.sampled_from([n for n in (1, 2, 3) if size // ranks % n == 0]))
        threads, ahead = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
        taken: list[set[str]] = []
        for rank in range(ranks):
            deal = PackAssignment(size, micro, rank, ranks)
            own = loader(processor, shards, deal, packing, decode_threads=threads, prefetch_steps=ahead)
            if state:
                own.load_state_dict(state)
            iterator = iter(own)
            mine = [names(batches) for batches in itertools.islice(iterator, steps)]
            iterator.close()
            taken = taken or [set() for _ in mine]
            for step, more in zip(taken, mine, strict=True):
                assert step.isdisjoint(more)
                step.update(more)
        return taken, own.state_dict()

    uninterrupted, _ = run(None, 1000)
    resumed: list[set[str]] = []
    state = None
    while len(resumed) < len(uninterrupted):
        more, state = run(state, data.draw(st.integers(1, 3)))
        resumed += more
    assert resumed == uninterrupted
    assert run(state, 1)[0] == []


def test_state_of_a_different_plan_is_refused(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict]
) -> None:
    shards = write(samples)
    state = loader(processor, shards, PackAssignment(4, 4), Packing(max_tokens=100)).state_dict()
    with pytest.raises(DataError, match=r"pack 0 of plan [0-9a-f]{16}, but these shards, packing and M give plan"):
        loader(processor, shards, PackAssignment(4, 4), Packing(max_tokens=101)).load_state_dict(state)


@pytest.mark.parametrize("packing", [None, Packing(max_tokens=120, window=24)])
def test_each_row_group_is_read_once(
    write: Callable,
    processor: HoneybeeProcessor,
    samples: list[dict],
    packing: Packing | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = write(samples)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, columns: list[str]) -> Any:
        if "images" in columns:
            read.append(group)
        return original(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for _ in loader(processor, shards, PackAssignment(4, 1), packing):
        pass
    files = Path(shards.where).glob("shard-*")
    assert sorted(read) == sorted(group for path in files for group in range(pq.ParquetFile(path).num_row_groups))


def test_ranks_have_similar_token_counts(write: Callable, processor: HoneybeeProcessor, samples: list[dict]) -> None:
    plan = make_plan(write(samples).lengths, None, M)
    packs = plan.packs(0, COUNT)
    loads = [sum(p.tokens for passes in PackAssignment(COUNT, 8, r, 4).own(packs) for p in passes) for r in range(4)]
    assert max(loads) - min(loads) <= max(pack.tokens for pack in packs)
    assert max(loads) / (sum(loads) / 4) < 1.01


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
def test_packed_examples_have_the_gradients_of_separate_ones(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict], tiny_model: Any, attention: str
) -> None:
    """Attention and positions do not cross example boundaries: loss and gradients equal those of separate examples."""
    shards = write(samples)
    packed = first_batch(loader(processor, shards, PackAssignment(6, 6), Packing(max_tokens=150, window=48)))
    assert len(packed.names) > 3 * len(packed.input_ids)
    separate = [
        collator(processor, shards)([[example]], decoded, [False])
        for example in shards.read([int(name.split()[1]) for name in packed.names])
        for decoded in [Decoder.like(processor.image_processor)([image.read() for image in example.images])[0]]
    ]

    def learn(batches: list[Batch], attention: str) -> tuple[float, list[torch.Tensor]]:
        tiny_model.zero_grad()
        tiny_model.llm.set_attn_implementation(attention)
        total = 0.0
        for batch in batches:
            inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
            more = Examples.of(batch.position_ids, torch.device("cpu")).inputs() if attention == "packed" else {}
            logits = tiny_model(**inputs, **more, pixel_values=batch.pixel_values).logits
            targets = batch.labels[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum")
            (loss / sum(packed.supervised)).backward()
            total += loss.item() / sum(packed.supervised)
        return total, [p.grad.clone() for p in tiny_model.parameters() if p.grad is not None]

    loss, gradients = learn([packed], attention)
    expected_loss, expected_gradients = learn(separate, "sdpa")
    tiny_model.zero_grad()
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert sum(packed.supervised) == sum(sum(batch.supervised) for batch in separate)
    for own, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)


def test_a_batch_expands_images_pads_and_masks(processor: HoneybeeProcessor) -> None:
    image = processor.image_token_id
    first = Example(0, "a", 0, np.array([1, image, 7, 8, 2]), np.array([0, 0, 0, 1, 1], bool), (b"",))
    second = Example(1, "b", 0, np.array([1, 9, 2]), np.array([1, 0, 1], bool), ())
    collate = Collator(image, M, 0, 512, ["a", "b"])
    batch = collate([[first], [second]], torch.zeros(1, 3, 32, 32), [False, False])
    assert batch.input_ids.tolist() == [[1, image, image, image, image, 7, 8, 2], [1, 9, 2, 0, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [list(range(8))] * 2  # padding comes last, so no token attends to it
    no = IGNORE_INDEX
    assert batch.labels.tolist() == [[no, no, no, no, no, no, 8, 2], [no, no, 2, no, no, no, no, no]]
    assert batch.supervised == (2, 1)  # nothing predicts the first token
    assert (batch.num_tokens, batch.datasets, batch.num_bad) == (11, (0, 1), 0)


def test_a_pack_is_one_row(processor: HoneybeeProcessor) -> None:
    image, no = processor.image_token_id, IGNORE_INDEX
    first = Example(0, "a", 0, np.array([1, image, 7]), np.array([0, 0, 1], bool), (b"",))
    second = Example(1, "b", 0, np.array([8, 9]), np.array([1, 1], bool), ())
    third = Example(2, "b", 1, np.array([4, 5]), np.array([0, 1], bool), ())
    batch = Collator(image, M, 0, 512, ["a", "b"])([[first, second], [third]], torch.zeros(1, 3, 32, 32), [False] * 3)
    assert batch.input_ids.tolist() == [[1, image, image, image, image, 7, 8, 9], [4, 5, 0, 0, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1], list(range(8))]
    assert batch.labels.tolist() == [[no, no, no, no, no, 7, no, 9], [no, 5, no, no, no, no, no, no]]
    assert batch.example_ids.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1], [2] * 8]
    assert (batch.supervised, batch.datasets, batch.num_tokens) == ((1, 1, 1), (0, 1, 1), 10)


def test_example_that_is_too_long_or_lacks_an_image_is_refused(processor: HoneybeeProcessor) -> None:
    image = processor.image_token_id
    example = Example(5, "a", 3, np.array([1, image, 2]), np.array([0, 0, 1], bool), (b"",))
    message = r"sample 5 \(a example 3\) has 6 tokens with 4 per image, but the model accepts only 5"
    with pytest.raises(DataError, match=message):
        Collator(image, M, 0, 5, ["a"])([[example]], torch.zeros(1, 3, 32, 32), [False])
    without = Example(5, "a", 3, example.input_ids, example.loss_mask, ())
    with pytest.raises(DataError, match="1 image tokens but 0 images"):
        Collator(image, M, 0, 512, ["a"])([[without]], torch.zeros(0, 3, 32, 32), [False])


def test_pixels_match_the_processor_and_keep_their_order(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict]
) -> None:
    batch = first_batch(loader(processor, write(samples), PackAssignment(COUNT, COUNT)))
    order = [int(name.split()[1]) for name in batch.names]
    images = [Image.open(_stream(image["bytes"])) for i in order for image in samples[i]["images"]]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.pixel_values, expected)


def test_text_only_batch_has_no_images(write: Callable, processor: HoneybeeProcessor) -> None:
    texts = rows(processor.tokenizer, 8, text_only_every=1)
    batch = first_batch(loader(processor, write(texts), PackAssignment(8, 8)))
    assert batch.pixel_values.shape == (0, 3, 32, 32)
    assert not (batch.input_ids == processor.image_token_id).any()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no image"])
def test_sample_with_damaged_image_keeps_its_slot_without_loss(
    write: Callable,
    processor: HoneybeeProcessor,
    samples: list[dict],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    damaged = [dict(sample) for sample in samples[:8]]
    bad = damage(encoded_image("red", 2))
    damaged[2] |= {"images": [{"bytes": bad, "path": "2.png"}], "image_sha256": [hashlib.sha256(bad).hexdigest()]}
    intact = first_batch(loader(processor, write(samples[:8], "intact"), PackAssignment(8, 8)))
    with caplog.at_level(logging.WARNING, "honeybee.training"):
        batch = first_batch(loader(processor, write(damaged, "damaged"), PackAssignment(8, 8)))
    assert torch.equal(batch.input_ids, intact.input_ids)
    row = [name.split()[1] for name in batch.names].index("2")
    others = [i for i in range(8) if i != row]
    assert (batch.labels[row] == IGNORE_INDEX).all()
    assert torch.equal(batch.labels[others], intact.labels[others])
    assert (batch.num_bad, batch.supervised[row]) == (1, 0)
    changed = (batch.pixel_values != intact.pixel_values).flatten(1).any(1)
    assert changed.sum() == 1  # the other images are unaffected
    assert "sample 2 (captions example 1) cannot be used (an image does not decode: " in caplog.text


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_flipped_bit_in_an_image_loses_only_that_sample(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict], caplog: pytest.LogCaptureFixture
) -> None:
    directory = Path(write(samples).where)
    first = min(directory.glob("shard-*.parquet"))
    _flip(first, first.read_bytes().index(samples[2]["images"][0]["bytes"]) + 40)
    with caplog.at_level(logging.WARNING, "honeybee.training"):
        batch = first_batch(loader(processor, Shards(directory), PackAssignment(COUNT, COUNT)))
    lost = [name for name, count in zip(batch.names, batch.supervised, strict=True) if not count]
    assert lost == ["sample 2 (captions example 1)"] and batch.num_bad == 1
    assert (
        "sample 2 (captions example 1) cannot be used (2.png does not match its checksum in the shard)" in caplog.text
    )


def test_flipped_bit_in_the_tokens_loses_their_row_group(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict]
) -> None:
    """The samples of the row group keep their slots and numbers of tokens, without loss."""
    directory = Path(write(samples).where)
    first = min(directory.glob("shard-*.parquet"))
    chunk = _leaf(pq.ParquetFile(first), "input_ids")
    _flip(first, chunk.data_page_offset + 60)
    shards = Shards(directory)
    read = shards.read(range(COUNT))
    assert [example.index for example in read if example.problem] == list(range(16))  # the group
    assert [len(example.input_ids) for example in read] == [sample["num_tokens"] for sample in samples]
    batch = first_batch(loader(processor, shards, PackAssignment(24, 24)))
    assert sorted(int(name.split()[1]) for name in batch.names) == list(range(24))
    assert batch.num_bad == 16
    lost = [i for i, name in enumerate(batch.names) if "unreadable" in name]
    assert len(lost) == 16
    assert all(batch.supervised[i] == 0 and batch.datasets[i] == -1 for i in lost)
    assert all(batch.supervised[i] > 0 for i in range(24) if i not in lost)


def test_damaged_image_name_loses_its_row_group(write: Callable, samples: list[dict]) -> None:
    """The name is not valid UTF-8, which only Arrow's full validation notices before the name is used."""
    directory = Path(write(samples).where)
    first = min(directory.glob("shard-*.parquet"))
    data = bytearray(first.read_bytes())
    start = _leaf(pq.ParquetFile(first), "images.list.element.path").data_page_offset
    data[data.index(b"2.png", start)] ^= 0x80
    first.write_bytes(data)
    read = Shards(directory).read(range(COUNT))
    assert [example.index for example in read if example.problem] == list(range(16))


def test_unreadable_samples_have_no_image_tokens_if_the_image_token_is_zero(
    tiny_backbones: Path, processor: HoneybeeProcessor, samples: list[dict], tmp_path: Path
) -> None:
    text = [sample for sample in samples if not sample["images"]][:8]
    text = [dict(sample, index=index) for index, sample in enumerate(text)]
    directory = write_shards(tmp_path / "zero", text, tiny_backbones / "llm", image_token_id=0)
    _flip(directory / "shard-00000-of-00001.parquet", _leaf_offset(directory, "loss_mask"))
    shards = Shards(directory)
    lost = shards.read(range(8))
    assert all(example.problem and not (example.input_ids == 0).any() for example in lost)


def _leaf_offset(directory: Path, column: str) -> int:
    return _leaf(pq.ParquetFile(min(directory.glob("shard-*.parquet"))), column).data_page_offset + 45


@pytest.mark.parametrize("column", ["num_tokens", "num_images"])
def test_samples_longer_than_in_lengths_parquet_are_refused(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict], column: str
) -> None:
    """Otherwise a pack could exceed its number of positions."""
    samples = [dict(sample) for sample in samples]
    samples[20][column] = 1 if column == "num_tokens" else 0
    shards = write(samples)
    wrong = "tokens" if column == "num_tokens" else "images"
    with pytest.raises(
        DataError, match=rf"row group 1: sample 20 has \d+ {wrong}, but .*lengths.parquet lists .*: the"
    ):
        list(loader(processor, shards, PackAssignment(2, 2), Packing(max_tokens=120, window=24)))


def _leaf(file: pq.ParquetFile, column: str) -> Any:
    group = file.metadata.row_group(0)
    return next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith(column))


def test_referenced_images_are_read_from_their_roots_and_verified(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict], tmp_path: Path
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    referring = []
    for sample in samples[:8]:
        for image in sample["images"]:
            (root / image["path"]).write_bytes(image["bytes"])
        referring.append({**sample, "images": [{"bytes": None, "path": image["path"]} for image in sample["images"]]})
    directory = write(referring, "referring").where
    roots = {"captions": root, "questions": root}
    embedded = first_batch(loader(processor, write(samples[:8], "embedded"), PackAssignment(8, 8)))
    batch = first_batch(loader(processor, Shards(directory, roots), PackAssignment(8, 8)))
    assert torch.equal(batch.pixel_values, embedded.pixel_values)
    (root / "0.png").write_bytes(encoded_image("red", 77))
    (root / "1.png").unlink()
    batch = first_batch(loader(processor, Shards(directory, roots), PackAssignment(8, 8)))
    bad = [name for name, count in zip(batch.names, batch.supervised, strict=True) if not count]
    assert sorted(bad) == ["sample 0 (captions example 0)", "sample 1 (questions example 0)"]
    with pytest.raises(DataError, match="no image root is given for captions"):
        Shards(directory).read([0])


@pytest.mark.parametrize("limit", [None, 1])
def test_shards_at_a_url_are_read_through_a_cache(
    write: Callable, samples: list[dict], tmp_path: Path, limit: int | None
) -> None:
    local = write(samples)
    url = f"file://{tmp_path}/remote"
    push(Path(local.where), url, log=lambda line: None)
    expected = local.read(range(COUNT))
    for _ in range(2):
        read = Shards(url, cache=tmp_path / "cache", cache_bytes=limit).read(range(COUNT))
        for example, other in zip(read, expected, strict=True):
            assert (example.name, example.images, example.problem) == (other.name, other.images, None)
            assert example.input_ids.tolist() == other.input_ids.tolist()
    with pytest.raises(DataError, match=r"set loading\.cache"):
        Shards(url)
    last = max(path for path in (tmp_path / "remote").glob("shard-*.parquet"))
    _flip(last, 100)
    remote = Shards(url, cache=tmp_path / "another")
    assert remote.read([0])[0].index == 0
    with pytest.raises(DataError, match="does not match its manifest"):
        remote.read([COUNT - 1])
    with pytest.raises(DataError, match="no finished shards"):
        Shards(f"file://{tmp_path}/nowhere", cache=tmp_path / "cache")


def _rewrite_manifest(directory: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    write_manifest(directory, manifest)


def _swap(directory: Path) -> None:
    first, second = sorted(directory.glob("shard-*.parquet"))[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)

    def swap_sizes(manifest: dict) -> None:
        a, b = manifest["shards"][:2]
        a["num_bytes"], b["num_bytes"] = b["num_bytes"], a["num_bytes"]

    _rewrite_manifest(directory, swap_sizes)


def _truncate(directory: Path) -> None:
    path = min(directory.glob("shard-*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])


def _drop_column(directory: Path) -> None:
    path = min(directory.glob("shard-*.parquet"))
    pq.write_table(pq.read_table(path).drop_columns(["loss_mask"]), path)
    _rewrite_manifest(directory, lambda manifest: manifest["shards"][0].update(num_bytes=path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: (directory / "manifest.json").unlink(), "never finished"),
        (lambda directory: min(directory.glob("shard-*.parquet")).unlink(), "is missing: delete"),
        (_truncate, "bytes, but its manifest says"),
        (_swap, "does not hold samples 0 and following: files were swapped"),
        (_drop_column, "lacks the columns"),
        (lambda directory: _rewrite_manifest(directory, lambda m: m.pop("tokenizer")), "has no 'tokenizer'"),
        (lambda directory: _rewrite_manifest(directory, lambda m: m["shards"].pop(0)), "begins at sample 40, but 0"),
        (lambda directory: _rewrite_manifest(directory, lambda m: m.update(num_samples=97)), "97 in the "),
    ],
)
def test_error_names_the_damaged_shards(
    write: Callable, samples: list[dict], damage: Callable[[Path], object], message: str
) -> None:
    directory = Path(write(samples).where)
    damage(directory)
    with pytest.raises(DataError, match=message) as error:
        Shards(directory).read(range(COUNT))
    assert str(directory) in str(error.value)


def test_shards_without_image_bytes_are_refused(write: Callable, samples: list[dict]) -> None:
    samples = [dict(sample, images=[{"bytes": None, "path": "a.jpg"}] * len(sample["images"])) for sample in samples]
    with pytest.raises(DataError, match=r"sample 0 .* has an image reference but no bytes"):
        write(samples).read([0])


def test_background_error_reaches_the_loop_and_ends_the_threads(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict]
) -> None:
    shards = write(samples)
    broken = loader(processor, shards, PackAssignment(8, 8))
    broken.collate = collator(processor, shards, 10)
    with pytest.raises(DataError, match="the model accepts only 10"):
        list(broken)
    steps = iter(loader(processor, shards, PackAssignment(8, 8)))
    next(steps)
    steps.close()
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))]
    assert alive == []


def _stream(data: bytes):
    import io

    return io.BytesIO(data)


def test_multiple_images_keep_their_order_and_text_only_samples_have_none(
    write: Callable, processor: HoneybeeProcessor, tiny_model: Any
) -> None:
    """Training batches equal what the processor makes from the same conversations, given as images and texts."""
    tokenizer = processor.tokenizer
    colours = [["red", "green", "blue"], [], ["yellow"]]
    talks: list[list[dict]] = [
        [{"type": "image"}, {"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " red?"}],
        [{"type": "text", "text": "Hello"}],
        [{"type": "text", "text": "What is it? "}, {"type": "image"}],
    ]
    talks[0].append({"type": "image"})
    samples, expected = [], []
    for index, (names, parts) in enumerate(zip(colours, talks, strict=True)):
        encoded = [encoded_image(colour, index * 3 + i) for i, colour in enumerate(names)]
        images = [Image.open(_stream(data)) for data in encoded]
        remaining = iter(images)
        given = [{**part, "image": next(remaining)} if part["type"] == "image" else part for part in parts]
        answer = {"role": "assistant", "content": [{"type": "text", "text": f"yes {index}"}]}
        messages: Any = [{"role": "user", "content": given}, answer]
        options: Any = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        processed = processor.apply_chat_template(messages, **options, return_tensors="pt")
        expected.append((processed["input_ids"][0], processed["assistant_masks"][0].bool(), images))
        text = processor.apply_chat_template(messages)
        ids = tokenizer.encode(text, add_special_tokens=False)
        tail = int(processed["assistant_masks"].sum())
        samples.append(
            {
                "index": index,
                "dataset": "talks",
                "example": index,
                "images": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)],
                "image_sha256": [hashlib.sha256(data).hexdigest() for data in encoded],
                "turns": [{"user": "", "assistant": f"yes {index}", "template": "t", "row": index}],
                "input_ids": ids,
                "loss_mask": [False] * (len(ids) - tail) + [True] * tail,
                "num_tokens": len(ids),
                "num_supervised": tail,
            }
        )
    batch = first_batch(loader(processor, write(samples), PackAssignment(3, 3)))
    order = [int(name.split()[1]) for name in batch.names]
    assert order[0] == 0  # the longest
    expected = [expected[i] for i in order]
    assert torch.equal(batch.pixel_values, processor.preprocess([i for *_, images in expected for i in images]))
    for row, (ids, mask, _) in enumerate(expected):
        assert batch.input_ids[row, : len(ids)].tolist() == ids.tolist()
        assert batch.labels[row, : len(ids)].tolist() == torch.where(mask, ids, IGNORE_INDEX).tolist()
    batch_loss = tiny_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        labels=batch.labels,
    ).loss
    total, supervised = 0.0, 0
    for ids, mask, images in expected:
        labels = torch.where(mask, ids, IGNORE_INDEX)[None]
        loss = tiny_model(input_ids=ids[None], pixel_values=processor.preprocess(images), labels=labels).loss
        count = int(mask.sum())
        total, supervised = total + loss.item() * count, supervised + count
    assert batch_loss.item() == pytest.approx(total / supervised, rel=1e-4)
    swapped = batch.pixel_values[[1, 0, 2, 3]]
    other = tiny_model(input_ids=batch.input_ids, position_ids=batch.position_ids, pixel_values=swapped)
    same = tiny_model(input_ids=batch.input_ids, position_ids=batch.position_ids, pixel_values=batch.pixel_values)
    assert not torch.allclose(other.logits[0], same.logits[0]) and torch.equal(other.logits[1:], same.logits[1:])
