"""One fork server for all tests of a worker: it imports the large libraries once, and every process starts with them.

Importing torch, transformers and DeepSpeed takes several times as long as what a test runs in the process.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

# A worker has one fork server, so there is one list. It cannot name `support`, because the fork server's path is the
# working directory, normally the root of the project.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["model.training.stage", "tests.support.rank_imports", "benchmarks.preload"])

TIMEOUT = 120.0  # seconds


def run_honeybee(
    *arguments: object, cwd: Path, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command `honeybee` like subprocess.run, but in a forked process. env: changed environment variables.

    A test about the start of the real program, such as an error before torch is imported, needs a real subprocess.
    """
    command = ["honeybee", *map(str, arguments)]
    with TemporaryDirectory() as directory:
        files = [Path(directory, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin)
        process = server.Process(target=_command, args=(command, cwd, dict(env or {}), files))
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(f"{command} takes more than {TIMEOUT:.0f} s: {files[2].read_text()}")
        assert process.exitcode is not None
        return subprocess.CompletedProcess(command, process.exitcode, files[1].read_text(), files[2].read_text())


def _command(command: list[str], cwd: Path, env: Mapping[str, str], files: list[Path]) -> None:
    os.chdir(cwd)
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    sys.argv = command
    with contextlib.ExitStack() as opened:
        for number, (path, mode) in enumerate(zip(files, ("r", "w", "w"), strict=True)):
            os.dup2(opened.enter_context(path.open(mode)).fileno(), number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m, closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w")))
        from flows.cli.main import main

        main()
