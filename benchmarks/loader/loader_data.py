"""Real images and texts as three sources of unequal shares: plain files for the peers, shards for this project.

`plain/`: images/*.jpg, and samples.jsonl with one line per sample: source, number, image, ids (with one image token).
`store/`: the same samples as examples, and the shards that build_shards makes of them.
"""

import hashlib
import io
import itertools
import json
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from PIL import Image

from benchmarks.data.vqav2_rows import good_rows, train_tokenizer
from pipelines.core.arrow_files import write_batches
from pipelines.core.integrity import write_manifest
from pipelines.core.store import Store, read_manifest
from pipelines.jobs.shards import build_shards
from pipelines.mixture.shares import Balance
from pipelines.schema import EXAMPLES
from pipelines.shards.manifest import FORMAT
from pipelines.shards.settings import ShardSettings

SHARES = {"vqa": 0.5, "captions": 0.35, "chat": 0.15}
DATA = Path(__file__).parents[1] / ".data"
SIZES = {"vqa": 2400, "captions": 1600, "chat": 800}  # more than an epoch takes, so that no source runs out
EPOCH = 4000  # samples
TOY_SIZES, TOY_EPOCH = {"vqa": 300, "captions": 200, "chat": 100}, 400
SHARD_BYTES = 18_000_000  # of every format, about 200 samples: a source has as many shards as two ranks have workers
SEED = 20
MAX_TEXT_TOKENS = 700
VQA_TURNS = 8


def make(realdata: Path, out: Path, sizes: dict[str, int] = SIZES, epoch: int = EPOCH) -> Path:
    """Writes plain/ and store/ into `out` unless they exist; returns the shards directory."""
    done = out / "shards.json"
    if done.is_file() and (made := json.loads(done.read_text()))["format"] == FORMAT:
        return Path(made["shards"])
    for folder in ("plain", "store", "examples", "llm"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "plain" / "images").mkdir(parents=True)
    images = _images(realdata, out / "plain" / "images")
    conversations = {name: list(_repeated(texts, sizes[name])) for name, texts in _texts(realdata).items()}
    tokenizer = _tokenizer(out, conversations)
    samples = _encode(tokenizer, conversations, images)
    with (out / "plain" / "samples.jsonl").open("w") as file:
        for name, each in samples.items():
            for number, sample in enumerate(each):
                line = {"source": name, "number": number, "image": sample["images"][0], "ids": sample["input_ids"]}
                file.write(json.dumps(line) + "\n")
    examples = {name: _examples(out / "examples" / name, each) for name, each in samples.items()}
    shards = build_shards(
        Store(out / "store"),
        examples,
        dict.fromkeys(sizes, out / "plain" / "images"),
        ShardSettings(
            balance=Balance(strategy="tuned"),
            weights=SHARES,
            num_samples=epoch,
            shard_bytes=SHARD_BYTES,
            tokenizer=tokenizer,
            seed=SEED,
        ),
    )
    done.write_text(json.dumps({"format": FORMAT, "shards": str(shards.resolve())}))
    return shards


