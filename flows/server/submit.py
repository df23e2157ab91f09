"""Runs a deployment on the server and prints its log until the run ends.

`prefect deployment run --watch` shows only state changes unless the server streams logs, and then it interprets square
brackets in log lines as markup; this module reads the log lines from the API instead.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.objects import FlowRun, Log, State
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound

from flows.server.settings import PREFECT_HOME
from flows.server.stopping import Stop, stops_promptly

POLL_SECONDS = 1.0
COMMAND = f"PREFECT_HOME={PREFECT_HOME} prefect"  # with which a user reaches the server
LATE = timedelta(seconds=10)  # log lines reach the API in batches, so a line may arrive after more recent ones
DRAIN_SECONDS = 3.0  # time for the last log lines to arrive after the run has ended
PAGE = 200  # maximum page size of the API


class SubmitError(RuntimeError):
    """A run could not be started or followed."""


def submit(
    deployment: str, parameters: dict[str, Any], alive: Callable[[], bool], has_server: Callable[[], bool]
) -> tuple[State, dict[str, Any]]:
    """Runs the deployment FLOW/NAME and prints its log until it ends; returns its final state and all its parameters.

    alive: whether the worker is alive; a run whose worker died would stay "Running" forever. has_server: whether the
    server is, for the same reason. Raises SubmitError for an unknown deployment, a dead worker, or a server that does
    not answer.
    """
    with _answering(), get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            known = ", ".join(sorted(f"…/{d.name}" for d in client.read_deployments()))
            raise SubmitError(f"there is no deployment {deployment}; the server has {known}") from None
        run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        print(f"Run {run.name} of {deployment}", flush=True)
        hint = f"the run continues; stop it in the UI, with `make down`, or with `{COMMAND} flow-run cancel {run.id}`"
        with stops_promptly(hint) as stop:
            threading.Thread(target=_watch, args=(has_server, stop), name="server", daemon=True).start()
            return _follow(client, run, alive), run.parameters


def _watch(has_server: Callable[[], bool], stop: Stop) -> None:
    while has_server():
        time.sleep(POLL_SECONDS)
    stop.lost(
        "the Prefect server has ended, and the run with it: see .honeybee/server.log, start it with `honeybee up`"
    )


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise SubmitError(f"the Prefect server does not answer ({error}): start it with `honeybee up`") from error


def _follow(client: SyncPrefectClient, run: FlowRun, alive: Callable[[], bool]) -> State:
    lines = _Lines(client, run.id)
    shown = None
    while True:
        if not alive():
            raise SubmitError("the worker has died, and the run with it: see .honeybee/worker.log, then run it again")
        lines.show()
        state = client.read_flow_run(run.id).state
        assert state is not None  # the server assigns a state to every run
        if state.name != shown and not state.is_final():
            shown = state.name
            print(f"{_clock(datetime.now().astimezone())}  ({state.name})", flush=True)
        if state.is_final():
            time.sleep(DRAIN_SECONDS)
            lines.show()
            print(f"{_clock(datetime.now().astimezone())}  ({state.name}) {state.message or ''}".rstrip(), flush=True)
            return state
        time.sleep(POLL_SECONDS)


class _Lines:
    """Prints each log line of a flow run once, in order of arrival."""

    def __init__(self, client: SyncPrefectClient, flow_run: UUID):
        self.client, self.flow_run = client, flow_run
        self.seen: dict[UUID, datetime] = {}  # printed lines that the next query may return again
        self.names: dict[UUID, str] = {}  # task run → name

    def show(self) -> None:
        newest = max(self.seen.values(), default=None)
        after = {} if newest is None else {"timestamp": {"after_": newest - LATE}}
        for line in self._read({"flow_run_id": {"any_": [self.flow_run]}, **after}):
            if line.id not in self.seen:
                print(f"{_clock(line.timestamp)}  {self._speaker(line)}{line.message}", flush=True)
            self.seen[line.id] = line.timestamp
        if self.seen:
            oldest = max(self.seen.values()) - LATE
            self.seen = {key: time for key, time in self.seen.items() if time >= oldest}

    def _speaker(self, line: Log) -> str:
        """Returns the name of the task that logged the line, followed by a bar; empty for the flow itself."""
        if line.task_run_id is None:
            return ""
        if line.task_run_id not in self.names:
            self.names[line.task_run_id] = self.client.read_task_run(line.task_run_id).name
        return f"{self.names[line.task_run_id]} | "

    def _read(self, where: dict[str, Any]) -> list[Log]:
        found: list[Log] = []
        while True:
            page = self.client.read_logs(
                LogFilter.model_validate(where), limit=PAGE, offset=len(found), sort=LogSort.TIMESTAMP_ASC
            )
            found += page
            if len(page) < PAGE:
                return found


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S}"
