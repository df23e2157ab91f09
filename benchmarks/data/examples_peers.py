"""What a team would write without this project: the same examples from the same rows with `datasets` and with polars,
and the same annotation batches from the official JSON with the standard library and with ijson.

Each function takes its input directory, the tokenizer's directory and an empty output directory, and returns seconds.
"""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.data.vqav2_rows import QUESTIONS, ROWS_PER_BATCH, SCHEMA
from pipelines.core.arrow_files import write_batches
from pipelines.core.hashing import mix64, seed64
from pipelines.schema import EXAMPLES
from pipelines.tokens.tokenizer import load_tokenizer

MAX_TURNS, SEED = 10, 0
OF_IMAGES = [name for name in EXAMPLES.names if name.startswith("image_")]  # null where images are skipped
SYSTEM = "A person talks with an assistant that looks at pictures and answers truthfully."


def hf_datasets(annotations: Path, tokenizer: Path, out: Path) -> float:
    """`datasets` as its documentation shows: batched maps in two processes, a sort, memory-mapped caches."""
    import datasets

    datasets.disable_progress_bars()
    prepared = load_tokenizer(tokenizer)
    rows = datasets.Dataset.from_file(str(annotations / "rows.stream"))
    begin = time.perf_counter()

    def render(batch):
        return {
            "user": [f"{question.strip()} Reply with one word or a short phrase." for question in batch["question"]],
            "assistant": [answer.strip() for answer in batch["answer"]],
            "place": order_in_image(np.array(batch["row"])).astype(np.int64),
        }

    kept = ["row", "image"]
    turns = rows.map(
        render,
        batched=True,
        num_proc=2,
        remove_columns=[name for name in rows.column_names if name not in kept],
        cache_file_name=str(out / "turns.arrow"),
    )
    turns = turns.sort(["image", "place"], indices_cache_file_name=str(out / "sorted.arrow"))
    images = turns.with_format("arrow")["image"]
    starts = conversation_starts(pa.chunked_array(images).combine_chunks())
    groups = datasets.Dataset.from_dict({"start": starts[:-1], "end": starts[1:]})

    def converse(batch):
        first = batch["start"][0]
        part = turns[first : batch["end"][-1]]
        spans = [(a - first, b - first) for a, b in zip(batch["start"], batch["end"], strict=True)]
        return conversations(part, spans, prepared)

    groups.map(
        converse,
        batched=True,
        num_proc=2,
        remove_columns=["start", "end"],
        features=datasets.Features.from_arrow_schema(EXAMPLES),
        cache_file_name=str(out / "examples.arrow"),
    )
    return time.perf_counter() - begin


def polars_script(annotations: Path, tokenizer: Path, out: Path) -> float:
    """All rows in memory: polars renders, sorts and groups; tokenizers tokenises on all cores."""
    prepared = load_tokenizer(tokenizer)
    begin = time.perf_counter()
    turns, starts = polars_turns(annotations)
    spans = list(itertools.pairwise(starts.tolist()))
    for number, first in enumerate(range(0, len(spans), 4096)):
        chosen = spans[first : first + 4096]
        base = chosen[0][0]
        part = turns.slice(base, chosen[-1][1] - base).to_dict(as_series=False)
        table = pa.table(conversations(part, [(a - base, b - base) for a, b in chosen], prepared), EXAMPLES)
        write_batches(out / f"examples-{number:05d}.arrow", EXAMPLES, table.to_batches(1024))
    return time.perf_counter() - begin


def polars_without_tokens(annotations: Path, tokenizer: Path, out: Path) -> float:
    """The same script without tokenisation: the cost of grouping and writing."""
    import polars as pl

    begin = time.perf_counter()
    turns, starts = polars_turns(annotations)
    part = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    grouped = turns.with_columns(part=pl.Series(part)).group_by("part", maintain_order=True)
    grouped.agg("user", "assistant", "row", pl.col("image").first()).write_ipc(out / "turns.arrow")
    return time.perf_counter() - begin


def polars_turns(annotations: Path):
    import polars as pl

    table = pl.read_ipc(sorted(annotations.glob("annotations-*.arrow")))
    table = table.select(
        "row",
        "image",
        user=pl.col("question").str.strip_chars() + " Reply with one word or a short phrase.",
        assistant=pl.col("answer").str.strip_chars(),
    )
    table = table.with_columns(place=pl.Series(order_in_image(table["row"].to_numpy())))
    table = table.sort("image", "place")
    return table, conversation_starts(table["image"].to_arrow())


