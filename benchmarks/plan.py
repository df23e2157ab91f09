"""What the packing plan of many samples costs: time, memory, and bytes on disk of the lengths it is made from.

    python benchmarks/plan.py REALDATA [--millions 1 10 100] [--runs 1] [--max-tokens 2048] [--image-tokens 144]

Lengths are drawn, under a seed, from those of loader_data.py's real samples, and written as a build writes them. A run
is a process of its own that plans with two threads, then asks for the packs of a step in the middle, as a resume does.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import loader_data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import markdown, watched

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
    pack_window(few, few, 8, 8, 1, few.copy())  # compiled once in an installation, then read from numba's cache
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("realdata", type=Path)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--image-tokens", type=int, default=144)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run, options.max_tokens, options.image_tokens)))
        return
    data = Path(__file__).parent / ".data"
    real = np.array(loader_data.lengths(loader_data.make(options.realdata, data)), np.int32)
    rows = []
    with tempfile.TemporaryDirectory(dir=data) as folder:
        for millions in options.millions:
            samples = int(millions * 1_000_000)
            path = Path(folder) / "lengths.parquet"
            write(path, real, samples)
            command = [sys.executable, __file__, str(options.realdata), "--run", str(path)]
            command += ["--max-tokens", str(options.max_tokens), "--image-tokens", str(options.image_tokens)]
            runs = [watched(command) for _ in range(options.runs)]
            got = [json.loads(out.strip().splitlines()[-1]) for out, _ in runs]
            median = {key: float(np.median([each[key] for each in got])) for key in got[0]}
            rows.append(
                {
                    "samples": f"{samples:,}",
                    "packs": f"{median['packs']:,.0f}",
                    "positions used": f"{median['used']:.2%}",
                    "plan, s": f"{median['plan']:.1f}",
                    "of one core, s": f"{median['cpu']:.1f}",
                    "fingerprint, s": f"{median['fingerprint']:.2f}",
                    "a step in the middle, ms": f"{1000 * median['step']:.0f}",
                    "peak MiB": f"{max(peak for _, peak in runs) / 2**20:,.0f}",
                    "bytes on disk a sample": f"{path.stat().st_size / samples:.2f}",
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    print(f"\n{markdown(rows)}")


if __name__ == "__main__":
    main()
