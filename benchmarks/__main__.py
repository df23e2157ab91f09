"""Runs the benchmarks that docs/benchmarks.md reports, with the arguments stated there.

    python -m benchmarks [--only SUBJECT …] [--realdata DIRECTORY] [--run RUN] [--list] [--toy]

A benchmark whose inputs are absent is skipped by name, with the reason. SUBJECT is a folder or a script: `dedup`,
`dedup_quality`. REALDATA is HONEYBEE_REALDATA, or ../shared/realdata next to the checkout; RUN is a finished run of the
sample recipe (`make train`), whose model and job are measured.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Inputs:
    realdata: Path
    run: Path

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def job(self) -> Path:
        return self.model.resolve().parent / "job.json"

    @property
    def llm(self) -> Path:
        """The language model that the sample recipe trained last."""
        found = sorted((ROOT / "store/backbones").glob("*/**/llm"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else ROOT / "store/backbones/*/llm"

    @property
    def pairs(self) -> list[Path]:
        folder = self.realdata / "dedup"
        return sorted(folder.glob("*.jsonl")) or [folder / "*.jsonl"]


Arguments = list[str | Path]


@dataclass(frozen=True)
class Entry:
    module: str
    arguments: Callable[[Inputs], Arguments] = lambda _: []  # paths must exist
    cuda: bool = False  # whether it needs a GPU


ENTRIES = [
    Entry("benchmarks.dedup.dedup_quality", lambda i: [*i.pairs]),
    Entry("benchmarks.dedup.dedup", lambda i: [i.realdata / "text"]),
    Entry("benchmarks.data.decontamination", lambda i: [i.realdata / "corpus"]),
    Entry("benchmarks.data.examples", lambda i: [i.realdata / "text/VQAv2"]),
    Entry("benchmarks.data.second_build", lambda i: ["sample", i.llm]),
    Entry("benchmarks.data.shards", lambda i: [i.realdata]),
    Entry("benchmarks.data.packing", lambda i: [i.realdata]),
    Entry("benchmarks.data.plan", lambda i: [i.realdata]),
    Entry("benchmarks.loader.decode", lambda i: [i.realdata]),
    Entry("benchmarks.loader.loader", lambda i: [i.realdata, "--tables", "speed", "exact"]),
    Entry("benchmarks.projectors.projectors"),
    Entry("benchmarks.training.logits"),
    Entry("benchmarks.training.training", lambda i: [i.realdata, "--rounds", "3", "--samples", "24"]),
    Entry("benchmarks.training.step_time", cuda=True),
    Entry("benchmarks.training.training_loop", lambda i: [i.job, "--steps", "10", "--rounds", "7"]),
    Entry("benchmarks.training.memory"),
    Entry("benchmarks.evaluation.evaluation", lambda i: [i.model, "--rounds", "3", "--questions", "128"]),
]


def absent(entry: Entry, inputs: Inputs) -> str | None:
    """Why an entry cannot run, or None."""
    if entry.cuda:
        import torch

        if not torch.cuda.is_available():
            return "it needs a GPU"
    missing = [path for path in entry.arguments(inputs) if isinstance(path, Path) and not path.exists()]
    return f"there is no {missing[0]}" if missing else None


def chosen(subjects: list[str]) -> list[Entry]:
    """Raises SystemExit for a subject that is not known."""
    names = {part for entry in ENTRIES for part in entry.module.split(".")[1:]}
    unknown = [subject for subject in subjects if subject not in names]
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; the known names are {', '.join(sorted(names))}")
    return [entry for entry in ENTRIES if not subjects or set(subjects) & set(entry.module.split(".")[1:])]


def main() -> None:
    options_of = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = Path(os.environ.get("HONEYBEE_REALDATA", ROOT.parent / "shared/realdata"))
    options_of.add_argument("--only", nargs="*", default=[], metavar="SUBJECT")
    options_of.add_argument("--realdata", type=Path, default=real)
    options_of.add_argument("--run", type=Path, default=ROOT / "runs/sample/latest")
    options_of.add_argument("--list", action="store_true", help="print the commands only")
    options_of.add_argument("--toy", action="store_true", help="run all at toy size, on generated data")
    options = options_of.parse_args()
    inputs = Inputs(options.realdata.absolute(), options.run.absolute())
    summary, failed = [], False
    for entry in chosen(options.only):
        name = entry.module.removeprefix("benchmarks.")
        reason = None if options.toy else absent(entry, inputs)
        if reason:
            summary.append(f"skipped: {name} ({reason})")
            print(summary[-1], flush=True)
            continue
        arguments = ["--toy"] if options.toy else [str(argument) for argument in entry.arguments(inputs)]
        command = [sys.executable, "-m", entry.module, *arguments]
        print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
        if options.list:
            continue
        start = time.perf_counter()
        code = subprocess.run(command, cwd=ROOT).returncode
        failed |= code != 0
        outcome = f"failed with exit code {code}" if code else "done"
        summary.append(f"{outcome}: {name} ({time.perf_counter() - start:.0f} s)")
    if not options.list:
        print("\n" + "\n".join(summary))
    sys.exit(failed)


if __name__ == "__main__":
    main()
