"""Beam job 1 and the reader before it, against what a team would write without this project.

    python benchmarks/examples.py VQAV2_DIRECTORY [--rows 500000 4000000] [--runs 3] [--alone]

VQAV2_DIRECTORY holds VQAv2's two official files, or a part of them. Their rows are repeated, under new ids, 5.4 to an
image as in the whole set, up to the number of rows asked for. From the same annotation batches every contender writes
the same examples (compared at the smallest number of rows): templated turns, conversations of up to ten about an image
in this project's order, token ids and loss mask; no de-duplication, no pictures.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from examples_peers import MAX_TURNS, SEED, hf_datasets, ijson_items, json_load, polars_script, polars_without_tokens
from measure import Result, markdown, measure
from vqav2_rows import SCHEMA, train_tokenizer, write_annotations, write_official

from pipelines import sources
from pipelines.core.arrow_files import open_batches, write_batches
from pipelines.schema import EXAMPLES


def honeybee(annotations: Path, tokenizer: Path, out: Path) -> float:
    import apache_beam  # noqa: F401 (its import is not measured, as with the peers)

    from pipelines.core.beam import BEAM_OPTIONS
    from pipelines.examples.beam_job import ExamplesJob, run_examples_job
    from pipelines.examples.render import RenderSettings
    from pipelines.jobs.examples import ROWS_PER_PARTITION
    from pipelines.templates.sets import template_file

    rows = json.loads((annotations / "manifest.json").read_text())["num_rows"]
    settings = RenderSettings(
        dataset="vqav2",
        task="open_question",
        template_file=str(template_file("fine", "vqav2", "open_question")),
        chat="honeybee",
        tokenizer=str(tokenizer),
        embeddings=None,
        max_turns=MAX_TURNS,
        max_text_tokens=1023,
        dedup_rule="off",
        dedup_compare="pair",
        dedup_threshold=None,
        seed=SEED,
    )
    job = ExamplesJob(str(annotations), None, settings, -(-rows // ROWS_PER_PARTITION), str(out))
    begin = time.perf_counter()
    run_examples_job(job, list(BEAM_OPTIONS))
    return time.perf_counter() - begin


def honeybee_reader(corpus: Path, tokenizer: Path, out: Path) -> float:
    begin = time.perf_counter()
    write_batches(out / "annotations.arrow", SCHEMA, sources.get("vqav2").read(corpus))
    return time.perf_counter() - begin


EXAMPLE_WRITERS = {
    "Honeybee, Beam job 1": honeybee,
    "`datasets`, map in 2 processes": hf_datasets,
    "polars and tokenizers": polars_script,
    "polars, no tokens": polars_without_tokens,
}
READERS = {"Honeybee, vqav2": honeybee_reader, "`json.load`": json_load, "ijson": ijson_items}


def same_examples(folders: list[Path]) -> bool:
    """Whether all wrote the same examples, in any order."""
    tables = []
    for folder in folders:
        files = sorted(folder.glob("examples*.arrow"))
        parts = [open_file(path) for path in files]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 4_000_000])
    parser.add_argument(
        "--runs", type=int, default=3, help="of each contender at the smallest number of rows; others 1"
    )
    parser.add_argument("--alone", action="store_true", help="measure Beam job 1 only")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, given, tokenizer, out = options.run
        shutil.rmtree(out, ignore_errors=True)
        Path(out).mkdir()
        print(json.dumps({**EXAMPLE_WRITERS, **READERS}[name](Path(given), Path(tokenizer), Path(out))))
        return
    real = pa.Table.from_batches(sources.get("vqav2").read(options.corpus))
    real = real.filter(real["reject"].is_null())
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        tokenizer = train_tokenizer(real, here)

        def commands(contenders, given: Path) -> dict[str, list[str]]:
            return {
                name: [__file__, str(options.corpus), "--run", name, str(given), str(tokenizer), str(here / f"out{n}")]
                for n, name in enumerate(contenders)
            }

        for rows in sorted(options.rows):
            write_annotations(real, rows, here / "annotations")
            runs = options.runs if rows == min(options.rows) else 1
            contenders = dict(list(EXAMPLE_WRITERS.items())[: 1 if options.alone else None])
            results = measure(commands(contenders, here / "annotations"), runs)
            comparable = rows == min(options.rows) and not options.alone
            if comparable and not same_examples([here / f"out{number}" for number in range(3)]):
                sys.exit("the first three did not write the same examples: no comparison")
            print(markdown(rows_of(results, rows)), flush=True)
            shutil.rmtree(here / "annotations")
        if options.alone:
            return
        rows = min(options.rows)
        write_official(options.corpus, rows, here / "official")
        print("\n" + markdown(rows_of(measure(commands(READERS, here / "official"), options.runs), rows)))


if __name__ == "__main__":
    main()
