"""Loaders side by side: samples a second, time to the first batch, resume, memory; and whether a resume is exact.

    python benchmarks/loader.py --install                 each peer into benchmarks/.venvs, with its own versions
    python benchmarks/loader.py REALDATA [--tables speed exact] [--only NAME …] [--runs 3] [--samples 4000]

The data (loader_data.py) is written once into benchmarks/.data, in the format of each. Every measured run is a process
of its own; times are without imports. Speed: an epoch of batches of 32, twice: with the same decode function for all,
and with what each library's documentation says. Exactness: loader_exact.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import loader_data
from loader_exact import exactness
from loader_run import Contender, run
from measure import markdown

HERE = Path(__file__).parent
VENVS, DATA = HERE / ".venvs", HERE / ".data"
COMMON = ["torch==2.13.0", "torchvision==0.28.0", "pillow==12.3.0"]  # torch 2.14 would bring CUDA
PEERS = {
    "mosaicml-streaming": ("streaming", ["mosaicml-streaming==0.13.0"]),
    "litdata": ("litdata", ["litdata==0.2.76"]),
    "webdataset": ("webdataset", ["webdataset==1.0.2"]),
    "megatron-energon": ("energon", ["megatron-energon==7.4.1"]),
    "datasets": ("datasets", ["datasets==5.2.0", "torchdata==0.11.0"]),
}
OURS = "Honeybee"
BATCH = 32
TRIAL = 320  # samples, to choose the number of workers


def install(names: list[str]) -> None:
    for name in names:
        folder, packages = PEERS[name]
        venv.create(VENVS / folder, with_pip=True)
        command = [str(VENVS / folder / "bin" / "pip"), "install", "-q", *COMMON, *packages]
        print(name, "could not be installed" if subprocess.run(command).returncode else "installed", flush=True)


def contenders(names: list[str], shards: Path) -> list[Contender]:
    """Those asked for that are installed, with their data written."""
    found = []
    for name in names:
        if name == OURS:
            found.append(Contender(name, Path(sys.executable), HERE / "loader_ours.py", shards))
            continue
        folder, _ = PEERS[name]
        python = VENVS / folder / "bin" / "python"
        script = HERE / "loader_peers" / f"{folder}_peer.py"
        if not python.is_file():
            print(f"{name} is not installed: see --install")
            continue
        done = DATA / f"{folder}.done"
        if not done.is_file():
            subprocess.run(["rm", "-rf", str(DATA / folder)], check=True)
            (DATA / folder).mkdir()
            command = [str(python), str(script), "write", str(DATA / "plain"), str(DATA / folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            done.touch()
        found.append(Contender(name, python, script, DATA / folder))
    return found


@dataclass
class Figures:
    rate: list[float]
    cpu: list[float]
    first: list[float]
    resume: list[float]
    peak: int = 0


def speed(
    all_of_them: list[Contender], decode: str, samples: int, runs: int, choice: Sequence[int]
) -> list[dict[str, str]]:
    """choice: numbers of workers, of which the fastest is measured."""

    def setup(workers: int, of: int = samples) -> dict[str, Any]:
        return {"samples": of, "batch": BATCH, "global_batch": BATCH, "workers": workers, "decode": decode}

    half = samples // BATCH // 2
    figures, workers, states = {}, {}, {}
    for each in all_of_them:
        workers[each] = choice[0]
        if len(choice) > 1:
            trials = {n: run(each, "epoch", setup(n, min(TRIAL, samples))).result["rate"] for n in choice}
            workers[each] = max(trials, key=lambda n: trials[n])
            told = ", ".join(f"{rate:.0f}/s with {n} workers" for n, rate in trials.items())
            print(f"{each.name}: {told}", flush=True)
        states[each] = DATA / "states" / f"{each.script.stem}-{decode}"
        subprocess.run(["rm", "-rf", str(states[each])], check=True)
        what = {"out": str(DATA / "trace"), "units": half * BATCH, "saves": {str(states[each]): half * BATCH}}
        run(each, "trace", setup(workers[each]), json.dumps(what))
        figures[each] = Figures([], [], [], [])
    for _ in range(runs):
        for each in all_of_them:
            epoch = run(each, "epoch", setup(workers[each]))
            resumed = run(each, "resume", setup(workers[each]), str(states[each]), str(half))
            figures[each].rate.append(epoch.result["rate"])
            figures[each].cpu.append(epoch.result["cpu"])
            figures[each].first.append(epoch.result["first"])
            figures[each].resume.append(resumed.result["resume"])
            figures[each].peak = max(figures[each].peak, epoch.peak)
    ours = next((each for each in all_of_them if each.name == OURS), all_of_them[0])
    rows = []
    for each in all_of_them:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("realdata", type=Path, nargs="?")
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--tables", nargs="+", choices=["speed", "exact"], default=["speed", "exact"])
    parser.add_argument("--only", nargs="+", choices=[OURS, *PEERS])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="to choose from")
    parser.add_argument("--samples", type=int, default=loader_data.EPOCH)
    options = parser.parse_args()
    names = options.only or [OURS, *PEERS]
    if options.install:
        install([name for name in names if name in PEERS])
        return
    if options.realdata is None:
        parser.error("REALDATA is needed: the directory with corpus/ and text/")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    found = contenders(names, loader_data.make(options.realdata, DATA))
    if "speed" in options.tables:
        for decode, what in (("plain", "the same decode function"), ("own", "each its own decoding")):
            print(
                f"\n{what}\n\n{markdown(speed(found, decode, options.samples, options.runs, options.workers))}\n",
                flush=True,
            )
    if "exact" in options.tables:
        # litdata resumes a mixture only as it was, a single source also elsewhere.
        alone = [
            replace(each, name="litdata, one source", shares=(("vqa", 1.0),))
            for each in found
            if each.name == "litdata"
        ]
        print(exactness(found + alone, DATA))


if __name__ == "__main__":
    main()