def _images(realdata: Path, out: Path) -> list[str]:
    """Writes every distinct JPEG of the corpus, from files and tars; returns their names."""

    def encoded() -> Iterator[bytes]:
        for path in sorted((realdata / "corpus").rglob("*.jpg")):
            yield path.read_bytes()
        for path in sorted((realdata / "corpus").rglob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(".jpg"):
                        file = tar.extractfile(member)
                        assert file is not None
                        yield file.read()

    names = []
    for data in dict.fromkeys(encoded()):
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except OSError:  # the sample corpus has damaged images
            continue
        if image.format == "JPEG":
            names.append(f"{len(names):04d}.jpg")
            (out / names[-1]).write_bytes(data)
    return names


Turns = list[tuple[str, str]]


def _texts(realdata: Path) -> dict[str, list[Turns]]:
    rows = good_rows(realdata / "text/VQAv2")
    turns = list(zip(rows["question"].to_pylist(), rows["answer"].to_pylist(), strict=True))
    captions = []
    for path in sorted((realdata / "corpus").rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    file = tar.extractfile(member)
                    assert file is not None
                    captions.append([("", file.read().decode())])
    chats = []
    for name in ("text/LLaVA/conversation_coco30.json", "corpus/llava_instruct/conversation.json"):
        for row in json.loads((realdata / name).read_bytes()):
            said = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
            chats.append(list(zip(said[::2], said[1::2], strict=False)))
    vqa = [turns[at : at + VQA_TURNS] for at in range(0, len(turns) - VQA_TURNS, VQA_TURNS)]
    return {"vqa": vqa, "captions": captions, "chat": chats}


def _repeated(texts: list[Turns], size: int) -> Iterator[Turns]:
    chosen = random.Random(SEED)
    while True:
        part = chosen.sample(texts, min(size, len(texts)))
        yield from part
        size -= len(part)
        if not size:
            return


def _tokenizer(out: Path, conversations: dict[str, list[Turns]]) -> Path:
    turns = list(itertools.chain.from_iterable(itertools.chain.from_iterable(conversations.values())))
    table = pa.table({"question": [question for question, _ in turns], "answer": [answer for _, answer in turns]})
    return train_tokenizer(table, out)


def _encode(tokenizer: Path, conversations: dict[str, list[Turns]], names: list[str]) -> dict[str, list[dict]]:
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    images = random.Random(SEED + 1)

    def tokens(text: str) -> list[int]:
        return encode.encode(text, add_special_tokens=False)

    samples: dict[str, list[dict]] = {}
    for name, texts in conversations.items():
        samples[name] = []
        for number, turns in enumerate(texts):
            ids = tokens("<s>Human: <image>\n")
            mask = [False] * len(ids)
            for question, answer in turns:
                asked, told = tokens(f"Human: {question}\nAI:" if question else ""), tokens(f" {answer}</s>")
                if len(ids) + len(asked) + len(told) > MAX_TEXT_TOKENS:
                    break
                ids += asked + told
                mask += [False] * len(asked) + [True] * len(told)
            written = [
                {"user": question, "assistant": answer, "template": "t", "row": number, "turn": 0}
                for question, answer in turns
            ]
            image = images.choice(names)
            samples[name].append(
                {
                    "images": [image],
                    "turns": written,
                    "input_ids": ids,
                    "loss_mask": mask,
                    "num_tokens": len(ids),
                    "num_supervised": sum(mask),
                }
            )
    return samples


def _examples(directory: Path, samples: list[dict]) -> Path:
    """Writes the samples as build_examples writes the examples of a dataset."""
    directory.mkdir(parents=True)
    root = directory.parent.parent / "plain" / "images"
    facts = {}
    for path in root.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        facts[path.name] = digest, path.stat().st_size, max(Image.open(path).size)
    columns = ("image_sha256", "image_bytes", "image_side")
    rows = [
        {**sample, **dict(zip(columns, zip(*(facts[name] for name in sample["images"]), strict=True), strict=True))}
        for sample in samples
    ]
    table = pa.Table.from_pylist(rows, EXAMPLES)
    write_batches(directory / "examples-00000.arrow", EXAMPLES, table.to_batches(256))
    ledger = {"read": len(rows), "examples": len(rows), "duplicates": 0, "rejects": {}}
    manifest = {
        "files": [["examples-00000.arrow", len(rows)]],
        "num_examples": len(rows),
        "num_supervised": sum(row["num_supervised"] for row in rows),
        "task": "conversation",
        "rows": ledger,
        "turns": ledger,
    }
    write_manifest(directory, manifest)
    return directory


def lengths(shards: Path) -> list[int]:
    """The number of text tokens of every sample of the shards."""
    import pyarrow.parquet as pq

    files = [shards / each["file"] for each in read_manifest(shards)["shards"]]
    return [n for file in files for n in pq.read_table(file, columns=["num_tokens"])["num_tokens"].to_pylist()]
