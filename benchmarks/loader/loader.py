"""Loaders compared: samples per second, time to the first batch, resume, memory; and whether a resume is exact.

    python -m benchmarks.loader.loader --install          each peer into benchmarks/.venvs, with its own versions
    python -m benchmarks.loader.loader REALDATA [--tables speed exact] [--only NAME …] [--runs 3] [--samples 4000]

The data (loader_data.py) is written once into benchmarks/.data, in the format of each loader. Every measured run is a
separate process; times exclude imports. Speed is that of an epoch of batches of 32, measured with the same decode
function for all loaders, and with the decoding that each library's documentation shows. Exactness: loader_exact.py.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import toy
from benchmarks.loader import loader_data
from benchmarks.loader.loader_data import DATA
from benchmarks.loader.loader_exact import exactness
from benchmarks.loader.loader_run import Contender, run
from benchmarks.measure import parser, show, working

VENVS = Path(__file__).parents[1] / ".venvs"
COMMON = ["torch==2.13.0", "torchvision==0.28.0", "pillow==12.3.0"]  # torch 2.14 would install CUDA
PEERS = {
    "mosaicml-streaming": ("streaming", ["mosaicml-streaming==0.13.0"]),
    "litdata": ("litdata", ["litdata==0.2.76"]),
    "webdataset": ("webdataset", ["webdataset==1.0.2"]),
    "megatron-energon": ("energon", ["megatron-energon==7.4.1"]),
    "datasets": ("datasets", ["datasets==5.2.0", "torchdata==0.11.0"]),
}
OURS = "Honeybee"
BATCH = 32
TRIAL = 320  # samples, to choose the number of workers with


def install(names: list[str]) -> None:
    for name in names:
        folder, packages = PEERS[name]
        venv.create(VENVS / folder, with_pip=True)
        command = [str(VENVS / folder / "bin" / "pip"), "install", "-q", *COMMON, *packages]
        print(name, "could not be installed" if subprocess.run(command).returncode else "installed", flush=True)


def contenders(names: list[str], shards: Path, data: Path) -> list[Contender]:
    """The installed ones of these loaders, after writing their data."""
    found = []
    for name in names:
        if name == OURS:
            found.append(Contender(name, Path(sys.executable), "benchmarks.loader.loader_ours", shards))
            continue
        folder, _ = PEERS[name]
        python = VENVS / folder / "bin" / "python"
        module = f"benchmarks.loader.peers.{folder}_peer"
        if not python.is_file():
            print(f"skipped: {name} (not installed, see --install)")
            continue
        done = data / f"{folder}.done"
        if not done.is_file():
            shutil.rmtree(data / folder, ignore_errors=True)
            (data / folder).mkdir()
            command = [str(python), "-m", module, "write", str(data / "plain"), str(data / folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            done.touch()
        found.append(Contender(name, python, module, data / folder))
    return found


@dataclass
class Figures:
    rate: list[float]
    cpu: list[float]
    first: list[float]
    resume: list[float]
    peak: int = 0


def speed(
    loaders: list[Contender], decode: str, samples: int, runs: int, choice: Sequence[int], data: Path
) -> list[dict[str, str]]:
    """choice: numbers of workers; the fastest is measured."""

    def setup(workers: int, of: int = samples) -> dict[str, Any]:
        return {"samples": of, "batch": BATCH, "global_batch": BATCH, "workers": workers, "decode": decode}

    half = samples // BATCH // 2
    figures, workers, states = {}, {}, {}
    for each in loaders:
        workers[each] = choice[0]
        if len(choice) > 1:
            trials = {n: run(each, "epoch", setup(n, min(TRIAL, samples))).result["rate"] for n in choice}
            workers[each] = max(trials, key=lambda n: trials[n])
            told = ", ".join(f"{rate:.0f}/s with {n} workers" for n, rate in trials.items())
            print(f"{each.name}: {told}", flush=True)
        states[each] = data / "states" / f"{each.slug}-{decode}"
        shutil.rmtree(states[each], ignore_errors=True)
        what = {"out": str(data / "trace"), "units": half * BATCH, "saves": {str(states[each]): half * BATCH}}
        run(each, "trace", setup(workers[each]), json.dumps(what))
        figures[each] = Figures([], [], [], [])
    for _ in range(runs):
        for each in loaders:
            epoch = run(each, "epoch", setup(workers[each]))
            resumed = run(each, "resume", setup(workers[each]), str(states[each]), str(half))
            figures[each].rate.append(epoch.result["rate"])
            figures[each].cpu.append(epoch.result["cpu"])
            figures[each].first.append(epoch.result["first"])
            figures[each].resume.append(resumed.result["resume"])
            figures[each].peak = max(figures[each].peak, epoch.peak)
    ours = next((each for each in loaders if each.name == OURS), loaders[0])
    rows = []
    for each in loaders:
        rate, cpu, first, resume = (
            statistics.median(getattr(figures[each], key)) for key in ("rate", "cpu", "first", "resume")
        )
        rows.append(
            {
                "loader": each.name,
                "workers": str(workers[each]),
                "samples/s": f"{rate:.0f}",
                "ours ÷ this": f"{statistics.median(figures[ours].rate) / rate:.2f}",
                "CPU ms a sample": f"{1000 * cpu:.1f}",
                "this ÷ ours, CPU": f"{cpu / statistics.median(figures[ours].cpu):.2f}",
                "first batch, s": f"{first:.2f}",
                "resume, s": f"{resume:.2f}",
                "this ÷ ours, resume": f"{resume / statistics.median(figures[ours].resume):.1f}",
                "peak MiB": f"{figures[each].peak / 2**20:,.0f}",
            }
        )
    return rows


DECODING = {"plain": "the same decode function for all", "own": "each with its own decoding"}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("realdata", type=Path, nargs="?", metavar="REALDATA", help="holds corpus/ and text/")
    options_of.add_argument("--install", action="store_true")
    options_of.add_argument("--tables", nargs="+", choices=["speed", "exact"], default=["speed", "exact"])
    options_of.add_argument("--only", nargs="+", choices=[OURS, *PEERS])
    options_of.add_argument("--runs", type=int, default=3)
    options_of.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="to choose from")
    options_of.add_argument("--samples", type=int, default=loader_data.EPOCH)
    options = options_of.parse_args()
    names = options.only or [OURS, *PEERS]
    if options.install:
        install([name for name in names if name in PEERS])
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with working(options) as workdir:
        decoding, data = DECODING, DATA
        if options.toy:
            data = workdir / "loader"
            data.mkdir(exist_ok=True)
            decoding = {"own": DECODING["own"]}
            options.samples, options.runs, options.workers = 2 * BATCH, 1, [1]
            sizes = loader_data.TOY_SIZES, loader_data.TOY_EPOCH
            shards = loader_data.make(toy.realdata(workdir), data, *sizes)
        elif options.realdata is None:
            options_of.error("REALDATA is required")
        else:
            shards = loader_data.make(options.realdata, data)
        found = contenders(names, shards, data)
        if "speed" in options.tables:
            for decode, what in decoding.items():
                rows = speed(found, decode, options.samples, options.runs, options.workers, data)
                show(f"Loaders, {what}, {options.samples:,} samples", rows)
        if "exact" in options.tables:
            # litdata resumes a mixture only unchanged, a single source also with other workers.
            single = [
                replace(each, name="litdata, one source", shares=(("vqa", 1.0),))
                for each in found
                if each.name == "litdata"
            ]
            rows, messages = exactness(found + single, data, options.toy)
            show("Is a resume exact?", rows)
            print("\n".join(["", *messages]))


if __name__ == "__main__":
    main()
