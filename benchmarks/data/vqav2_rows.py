"""VQAv2's rows, repeated under new ids up to any number, as annotation batches and as official files."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines import sources
from pipelines.core.arrow_files import write_batches
from pipelines.core.integrity import write_manifest
from pipelines.core.store import Store
from pipelines.jobs.tokenizer import prepare_tokenizer
from pipelines.schema import ANNOTATIONS

SCHEMA = ANNOTATIONS["open_question"]
QUESTIONS = ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json")
ROWS_PER_BATCH, BATCHES_PER_FILE = 32768, 8


def good_rows(directory: Path) -> pa.Table:
    """The annotation rows of VQAv2's official files, without rejects."""
    table = pa.Table.from_batches(sources.get("vqav2").read(directory))
    return table.filter(table["reject"].is_null())


def write_annotations(real: pa.Table, rows: int, out: Path) -> None:
    """Writes Arrow files as this project stores them, and the same rows as one Arrow stream for `datasets`."""
    out.mkdir()

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, ROWS_PER_BATCH):
            number = np.arange(first, min(first + ROWS_PER_BATCH, rows))
            chosen = real.take(pa.array(number % real.num_rows))
            nothing = pa.nulls(len(number), pa.string())
            columns = [pa.array(number), images_of(number), nothing, nothing]
            columns += [chosen[name].combine_chunks() for name in ("question", "answer")]
            yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    everything = batches()
    for file in itertools.count():
        part = list(itertools.islice(everything, BATCHES_PER_FILE))
        if not part:
            break
        write_batches(out / f"annotations-{file:05d}.arrow", SCHEMA, part)
    write_manifest(out, {"num_rows": rows})
    with pa.OSFile(str(out / "rows.stream"), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for batch in batches():
            writer.write_batch(batch)


def images_of(number: np.ndarray) -> pa.Array:
    """Image names, one for 5.4 questions, as in the complete set."""
    return pa.array([f"COCO_train2014_{image:012d}.jpg" for image in (number * 10 // 54).tolist()])


def write_official(corpus: Path, rows: int, out: Path) -> None:
    """Writes the two JSON files, with ten answers to a question."""
    out.mkdir()
    for name, key in zip(QUESTIONS, ("questions", "annotations"), strict=True):
        real = json.loads((corpus / name).read_bytes())
        records = real.pop(key)
        with (out / name).open("w") as file:
            file.write(json.dumps(real)[:-1] + f', "{key}": [')
            for number in range(rows):
                changed = {"question_id": number, "image_id": number * 10 // 54}
                file.write(", " * (number > 0) + json.dumps({**records[number % len(records)], **changed}))
            file.write("]}")


def train_tokenizer(real: pa.Table, folder: Path) -> Path:
    """Learns a byte-level vocabulary of up to 32,000 tokens from the rows; returns its directory in a store."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(real["question"].to_pylist() + real["answer"].to_pylist(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>").save_pretrained(folder / "llm")
    return prepare_tokenizer(Store(folder / "store"), str(folder / "llm"))
