"""De-duplication of real turns, image by image: speed and memory against peers, decisions against a plain reference.

    python -m benchmarks.dedup.dedup ROOT [--images N] [--runs 1] [--only NAME …]

ROOT holds VQAv2/, GQA/annotations/ and VisualGenome/metadata/question_answers.json. All questions of an image form one
conversation. Every contender gets the same turns and runs in its own process; its time excludes imports and includes
loading its model. `--images` takes only the first N images of each dataset.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import toy
from benchmarks.dedup.dedup_peers import Kept, Turns, plain, plain_distinct, semhash
from benchmarks.measure import measure, missing, parser, show, working
from pipelines import sources
from pipelines.core.arrow_files import read_table, write_batches
from pipelines.core.ragged import offsets_of
from pipelines.dedup.decide import contents_to_embed, deduplicate, texts_to_embed
from pipelines.dedup.embeddings import PACKAGED_MODEL, Embeddings, embed_texts
from pipelines.dedup.settings import DEFAULT_THRESHOLD

READERS = {"vqav2": "VQAv2", "gqa": "GQA/annotations"}
TOY_IMAGES = 4


def honeybee(turns: Turns) -> Kept:
    """What a build does: embeds words, then the contents that they leave in doubt, then decides."""
    offsets, questions, answers = turns
    sizes = np.diff(offsets)
    chosen = np.flatnonzero(np.repeat(sizes > 1, sizes)).tolist()
    asked, told = [questions[k] for k in chosen], [answers[k] for k in chosen]
    texts = texts_to_embed(asked, told)
    words = embed_texts(texts, PACKAGED_MODEL)
    contents = contents_to_embed(offsets_of(sizes[sizes > 1]), asked, told, Embeddings(words))
    print(f"{len(texts):,} words and {len(contents):,} contents of {len(chosen):,} turns that share their image")
    embeddings = Embeddings(embed_texts(texts | contents, PACKAGED_MODEL, words))
    decided = deduplicate(offsets, questions, answers, embeddings)
    return decided.keep, decided.similarity


CONTENDERS: dict[str, Callable[[Turns], Kept]] = {
    "Honeybee": honeybee,
    "reference: every text through `encode`, double loop": plain,
    "reference, distinct texts": plain_distinct,
    "semhash": semhash,
}


def read_turns(root: Path, images: int | None) -> pa.Table:
    """Columns image, question, answer; sorted by image, and in file order within an image."""
    parts = []
    for name, folder in READERS.items():
        table = pa.Table.from_batches(sources.get(name).read(root / folder))
        parts.append(table.filter(table["reject"].is_null()).select(["image", "question", "answer"]))
    genome = json.loads((root / "VisualGenome/metadata/question_answers.json").read_text())
    rows = [
        {"image": f"vg/{each['id']}", "question": qa["question"], "answer": qa["answer"]}
        for each in genome
        for qa in each["qas"]
    ]
    parts.append(pa.Table.from_pylist(rows, parts[0].schema))
    chosen = []
    for table in parts:
        number = table["image"].combine_chunks().dictionary_encode().indices.to_numpy()
        order = np.argsort(number, kind="stable")
        if images is not None:
            order = order[number[order] < images]
        chosen.append(table.take(pa.array(order)))
    return pa.concat_tables(chosen)


def as_turns(table: pa.Table) -> Turns:
    number = table["image"].combine_chunks().dictionary_encode().indices.to_numpy()
    return offsets_of(np.bincount(number)), table["question"].to_pylist(), table["answer"].to_pylist()


def run(name: str, given: Path, out: Path) -> float:
    import torch  # noqa: F401

    logging.disable(logging.WARNING)
    turns = as_turns(read_table(given))
    import sentence_transformers  # noqa: F401 (its import is not measured)

    begin = time.perf_counter()
    keep, similarity = CONTENDERS[name](turns)
    seconds = time.perf_counter() - begin
    np.savez(out, keep=keep, similarity=similarity)
    return seconds


def agreement(ours: Path, reference: Path) -> str:
    a, b = np.load(ours), np.load(reference)
    other = a["keep"] != b["keep"]
    far = np.abs(b["similarity"][other] - DEFAULT_THRESHOLD["pair"])
    text = f"{1 - other.mean():.3%} are equal ({other.sum()} of {len(other):,} differ"
    return text + (f", at most {np.nanmax(far):.1e} from the threshold)" if other.any() else ")")


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("root", type=Path, nargs="?", metavar="ROOT")
    options_of.add_argument("--images", type=int)
    options_of.add_argument("--runs", type=int, default=1)
    options_of.add_argument("--only", nargs="+", choices=CONTENDERS)
    options_of.add_argument("--run", nargs=3, help="(internal) run one contender: NAME TURNS OUTPUT")
    options = options_of.parse_args()
    if options.run:
        name, given, out = options.run
        print(json.dumps(run(name, Path(given), Path(out))))
        return
    names = options.only or list(CONTENDERS)
    with working(options) as workdir:
        if options.toy:
            options.root, options.images = toy.realdata(workdir) / "text", TOY_IMAGES
            names = [name for name in names if CONTENDERS[name] is not plain]
        if options.root is None:
            options_of.error("ROOT is required")
        names = [name for name in names if name != "semhash" or not missing(name, name)]
        here = workdir / "dedup"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        table = read_turns(options.root, options.images)
        rows = compare(table, names, options.runs, here)
    show(f"De-duplication of {table.num_rows:,} turns", rows)


def compare(table: pa.Table, names: list[str], runs: int, here: Path) -> list[dict[str, str]]:
    given = here / "turns.arrow"
    write_batches(given, table.schema, table.to_batches())
    out = {name: here / f"{number}.npz" for number, name in enumerate(names)}
    results = measure(
        {name: ["benchmarks.dedup.dedup", "--run", name, str(given), str(out[name])] for name in names}, runs
    )
    reference = next((name for name in names if name.startswith("reference")), None)
    rows = []
    for name in names:
        seconds, keep = results[name].median, np.load(out[name])["keep"]
        rows.append(
            {
                "what": name,
                "turns/s": f"{len(keep) / seconds:,.0f}",
                "this ÷ ours": f"{seconds / results[names[0]].median:.1f}",
                "peak MiB": f"{results[name].peak / 2**20:,.0f}",
                "dropped": f"{1 - keep.mean():.1%}",
                "decisions of the reference": agreement(out[name], out[reference]) if reference else "",
            }
        )
    return rows


if __name__ == "__main__":
    main()
