"""A round's runs on Prefect's server, and what is done to them from outside: looked up, renamed,
ended when their process is gone, begun again."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Scheduled

FLOW = "rankloop-round"
REVIVED = "Revived"
_PAGE = 200


def is_alive(flow_run: str) -> bool:
    """Whether the run is at work, waits, or has yet to begin. One that the server does not know (it
    ran on another) is not."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        state = client.read_flow_run(UUID(flow_run)).state
        return state is not None and not state.is_final()
    return False


def rename(flow_run: str, name: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run), name=name)


def end_killed(client: SyncPrefectClient, flow_run: UUID, why: str) -> None:
    """Mark a run as crashed whose process is gone; the dashboard would show it at work for ever."""
    ended: State[Any] = Crashed(message=why)
    client.set_flow_run_state(flow_run, ended, force=True)


def revive(client: SyncPrefectClient, flow_run: UUID, why: str) -> None:
    """Let the worker begin the run once more: it finds in the store what was finished."""
    again: State[Any] = Scheduled(name=REVIVED, message=why)
    client.set_flow_run_state(flow_run, again, force=True)


def times_revived(client: SyncPrefectClient, flow_run: UUID, within: timedelta) -> int:
    """How often that was done lately."""
    since = datetime.now(UTC) - within
    states = client.read_flow_run_states(flow_run)
    return sum(state.name == REVIVED and state.timestamp > since for state in states)


def forget(client: SyncPrefectClient, flow: str, older_than: timedelta) -> int:
    """Delete completed runs of a flow that nobody asks for any more; how many."""
    old = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED])),
            end_time=FlowRunFilterEndTime(before_=datetime.now(UTC) - older_than),
        ),
        limit=_PAGE,
    )
    for run in old:
        client.delete_flow_run(run.id)
    return len(old)


def of_rounds(client: SyncPrefectClient, *types: StateType) -> list[FlowRun]:
    """All runs of rounds in one of these states."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
            ),
            limit=_PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < _PAGE:
            return found