def order_in_image(row: np.ndarray) -> np.ndarray:
    """The order that this project gives the turns of an image."""
    return mix64(row.astype(np.uint64), seed64("turn order", "vqav2", SEED)) >> np.uint64(1)


def conversation_starts(images: pa.Array) -> np.ndarray:
    """Indices of turns, sorted by image, at which a conversation begins; then the number of turns."""
    codes = images.dictionary_encode().indices.to_numpy()
    new_image = np.append(True, codes[1:] != codes[:-1])
    begin = np.maximum.accumulate(np.where(new_image, np.arange(len(codes)), 0))
    return np.append(np.flatnonzero((np.arange(len(codes)) - begin) % MAX_TURNS == 0), len(codes))


def conversations(turns, spans, prepared):
    """Columns of examples: each conversation is tokenised as one text; character offsets give the loss mask."""
    texts, answers = [], []
    for begin, end in spans:
        text, marks = f"<s>{SYSTEM}\nHuman: <image>", []
        for user, assistant in zip(turns["user"][begin:end], turns["assistant"][begin:end], strict=True):
            text += f"\nHuman: {user}\nAI:"
            marks.append((len(text), len(text) + len(assistant) + 5))
            text += f" {assistant}</s>"
        texts.append(text)
        answers.append(marks)
    columns = {name: [] for name in EXAMPLES.names}
    encodings = prepared.tokenizer.encode_batch(texts, add_special_tokens=False)
    for (begin, end), encoding, marks in zip(spans, encodings, answers, strict=True):
        ids = encoding.ids
        mask = [False] * len(ids)
        for first, last in marks:
            tokens = range(encoding.char_to_token(first), encoding.char_to_token(last - 1) + 1)
            mask[tokens.start : tokens.stop] = [True] * len(tokens)
        columns["images"].append([turns["image"][begin]])
        for name in OF_IMAGES:
            columns[name].append([None])
        columns["turns"].append(
            [
                {
                    "user": turns["user"][k],
                    "assistant": turns["assistant"][k],
                    "template": "vqav2",
                    "row": turns["row"][k],
                    "turn": 0,
                }
                for k in range(begin, end)
            ]
        )
        columns["input_ids"].append(ids)
        columns["loss_mask"].append(mask)
        columns["num_tokens"].append(len(ids))
        columns["num_supervised"].append(sum(mask))
    return columns


def json_load(corpus: Path, tokenizer: Path, out: Path) -> float:
    begin = time.perf_counter()
    questions, answers = (json.loads((corpus / name).read_bytes()) for name in QUESTIONS)
    write_batches(out / "annotations.arrow", SCHEMA, joined(questions["questions"], answers["annotations"]))
    return time.perf_counter() - begin


def ijson_items(corpus: Path, tokenizer: Path, out: Path) -> float:
    import ijson

    begin = time.perf_counter()
    with (corpus / QUESTIONS[0]).open("rb") as questions, (corpus / QUESTIONS[1]).open("rb") as answers:
        pairs = ijson.items(questions, "questions.item"), ijson.items(answers, "annotations.item")
        write_batches(out / "annotations.arrow", SCHEMA, joined(*pairs))
    return time.perf_counter() - begin


def joined(questions, annotations) -> Iterator[pa.RecordBatch]:
    """Joins by id: the answers in a dictionary, then the questions in batches."""
    answer_of = {each["question_id"]: each["multiple_choice_answer"] for each in annotations}
    first = 0
    questions = iter(questions)
    while batch := list(itertools.islice(questions, ROWS_PER_BATCH)):
        columns = [
            pa.array(range(first, first + len(batch)), pa.int64()),
            pa.array([f"COCO_train2014_{each['image_id']:012d}.jpg" for each in batch]),
            pa.nulls(len(batch), pa.string()),
            pa.nulls(len(batch), pa.string()),
            pa.array([each["question"].strip() for each in batch]),
            pa.array([answer_of[each["question_id"]].strip() for each in batch]),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
        first += len(batch)
