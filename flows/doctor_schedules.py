"""Of the doctor: whether what is scheduled really happens, and whether anybody ranks for the rounds
that wait. Talks to Prefect's server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilterExpectedStartTime
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort

from flows import processes, server_home, worker
from flows.config import RoundConfig
from flows.doctor_prefect import ANEW, RESTART, Prefect
from flows.finding import Findings, Plans, Site, age, ok, warning, wrong
from flows.prefect_environment import ROUND_DEPLOYMENT, WATCH_DEPLOYMENT

_LATE, _NEW = timedelta(minutes=2), timedelta(minutes=2)
_WATCHED = timedelta(minutes=15)  # three of its turns
_AHEAD = timedelta(days=99)  # Prefect makes runs for 100 days


# --- schedules ------------------------------------------------------------------------------------


def scheduled_runs(prefect: Prefect) -> Findings:
    """Whether Prefect really makes runs ahead of what is scheduled, and the worker takes them."""
    for name in (WATCH_DEPLOYMENT, ROUND_DEPLOYMENT):
        found = prefect.deployment(name)
        if found is None or found.paused:
            continue  # that is told
        if name == WATCH_DEPLOYMENT and not found.schedules:
            yield wrong("watch-rankings has no schedule: no round that waits is resumed", ANEW)
        for schedule in found.schedules:
            yield from _ahead(prefect, found, schedule)
        yield from _late(prefect, found)


def _ahead(
    prefect: Prefect, deployment: DeploymentResponse, schedule: DeploymentSchedule
) -> Findings:
    title = deployment.name if schedule.slug == "watch" else f"the rounds of {schedule.slug}"
    if not schedule.active:
        said = warning if deployment.name == "rankloop-round" else wrong
        yield said(f"{title}: the schedule is off", f"turn it on: {prefect.page(deployment)}")
        return
    now = datetime.now(UTC)
    first = _first(prefect, deployment, schedule.id, now)
    if first is not None:
        yield ok(f"{title}: the next run begins {first.astimezone():%a %d %b, %H:%M}")
        return
    changed = schedule.updated or schedule.created or deployment.updated
    if changed is not None and now - changed < _NEW:
        yield warning(f"{title}: no run is planned yet; the schedule is new", "ask again")
        return
    if isinstance(schedule.schedule, CronSchedule):
        from flows.submit import first_date  # noqa: PLC0415 - takes two seconds

        if (date := first_date(schedule.schedule)) - now > _AHEAD:
            yield ok(f"{title}: the next run begins {date.astimezone():%a %d %b %Y}")
            return
    yield wrong(
        f"{title}: it is scheduled, and Prefect plans no run",
        "SQLAlchemy 2.1 does that silently: mend the packages named above; then "
        f"{RESTART}, and read prefect.log in {prefect.site.home / 'logs'}",
    )


def _first(
    prefect: Prefect, deployment: DeploymentResponse, schedule: UUID, now: datetime
) -> datetime | None:
    """When the first run that this schedule planned begins."""
    due, seen = FlowRunFilterExpectedStartTime(after_=now), 0
    while page := prefect.runs(deployment, StateType.SCHEDULED, due=due, offset=seen):
        for run in page:
            if run.created_by is not None and run.created_by.id == schedule:
                return run.expected_start_time
        seen += len(page)
    return None


def _late(prefect: Prefect, deployment: DeploymentResponse) -> Findings:
    now = datetime.now(UTC)
    due = FlowRunFilterExpectedStartTime(before_=now - _LATE)
    late = prefect.runs(deployment, StateType.SCHEDULED, due=due)
    if late and (since := late[0].expected_start_time):
        log = worker.log_path(prefect.site.home)
        yield wrong(
            f"{deployment.name}: {len(late)} of its runs wait for the worker, the first for "
            f"{age(now - since)}",
            f"see to the worker and the pool above; read {log}",
        )


def watch_works(prefect: Prefect) -> Findings:
    """Whether `watch-rankings` really ran, and to its end."""
    found = prefect.deployment(WATCH_DEPLOYMENT)
    if found is None:
        return
    ended = prefect.runs(
        found,
        *(StateType.COMPLETED, StateType.FAILED, StateType.CRASHED),
        sort=FlowRunSort.END_TIME_DESC,
        limit=1,
    )
    last = ended[0] if ended else None
    if last is not None and last.state is not None and not last.state.is_completed():
        cause = (last.state.message or "it does not say why").splitlines()[0][:200]
        page = f"{prefect.ui_url}/runs/flow-run/{last.id}"
        yield wrong(f"the last watch-rankings {last.state.name}: {cause}", f"read {page}")
        return
    now = datetime.now(UTC)
    signs = [last.end_time if last else None, found.created, _began(prefect.site)]
    since = max(sign for sign in signs if sign is not None)
    if now - since > _WATCHED:
        yield wrong(
            f"watch-rankings has not ended for {age(now - since)}: no round that waits is resumed",
            f"read {worker.log_path(prefect.site.home)}; {RESTART}",
        )
    elif last is not None and last.end_time is not None:
        yield ok(f"watch-rankings looked at the rounds {age(now - last.end_time)} ago")
    else:
        yield ok("watch-rankings is new; its first run is to come")


def _began(site: Site) -> datetime | None:
    """When the worker did."""
    process = server_home.recall(site.home, "worker").process
    if process is None or processes.find(process) is None:
        return None
    return datetime.fromtimestamp(process.created, UTC)


def own_schedule(prefect: Prefect, plans: Plans) -> Findings:
    """Whether the schedule of the config's run, if there is one, has the config as it is now."""
    found = prefect.deployment(ROUND_DEPLOYMENT)
    now = plans.whole.model_dump(mode="json")
    for schedule in found.schedules if found else ():
        if schedule.slug != plans.whole.name:
            continue
        cron = getattr(schedule.schedule, "cron", None) or "CRON"
        again = f'`rankloop schedule {plans.path} --cron "{cron}"` takes this one'
        if schedule.parameters.get("config") != now:
            yield warning(f"{plans.path} changed since it was scheduled", again)
        elif schedule.parameters.get("folder") != str(prefect.site.folder):
            where = schedule.parameters.get("folder")
            yield warning(f"{plans.path} is scheduled in {where}, not here", again)
        else:
            yield ok(f"{plans.path} is scheduled as it is: {cron}")


