"""A round's runs on Prefect's server, and what is done to them from outside: looked up, renamed,
ended when their process is gone, begun again."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Failed, Scheduled

from labeling.errors import InputError

REVIVED = "Revived"
_PAGE = 200
_FINAL = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)


def is_alive(flow_run: str) -> bool:
    """Whether the run is at work, waits, or has yet to begin. One that the server does not know (it
    ran on another) is not."""
    state = _state(flow_run)
    return state is not None and not state.is_final()


def waits(flow_run: str) -> bool:
    """Whether the run goes on by itself, though no process is at work on it: it is suspended, or
    has yet to begin."""
    state = _state(flow_run)
    return state is not None and (state.is_paused() or state.is_scheduled() or state.is_pending())


def is_cancelled(flow_run: str) -> bool:
    """Whether somebody cancelled the run on the dashboard."""
    state = _state(flow_run)
    return state is not None and (state.is_cancelling() or state.is_cancelled())


class CancelledByHand(InputError):
    """Somebody cancelled the run on the dashboard."""


def stop_if_cancelled(flow_run: str) -> None:
    """Whoever cancels a run on the dashboard ends it at its next step, or while it waits: a worker
    that would kill its process may be gone, or never was.

    Raises CancelledByHand. A server that is away says nothing.
    """
    with suppress(httpx.TransportError):
        if is_cancelled(flow_run):
            raise CancelledByHand("cancelled on the dashboard; what is finished is kept")


def _state(flow_run: str) -> State[Any] | None:
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        return client.read_flow_run(UUID(flow_run)).state
    return None


def rename(flow_run: str, name: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run), name=name)


def end_killed(client: SyncPrefectClient, run: FlowRun, why: str) -> bool:
    """Mark a run as crashed whose process is gone; the dashboard would show it at work for ever.
    Whether it was still as `run` says: a state that came meanwhile stays."""
    ended: State[Any] = Crashed(message=why)
    is_ended = _replace(client, run, ended)
    if is_ended:
        end_tasks(client, run.id, why)
    return is_ended


def end_tasks(client: SyncPrefectClient, flow_run: UUID, why: str) -> None:
    """Mark the tasks as crashed that a killed process of this run left at work."""
    at_work = TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    ended: State[Any] = Crashed(message=why)
    for left in client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=at_work)),
    ):
        client.set_task_run_state(left.id, ended, force=True)


def revive(client: SyncPrefectClient, run: FlowRun, why: str) -> bool:
    """Let the worker begin the run once more: it finds in the store what was finished. Whether it
    was still as `run` says."""
    again: State[Any] = Scheduled(name=REVIVED, message=why)
    return _replace(client, run, again)


def give_up(client: SyncPrefectClient, run: FlowRun, why: str) -> bool:
    """Let a crashed run rest as failed. Whether it was still as `run` says."""
    ended: State[Any] = Failed(message=why)
    return _replace(client, run, ended)


def _replace(client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> bool:
    now = client.read_flow_run(run.id).state
    if now is None or run.state is None or now.id != run.state.id:
        return False
    client.set_flow_run_state(run.id, state, force=True)
    return True


def times_revived(client: SyncPrefectClient, flow_run: UUID, within: timedelta) -> int:
    """How often that was done lately."""
    since = datetime.now(UTC) - within
    states = client.read_flow_run_states(flow_run)
    return sum(state.name == REVIVED and state.timestamp > since for state in states)


def forget(client: SyncPrefectClient, flow: str, older_than: timedelta) -> int:
    """Delete ended runs of a flow that nobody asks for any more; how many."""
    old = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        flow_run_filter=FlowRunFilter(
            state=_in(*_FINAL),
            end_time=FlowRunFilterEndTime(before_=datetime.now(UTC) - older_than),
        ),
        limit=_PAGE,
    )
    for run in old:
        client.delete_flow_run(run.id)
    return len(old)


def forget_overdue(client: SyncPrefectClient, deployment: UUID) -> int:
    """Delete the runs of a deployment that should have begun by now and did not; how many."""
    overdue = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
        state=_in(StateType.SCHEDULED),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
    )
    forgotten = 0
    while page := client.read_flow_runs(flow_run_filter=overdue, limit=_PAGE):
        for run in page:
            with suppress(ObjectNotFound):
                client.delete_flow_run(run.id)
        forgotten += len(page)
    return forgotten


def runs_of(client: SyncPrefectClient, flow: str, *types: StateType) -> list[FlowRun]:
    """All runs of a flow in one of these states."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            flow_run_filter=FlowRunFilter(state=_in(*types)),
            limit=_PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < _PAGE:
            return found


def _in(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
