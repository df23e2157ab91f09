"""Beam job 1 and the reader before it, against what a team would write without this project.

    python -m benchmarks.data.examples VQAV2_DIRECTORY [--rows 500000 4000000] [--runs 3] [--alone]

VQAV2_DIRECTORY holds VQAv2's two official files, or parts of them. Their rows are repeated under new ids, 5.4 to an
image as in the complete set, up to the requested number of rows. All contenders write the same examples (compared at
the smallest number of rows) from the same annotation batches: templated turns, conversations of up to ten turns about
an image in this project's order, token ids and loss mask; without de-duplication and images.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from benchmarks import toy
from benchmarks.data.examples_peers import (
    MAX_TURNS,
    SEED,
    hf_datasets,
    ijson_items,
    json_load,
    polars_script,
    polars_without_tokens,
)
from benchmarks.data.vqav2_rows import SCHEMA, good_rows, train_tokenizer, write_annotations, write_official
from benchmarks.measure import Result, measure, missing, parser, show, working
from pipelines import sources
from pipelines.core.arrow_files import open_batches, write_batches
from pipelines.schema import EXAMPLES

TOY_ROWS = 300
Contender = Callable[[Path, Path, Path], float]


def honeybee(annotations: Path, tokenizer: Path, out: Path) -> float:
    import apache_beam  # noqa: F401 (its import is not measured, as with the peers)

    from pipelines.core.beam import BEAM_OPTIONS
    from pipelines.dedup.settings import Dedup
    from pipelines.examples.beam_job import ExamplesJob, run_examples_job
    from pipelines.examples.settings import ExampleSettings
    from pipelines.jobs.examples import ROWS_PER_PARTITION
    from pipelines.templates.sets import load_templates
    from pipelines.tokens.chat_style import load_chat_template

    rows = json.loads((annotations / "manifest.json").read_text())["num_rows"]
    settings = ExampleSettings(
        dataset="vqav2",
        task="open_question",
        templates=load_templates("fine", "vqav2", "open_question"),
        chat=load_chat_template("honeybee"),
        tokenizer=tokenizer,
        max_text_tokens=1023,
        max_turns=MAX_TURNS,
        seed=SEED,
        dedup=Dedup(rule="off"),
    )
    job = ExamplesJob(annotations, None, None, settings, -(-rows // ROWS_PER_PARTITION), out)
    begin = time.perf_counter()
    run_examples_job(job, list(BEAM_OPTIONS))
    return time.perf_counter() - begin


def honeybee_reader(corpus: Path, tokenizer: Path, out: Path) -> float:
    begin = time.perf_counter()
    write_batches(out / "annotations.arrow", SCHEMA, sources.get("vqav2").read(corpus))
    return time.perf_counter() - begin


# Ours first. All but UNLIKE write the same examples.
UNLIKE = "polars, no tokens"
EXAMPLE_WRITERS: dict[str, Contender] = {
    "Honeybee, Beam job 1": honeybee,
    "`datasets`, map in 2 processes": hf_datasets,
    "polars and tokenizers": polars_script,
    UNLIKE: polars_without_tokens,
}
READERS: dict[str, Contender] = {"Honeybee, vqav2": honeybee_reader, "`json.load`": json_load, "ijson": ijson_items}
NEEDS = {
    "`datasets`, map in 2 processes": "datasets",
    "polars and tokenizers": "polars",
    UNLIKE: "polars",
    "ijson": "ijson",
}


def installed(contenders: Mapping[str, Contender]) -> list[str]:
    return [name for name in contenders if name not in NEEDS or not missing(name, NEEDS[name])]


def same_examples(folders: Iterable[Path]) -> bool:
    """Whether all wrote the same examples, in any order."""
    tables = []
    for folder in folders:
        parts = [open_file(path) for path in sorted(folder.glob("examples*.arrow"))]
        table = pa.concat_tables(parts).select(EXAMPLES.names).cast(EXAMPLES).combine_chunks()
        first = pa.array([turns[0]["row"].as_py() for turns in table["turns"]])
        tables.append(table.append_column("first", first).sort_by("first").combine_chunks())
    return all(table.equals(tables[0]) for table in tables)


def open_file(path: Path) -> pa.Table:
    try:
        return open_batches(path).read_all()
    except pa.ArrowInvalid:  # `datasets` writes streams
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def rows_of(results: dict[str, Result], rows: int) -> list[dict[str, str]]:
    ours = next(iter(results.values()))
    return [
        {
            "rows": f"{rows:,}",
            "what": name,
            "rows/s": f"{rows / result.median:,.0f}",
            "ours ÷ this": f"{result.median / ours.median:.2f}",
            "peak MiB": f"{result.peak / 2**20:,.0f}",
        }
        for name, result in results.items()
    ]


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("corpus", type=Path, nargs="?", metavar="VQAV2_DIRECTORY")
    options_of.add_argument("--rows", type=int, nargs="+", default=[500_000, 4_000_000])
    options_of.add_argument(
        "--runs", type=int, default=3, help="of each contender at the smallest number of rows; others run once"
    )
    options_of.add_argument("--alone", action="store_true", help="measure only Beam job 1")
    options_of.add_argument("--run", nargs=4, help="(internal) run one contender: NAME INPUT TOKENIZER OUTPUT")
    options = options_of.parse_args()
    if options.run:
        name, given, tokenizer, out = options.run
        shutil.rmtree(out, ignore_errors=True)
        Path(out).mkdir()
        print(json.dumps({**EXAMPLE_WRITERS, **READERS}[name](Path(given), Path(tokenizer), Path(out))))
        return
    with working(options) as workdir:
        if options.toy:
            options.corpus, options.rows, options.runs = toy.realdata(workdir) / "text/VQAv2", [TOY_ROWS], 1
        if options.corpus is None:
            options_of.error("VQAV2_DIRECTORY is required")
        here = workdir / "examples"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        run(options, here)


def run(options, here: Path) -> None:
    real = good_rows(options.corpus)
    tokenizer = train_tokenizer(real, here)

    def commands(names: list[str], given: Path) -> dict[str, list[str]]:
        command = ["benchmarks.data.examples", "--run"]
        return {name: [*command, name, str(given), str(tokenizer), str(out(here, name))] for name in names}

    names = installed(EXAMPLE_WRITERS)
    for rows in sorted(options.rows):
        write_annotations(real, rows, here / "annotations")
        smallest = rows == min(options.rows)
        chosen = names[:1] if options.alone else names
        results = measure(commands(chosen, here / "annotations"), options.runs if smallest else 1)
        if smallest and not options.alone and not same_examples(out(here, n) for n in names if n != UNLIKE):
            sys.exit("the contenders did not write the same examples: there is nothing to compare")
        show(f"Annotations to examples, {rows:,} rows", rows_of(results, rows))
        shutil.rmtree(here / "annotations")
    if options.alone:
        return
    rows = min(options.rows)
    write_official(options.corpus, rows, here / "official")
    results = measure(commands(installed(READERS), here / "official"), options.runs)
    show(f"Reading VQAv2's official JSON, {rows:,} rows", rows_of(results, rows))


def out(here: Path, name: str) -> Path:
    """Where that contender writes."""
    return here / f"out-{[*EXAMPLE_WRITERS, *READERS].index(name)}"


if __name__ == "__main__":
    main()