# --- rounds that wait -----------------------------------------------------------------------------


def waiting_rounds(prefect: Prefect) -> Findings:
    """Suspended rounds of this folder, and whether anybody ranks for them."""
    waiting = list(_waiting(prefect.site.folder / "runs"))
    for document, since in waiting:
        quiet = datetime.now(UTC) - since
        name = f"{document['name']} round {document['round']}"
        if quiet > timedelta(hours=_patience_h(document)):
            yield warning(
                f"{name} waits for people, and nothing came for {age(quiet)}",
                f"ask them to rank at {document['waiting']['page']}; `rankloop status` tells more",
            )
        else:
            yield ok(f"{name} waits for people; the last sign of them is {age(quiet)} old")


def _waiting(runs: Path) -> Iterator[tuple[dict[str, Any], datetime]]:
    """round.json of each, and when something changed last: a snapshot is kept of what did."""
    for path in sorted(runs.glob("*/rounds/*/round.json")):
        try:
            document = json.loads(path.read_text())
            if document["status"] != "waiting":
                continue
            since = datetime.fromisoformat(document["finished"])
            document["waiting"]["page"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `rankloop status` tells which cannot be read
        for snapshot in (path.parent / "snapshots").glob("*"):
            since = max(since, datetime.fromtimestamp(snapshot.stat().st_mtime, UTC))
        yield document, since


def _patience_h(document: dict[str, Any]) -> float:
    default = RoundConfig.model_fields["labeling"].get_default(call_default_factory=True)
    return float(document["config"]["labeling"].get("remind_hours", default.remind_hours))
