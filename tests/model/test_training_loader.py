"""Which samples a rank gets, what their tensors are, and what happens to data that is damaged."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from training_data import picture, rows, write_shards

from model.processing import HoneybeeProcessor
from model.training.collate import IGNORED, Batch, Collator
from model.training.job import Loading
from model.training.loader import Loader, Slices
from model.training.shards import DataError, Example, Shards

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


def loader(processor: HoneybeeProcessor, shards: Shards, slices: Slices, **settings: int) -> Loader:
    return Loader(shards, slices, collator(processor, shards), processor.preprocess, Loading(**settings))


def names(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.names]


def expected_names(samples: list[dict], indices: range) -> list[str]:
    return [f"sample {i} ({samples[i]['dataset']} example {samples[i]['example']})" for i in indices]


def test_rows_come_back_as_they_were_written(write: Callable, samples: list[dict]) -> None:
    read = list(write(samples).read(0, COUNT))
    assert [example.index for example in read] == list(range(COUNT))
    for example, sample in zip(read, samples, strict=True):
        assert example.input_ids.tolist() == sample["input_ids"]
        assert example.loss_mask.tolist() == sample["loss_mask"]
        assert list(example.images) == [image["bytes"] for image in sample["images"]]


def test_a_slice_across_shards_and_row_groups(write: Callable, samples: list[dict]) -> None:
    shards = write(samples)
    assert [example.index for example in shards.read(30, 90)] == list(range(30, 90))  # shards of 40, groups of 16
    assert [example.index for example in shards.read(3, 5)] == [3, 4]
    assert list(shards.read(5, 5)) == []


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 24), (2, 12), (2, 4), (3, 8), (4, 2), (6, 4)])
def test_a_step_has_the_same_samples_with_any_ranks(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict], ranks: int, micro_batch: int
) -> None:
    shards = write(samples)
    steps: list[list[str]] = [[], [], []]
    for rank in range(ranks):
        own = loader(processor, shards, Slices(24, micro_batch, rank, ranks), prefetch_steps=1, decode_threads=3)
        for step, batches in zip((1, 2, 3), own.steps(1, 4), strict=True):  # resumed after the first step
            assert [len(batch.names) for batch in batches] == [micro_batch] * (24 // ranks // micro_batch)
            steps[step - 1] += names(batches)
    assert steps == [expected_names(samples, range(step * 24, step * 24 + 24)) for step in (1, 2, 3)]


def test_a_batch_expands_images_pads_and_masks(processor: HoneybeeProcessor) -> None:
    image = processor.image_token_id
    first = Example(0, "a", 0, np.array([1, image, 7, 8, 2]), np.array([0, 0, 0, 1, 1], bool), (b"",))
    second = Example(1, "b", 0, np.array([1, 9, 2]), np.array([1, 0, 1], bool), ())
    collate = Collator(image, M, 0, 512, ["a", "b"])
    batch = collate([first, second], torch.zeros(1, 3, 32, 32), [False, False])
    assert batch.input_ids.tolist() == [[1, image, image, image, image, 7, 8, 2], [1, 9, 2, 0, 0, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1] * 8, [1] * 3 + [0] * 5]
    no = IGNORED
    assert batch.labels.tolist() == [[no, no, no, no, no, no, 8, 2], [1, no, 2, no, no, no, no, no]]
    assert batch.supervised == (2, 1)  # the label of the first token has nothing that foretells it
    assert (batch.num_tokens, batch.datasets, batch.num_bad) == (11, (0, 1), 0)


def test_a_row_that_is_too_long_or_lacks_an_image_is_an_error(processor: HoneybeeProcessor) -> None:
    image = processor.image_token_id
    example = Example(5, "a", 3, np.array([1, image, 2]), np.array([0, 0, 1], bool), (b"",))
    with pytest.raises(DataError, match=r"sample 5 \(a example 3\) has 6 tokens with 4 per image, the model takes 5"):
        Collator(image, M, 0, 5, ["a"])([example], torch.zeros(1, 3, 32, 32), [False])
    without = Example(5, "a", 3, example.input_ids, example.loss_mask, ())
    with pytest.raises(DataError, match="1 image tokens but 0 images"):
        Collator(image, M, 0, 512, ["a"])([without], torch.zeros(0, 3, 32, 32), [False])


def test_pixels_are_those_of_the_processor_in_order(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict]
) -> None:
    ((batch,),) = loader(processor, write(samples), Slices(COUNT, COUNT, 0, 1)).steps(0, 1)
    pictures = [Image.open(_stream(image["bytes"])) for sample in samples for image in sample["images"]]
    expected = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.pixel_values, expected)


def test_a_batch_of_text_alone_has_no_pictures(write: Callable, processor: HoneybeeProcessor) -> None:
    texts = rows(processor.tokenizer, 8, text_only_every=1)
    ((batch,),) = loader(processor, write(texts), Slices(8, 8, 0, 1)).steps(0, 1)
    assert batch.pixel_values.shape == (0, 3, 32, 32)
    assert not (batch.input_ids == processor.image_token_id).any()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no image"])
def test_a_damaged_image_keeps_its_slot_without_loss(
    write: Callable,
    processor: HoneybeeProcessor,
    samples: list[dict],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    damaged = [dict(sample) for sample in samples[:8]]
    damaged[2]["images"] = [{"bytes": damage(picture("red", 2)), "path": "2.png"}]
    slices = Slices(8, 8, 0, 1)
    ((whole,),) = loader(processor, write(samples[:8], "whole"), slices).steps(0, 1)
    with caplog.at_level(logging.WARNING, "honeybee.training"):
        ((batch,),) = loader(processor, write(damaged, "damaged"), slices).steps(0, 1)
    assert torch.equal(batch.input_ids, whole.input_ids)
    assert (batch.labels[2] == IGNORED).all()
    kept = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(batch.labels[kept], whole.labels[kept])
    assert (batch.num_bad, batch.supervised[2]) == (1, 0)
    assert torch.equal(batch.pixel_values[3:], whole.pixel_values[3:])  # the others have not moved
    assert "sample 2 (captions example 1): an image does not decode" in caplog.text


def _rewrite_manifest(directory: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


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
        (lambda directory: min(directory.glob("shard-*.parquet")).unlink(), "is missing: build the shards again"),
        (_truncate, "bytes, its manifest says"),
        (_swap, "does not hold samples 0 and following: files were swapped"),
        (_drop_column, "has no columns"),
        (lambda directory: _rewrite_manifest(directory, lambda m: m.pop("tokenizer")), "has no 'tokenizer'"),
        (lambda directory: _rewrite_manifest(directory, lambda m: m["shards"].pop(0)), "begins at sample 40, but 0"),
        (lambda directory: _rewrite_manifest(directory, lambda m: m.update(num_samples=97)), "97 in the manifest"),
    ],
)
def test_damaged_shards_are_named(
    write: Callable, samples: list[dict], damage: Callable[[Path], object], message: str
) -> None:
    directory = write(samples).directory
    damage(directory)
    with pytest.raises(DataError, match=message) as error:
        list(Shards(directory).read(0, COUNT))
    assert str(directory) in str(error.value)


def test_shards_without_image_bytes_are_refused(write: Callable, samples: list[dict]) -> None:
    samples = [dict(sample, images=[{"bytes": None, "path": "a.jpg"}] * len(sample["images"])) for sample in samples]
    with pytest.raises(DataError, match=r"sample 0 .* has an image reference but no bytes"):
        list(write(samples).read(0, 1))


def test_an_error_in_the_background_reaches_the_loop_and_ends_the_threads(
    write: Callable, processor: HoneybeeProcessor, samples: list[dict]
) -> None:
    shards = write(samples)
    broken = Loader(shards, Slices(8, 8, 0, 1), collator(processor, shards, 10), processor.preprocess, Loading())
    with pytest.raises(DataError, match="the model takes 10"):
        list(broken.steps(0, 2))
    steps = loader(processor, shards, Slices(8, 8, 0, 1)).steps(0, 12)
    next(steps)
    steps.close()
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))]
    assert alive == []


def _stream(data: bytes):
    import io

    return io.BytesIO(data)


def test_many_pictures_stand_in_order_and_text_alone_has_none(
    write: Callable, processor: HoneybeeProcessor, tiny_model: Any
) -> None:
    """What is trained on is what the processor makes of the same conversation, given as pictures and texts."""
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
        encoded = [picture(colour, index * 3 + i) for i, colour in enumerate(names)]
        pictures = [Image.open(_stream(data)) for data in encoded]
        shown = iter(pictures)
        given = [{**part, "image": next(shown)} if part["type"] == "image" else part for part in parts]
        answer = {"role": "assistant", "content": [{"type": "text", "text": f"yes {index}"}]}
        messages: Any = [{"role": "user", "content": given}, answer]
        options: Any = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        whole = processor.apply_chat_template(messages, **options, return_tensors="pt")
        expected.append((whole["input_ids"][0], whole["assistant_masks"][0].bool(), pictures))
        text = processor.apply_chat_template(messages)
        ids = tokenizer.encode(text, add_special_tokens=False)
        tail = int(whole["assistant_masks"].sum())
        samples.append(
            {
                "index": index,
                "dataset": "talks",
                "example": index,
                "images": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)],
                "turns": [{"user": "", "assistant": f"yes {index}", "template": "t", "row": index}],
                "input_ids": ids,
                "loss_mask": [False] * (len(ids) - tail) + [True] * tail,
                "num_tokens": len(ids),
                "num_supervised": tail,
            }
        )
    ((batch,),) = loader(processor, write(samples), Slices(3, 3, 0, 1)).steps(0, 1)
    assert torch.equal(batch.pixel_values, processor.preprocess([p for *_, pictures in expected for p in pictures]))
    for row, (ids, mask, _) in enumerate(expected):
        assert batch.input_ids[row, : len(ids)].tolist() == ids.tolist()
        assert batch.labels[row, : len(ids)].tolist() == torch.where(mask, ids, IGNORED).tolist()
    whole_loss = tiny_model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        labels=batch.labels,
    ).loss
    alone, supervised = 0.0, 0
    for ids, mask, pictures in expected:
        labels = torch.where(mask, ids, IGNORED)[None]
        loss = tiny_model(input_ids=ids[None], pixel_values=processor.preprocess(pictures), labels=labels).loss
        count = int(mask.sum())
        alone, supervised = alone + loss.item() * count, supervised + count
    assert whole_loss.item() == pytest.approx(alone / supervised, rel=1e-4)
    swapped = batch.pixel_values[[1, 0, 2, 3]]
    other = tiny_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=swapped)
    same = tiny_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=batch.pixel_values)
    assert not torch.allclose(other.logits[0], same.logits[0]) and torch.equal(other.logits[1:], same.logits[1:])
