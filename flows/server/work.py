"""`python -m flows.server.work SERVER ARGUMENT…`: Prefect's command with the arguments of a worker, which ends with its
runs soon after the process SERVER (a pid) has ended.

Without the server, a run could report nothing any more, and Prefect would repeat its requests for minutes.
"""

import contextlib
import os
import runpy
import sys
import threading
import time

import psutil

from flows.server.process import is_alive
from flows.server.stopping import LOST_SECONDS, SAVE_SECONDS, is_rank

POLL_SECONDS = 1.0


def end_with_server(server: int) -> None:
    """Ends this process with all its children, after the ranks have saved, when the server has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(server)
        while is_alive(process):
            time.sleep(POLL_SECONDS)
    print("the Prefect server has ended: so do its worker and its runs", flush=True)
    family = psutil.Process().children(recursive=True)
    for run in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            run.terminate()
    start = time.monotonic()
    while time.monotonic() - start < SAVE_SECONDS and (
        time.monotonic() - start < LOST_SECONDS or any(map(is_rank, family))
    ):
        time.sleep(0.1)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_server, args=(int(sys.argv[1]),), name="server", daemon=True).start()
    sys.argv[:] = ["prefect", *sys.argv[2:]]
    runpy.run_module("prefect", run_name="__main__")
