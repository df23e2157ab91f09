"""A stand-in for sys.executable whose `-m MODULE ARGUMENT…` runs in a process of the fork server, for some MODULEs.

A rank, or a program of a benchmark, is what it always is: a process with its own environment, output, exit code and
signals, started by the code under test. It only does not import torch, transformers and DeepSpeed again, which takes
longer than a tiny training.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory

from support.fork_server import server

PROGRAMS = r"model\.training(\.sample_backbones)?|model\.evaluation|benchmarks\..+"
STAND_IN = """\
#!{python} -ISE
import os, re, signal, socket, sys
arguments = sys.argv[3:] if sys.argv[1:3] == ["-W", "ignore"] else sys.argv[1:]
if arguments[:1] != ["-m"] or not re.fullmatch({programs!r}, arguments[1]):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
    request = json.dumps([arguments[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8)], [0, 1, 2])
    server.sendall(request)
    for file in (0, 1, 2):
        os.close(file)
    answer = b""
    while more := server.recv(20):
        answer += more
code = int(answer)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextlib.contextmanager
def forked_python() -> Iterator[str]:
    """The path of the stand-in; its processes end with the block."""
    with TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
        path, address = Path(directory, "python"), f"{directory}/socket"
        path.write_text(STAND_IN.format(python=sys.executable, programs=PROGRAMS, address=address))
        path.chmod(0o700)
        listening.bind(address)
        listening.listen()
        threading.Thread(target=_listen, args=(listening,), name="forked python", daemon=True).start()
        yield str(path)


def _listen(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the block has ended
        while True:
            threading.Thread(target=_serve, args=(listening.accept()[0],), daemon=True).start()


def _serve(stand_in: socket.socket) -> None:
    """Starts the process, passes it the signals, and answers with its exit code. Kills it if the stand-in is killed."""
    with stand_in:
        size, files, _, _ = socket.recv_fds(stand_in, 8, 3)
        text = b""
        while len(text) < int.from_bytes(size):
            text += stand_in.recv(1 << 16)
        arguments, cwd, env = json.loads(text)
        streams = [Connection(file) for file in files]  # which can be sent to a process
        process = server.Process(target=_module, args=(arguments, cwd, env, streams))
        process.start()
        for stream in streams:
            stream.close()
        assert process.pid is not None
        while wait([stand_in, process.sentinel]) != [process.sentinel] and process.is_alive():
            number = stand_in.recv(1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number[0] if number else signal.SIGKILL)
            if not number:
                break
        process.join()
        with contextlib.suppress(OSError):
            stand_in.sendall(str(process.exitcode).encode())


def _module(arguments: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[Connection]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, 1 if number else -1, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.argv[1:] = arguments[1:]
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
