"""What the packing plan of many samples costs: time, memory, and bytes on disk of the lengths that it is made from.

    python -m benchmarks.data.plan REALDATA [--millions 1 10 100] [--runs 1] [--max-tokens 2048] [--image-tokens 144]

Lengths are drawn, under a fixed seed, from those of loader_data.py's real samples and written as a build writes them.
A run is a separate process that plans with two threads, then requests the packs of a step in the middle, as a resume
does.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.loader import loader_data
from benchmarks.measure import last_line, parser, show, watched, working
from pipelines.schema import LENGTHS
from pipelines.shards.writer import LENGTHS_PER_GROUP

GLOBAL_BATCH = 128  # packs
THREADS = 2


def write(path: Path, real: np.ndarray, samples: int) -> None:
    random = np.random.default_rng(20)
    with pq.ParquetWriter(path, LENGTHS, compression="zstd") as writer:
        for first in range(0, samples, LENGTHS_PER_GROUP):
            tokens = real[random.integers(0, len(real), min(LENGTHS_PER_GROUP, samples - first))]
            columns = {"num_tokens": tokens, "num_images": np.ones(len(tokens), np.int16)}
            writer.write_table(pa.table(columns, schema=LENGTHS), row_group_size=LENGTHS_PER_GROUP)


def run(path: Path, max_tokens: int, image_tokens: int) -> dict[str, float]:
    from pipelines.packing.bin_packing import pack_window
    from pipelines.packing.plan import Lengths, Packing, make_plan

    few = np.ones(2, np.int32)
    pack_window(few, few, 8, 8, 1, few.copy())  # compiled once per installation, then read from numba's cache
    begin, begin_cpu = time.perf_counter(), time.process_time()
    plan = make_plan(Lengths(path), Packing(max_tokens=max_tokens), image_tokens, THREADS)
    planned, planned_cpu = time.perf_counter(), time.process_time()
    plan.packs(plan.num_packs // 2, plan.num_packs // 2 + GLOBAL_BATCH)
    step = time.perf_counter()
    fingerprint = plan.fingerprint
    named = time.perf_counter()
    assert fingerprint
    return {
        "plan": planned - begin,
        "cpu": planned_cpu - begin_cpu,
        "step": step - planned,
        "fingerprint": named - step,
        "packs": plan.num_packs,
        "used": plan.used,
    }


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("realdata", type=Path, nargs="?", metavar="REALDATA")
    options_of.add_argument("--millions", type=float, nargs="+", default=[1, 10, 100])
    options_of.add_argument("--runs", type=int, default=1)
    options_of.add_argument("--max-tokens", type=int, default=2048)
    options_of.add_argument("--image-tokens", type=int, default=144)
    options_of.add_argument("--run", type=Path, help="(internal) plan these lengths")
    options = options_of.parse_args()
    if options.run:
        print(json.dumps(run(options.run, options.max_tokens, options.image_tokens)))
        return
    with working(options) as workdir:
        if options.toy:
            options.millions, real = [0.01, 0.02], np.arange(20, 700, dtype=np.int32)
        elif options.realdata is None:
            options_of.error("REALDATA is required")
        else:
            shards = loader_data.make(options.realdata, loader_data.DATA)
            workdir, real = loader_data.DATA, np.array(loader_data.lengths(shards), np.int32)
        with tempfile.TemporaryDirectory(dir=workdir) as folder:
            rows = [row(options, real, int(millions * 1_000_000), Path(folder)) for millions in options.millions]
    first = float(rows[0]["CPU ns a sample"])
    for each in rows:
        each["CPU ÷ first row's"] = f"{float(each['CPU ns a sample']) / first:.2f}"
    show(f"The packing plan, {options.max_tokens} positions", rows)


def row(options, real: np.ndarray, samples: int, folder: Path) -> dict[str, str]:
    path = folder / "lengths.parquet"
    write(path, real, samples)
    command = [sys.executable, "-m", "benchmarks.data.plan", "--run", str(path)]
    command += ["--max-tokens", str(options.max_tokens), "--image-tokens", str(options.image_tokens)]
    runs = [watched(command) for _ in range(options.runs)]
    found = [last_line(out) for out, _ in runs]
    median = {key: float(np.median([each[key] for each in found])) for key in found[0]}
    made = {
        "samples": f"{samples:,}",
        "packs": f"{median['packs']:,.0f}",
        "positions used": f"{median['used']:.2%}",
        "plan, s": f"{median['plan']:.1f}",
        "CPU s": f"{median['cpu']:.1f}",
        "CPU ns a sample": f"{1e9 * median['cpu'] / samples:.1f}",
        "fingerprint, s": f"{median['fingerprint']:.2f}",
        "a step in the middle, ms": f"{1000 * median['step']:.0f}",
        "peak MiB": f"{max(peak for _, peak in runs) / 2**20:,.0f}",
        "bytes on disk a sample": f"{path.stat().st_size / samples:.2f}",
    }
    print(json.dumps(made), flush=True)
    return made


if __name__ == "__main__":
    main()
