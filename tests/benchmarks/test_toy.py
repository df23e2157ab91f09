"""Every benchmark runs at toy size and prints a table with a ratio. Nothing is said about the figures themselves."""

import importlib.util
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fork_server import server
from support.forked_python import forked_python

from benchmarks.__main__ import ENTRIES

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600  # seconds
# Programs that benchmarks start as processes of their own.
CHILDREN = {"benchmarks.__main__", "benchmarks.loader.loader_ours", "benchmarks.training.memory_rank"} | {
    f"benchmarks.loader.peers.{path.stem}" for path in (ROOT / "benchmarks/loader/peers").glob("*_peer.py")
}
# What a script reports as skipped if a module cannot be found.
PEERS = {
    "benchmarks.data.examples": {"polars": "polars and tokenizers", "ijson": "ijson"},
    "benchmarks.dedup.dedup": {"semhash": "semhash"},
    "benchmarks.projectors.projectors": {"timm": "timm"},
}


def programs() -> list[str]:
    """Modules below benchmarks/ that can be run."""
    paths = sorted((ROOT / "benchmarks").rglob("*.py"))
    runnable = [path for path in paths if 'if __name__ == "__main__"' in path.read_text()]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in runnable]


SCRIPTS = [name for name in programs() if name not in CHILDREN]


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    with forked_python() as path:
        yield path


def run(module: str, arguments: list[str], out: Path, python: str) -> None:
    """Does what `python -m` does, with the output in a file. python: starts the programs of the benchmark."""
    os.chdir(ROOT)
    sys.executable = python
    sys.path.insert(0, str(ROOT))
    sys.argv = [module, *arguments]
    with out.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def ratios(text: str) -> list[str]:
    """The numbers in columns of tables whose header names a ratio."""
    found, header = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or set(line) <= set("|- "):
            header = header if cells else []
        elif not header:
            header = cells
        else:
            found += [cell for title, cell in zip(header, cells, strict=True) if "÷" in title or "ratio" in title]
    return [cell for cell in found if re.search(r"\d", cell)]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_at_toy_size(script: str, workdir: Path, tmp_path: Path, python: str) -> None:
    out = tmp_path / "out.txt"
    process = server.Process(target=run, args=(script, ["--toy", "--workdir", str(workdir)], out, python))
    process.start()
    process.join(TIMEOUT)
    hangs = process.is_alive()
    process.kill()
    text = out.read_text()
    assert not hangs and process.exitcode == 0, f"exit code {process.exitcode}\n{text[-5000:]}"
    assert ratios(text), f"there is no table with a ratio\n{text}"
    assert re.search(r"^CPU: .+ cores.+BLAS: .+torch \d", text, re.MULTILINE), f"the machine is not described\n{text}"
    for module, name in PEERS.get(script, {}).items():
        absent = importlib.util.find_spec(module) is None
        assert not absent or f"skipped: {name}" in text, f"{name} is neither run nor reported as skipped\n{text}"


def test_every_script_is_in_the_list_of_make_bench() -> None:
    assert {entry.module for entry in ENTRIES} == set(SCRIPTS)


def test_ratios_are_read_from_tables() -> None:
    assert ratios("| a | b ÷ c |\n| --- | --- |\n| 1 | 0.5 |\n| 2 |  |\n\n| d |\n| --- |\n| 7 |") == ["0.5"]
