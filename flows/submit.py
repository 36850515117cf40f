"""Rounds on the worker: `rankloop submit` starts one, `rankloop schedule` one every so often."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import DeploymentSchedule, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule
from prefect.states import Scheduled

from flows.config import RoundConfig
from flows.flow_runs import is_alive
from flows.lineage import next_round
from flows.prefect_environment import ROUND_DEPLOYMENT
from flows.progress import LOGGERS
from flows.turns import round_of, take
from labeling.errors import InputError
from labeling.tally import describe

logger = logging.getLogger(__name__)

_POLL_S = 2.5  # a run sends its log every 2 s
_LOG_PAGE = 200


@dataclass(frozen=True)
class Submitted:
    """A run on the worker: its id, its name, the round that falls to it, and its page on the
    dashboard."""

    id: UUID
    name: str
    round: int
    page: str


def submit(config: RoundConfig, number: int | None, ui_url: str) -> Submitted:
    """Start a round on the worker; it begins within seconds. Without a number: the unfinished one,
    else a new one.

    Raises InputError when the deployment is not there, or another run is at that round.
    """
    run_folder = Path.cwd() / "runs" / config.name
    falls_to_it = number
    if number is None:
        falls_to_it = take(run_folder, "", config.stop_after, is_alive)
    if falls_to_it is None:
        raise InputError(
            f"a run is at round {next_round(run_folder, config.stop_after)} of {config.name} "
            "already, at work or waiting for people: `rankloop status` tells how it is"
        )
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(
            _deployment(client).id,
            parameters=_parameters(config, number),
            state=Scheduled(),
            name=config.name if number is None else f"{config.name}-{number:03d}",
        )
    return Submitted(run.id, run.name, falls_to_it, f"{ui_url}/runs/flow-run/{run.id}")


def _parameters(config: RoundConfig, number: int | None) -> dict[str, object]:
    folder = str(Path.cwd())
    return {"config": config.model_dump(mode="json"), "number": number, "folder": folder}


def _deployment(client: SyncPrefectClient) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(ROUND_DEPLOYMENT)
    except ObjectNotFound:
        raise InputError(
            f"Prefect has no deployment {ROUND_DEPLOYMENT}: `rankloop up` registers it"
        ) from None


# --- watching it ---------------------------------------------------------------------------------


def follow(submitted: Submitted, name: str, say: Callable[[str], None]) -> State:
    """Say what the run logs and what it waits for, until it ends; its last state. The run does not
    notice."""
    lines, told, last = _Lines(submitted.id), "", ""
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(submitted.id).state
            waiting = _waiting(name, str(submitted.id)) if state and state.is_paused() else ""
            time.sleep(_POLL_S)  # what was logged before this state has arrived then
            for line in lines.new(client):
                say(line)
            if state is not None and state.is_final():
                return state
            standing = f"{state.name if state else 'unknown'}"
            if standing != last:
                say(f"the run is {standing.lower()}")
            if waiting and waiting != told:
                say(waiting)
            last, told = standing, waiting


class _Lines:
    """A run's log records in their order, each once."""

    def __init__(self, run: UUID) -> None:
        self._filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
        self._read = 0

    def new(self, client: SyncPrefectClient) -> Iterator[str]:
        while True:
            page = client.read_logs(
                self._filter, limit=_LOG_PAGE, offset=self._read, sort=LogSort.TIMESTAMP_ASC
            )
            self._read += len(page)
            for log in page:
                is_ours = log.name.partition(".")[0] in LOGGERS
                if is_ours or log.level >= logging.WARNING:
                    yield f"{log.timestamp.astimezone():%H:%M:%S}  {log.message}"
            if len(page) < _LOG_PAGE:
                return


def _waiting(name: str, flow_run: str) -> str:
    """What the run's round waits for, in a line."""
    run = Path.cwd() / "runs" / name
    number = round_of(run, flow_run)
    if number is None:
        return ""
    document = json.loads((run / "rounds" / f"{number:03d}" / "round.json").read_text())
    waiting = document.get("waiting")
    return f"{describe(waiting)[0]}; rank at {waiting['page']}" if waiting else ""


# --- schedules -----------------------------------------------------------------------------------


def schedule(config: RoundConfig, cron: str, timezone: str) -> datetime:
    """Start a round of this run at these times, in place of an earlier schedule of it; the first
    one's. A round that is not finished when the next is due is not disturbed.

    Raises InputError for what is no cron expression or no time zone.
    """
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise InputError(
            f"--timezone {timezone}: is no time zone's name, such as Europe/Berlin"
        ) from None
    try:
        made = CronSchedule(cron=cron, timezone=timezone)
        first = first_date(made)
    except ValueError:
        raise InputError(
            f'--cron "{cron}": is no cron expression; "0 6 * * 1" is every Monday at six'
        ) from None
    with get_client(sync_client=True) as client:
        deployment, parameters = _deployment(client).id, _parameters(config, None)
        earlier = _of_run(client, deployment, config.name)
        if earlier:  # changed where it is: the run is never without a schedule
            client.update_deployment_schedule(
                deployment, earlier[0].id, active=True, schedule=made, parameters=parameters
            )
        else:
            new = DeploymentScheduleCreate(schedule=made, parameters=parameters, slug=config.name)
            client.create_deployment_schedules(deployment, [new])
    return first.astimezone(zone)


def first_date(schedule: CronSchedule) -> datetime:
    """When it begins a run next. Only the server's own schedule tells its dates."""
    (first,) = asyncio.run(ServerCronSchedule(**schedule.model_dump()).get_dates(1))
    return first


def unschedule(name: str) -> bool:
    """End the schedule of a run; whether it had one."""
    with get_client(sync_client=True) as client:
        deployment = _deployment(client).id
        found = _of_run(client, deployment, name)
        for one in found:
            client.delete_deployment_schedule(deployment, one.id)
    return bool(found)


def schedules() -> dict[str, str]:
    """Cron expression and time zone, by run."""
    with get_client(sync_client=True) as client:
        found = client.read_deployment_schedules(_deployment(client).id)
    return {
        str(one.slug): f"{one.schedule.cron} ({one.schedule.timezone or 'UTC'})"
        for one in found
        if isinstance(one.schedule, CronSchedule)
    }


def _of_run(client: SyncPrefectClient, deployment: UUID, name: str) -> list[DeploymentSchedule]:
    """The run's schedule, if it has one: Prefect takes no second of a name."""
    return [s for s in client.read_deployment_schedules(deployment) if s.slug == name]
