"""Of the doctor: what Prefect holds of ours: pool, worker, deployments, the GPU's limit. Talks to
Prefect's server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows import worker
from flows.doctor_machine import visible_gpus
from flows.finding import Findings, Site, age, ok, warning, wrong
from flows.gpu import held_locks, limit_name
from flows.prefect_environment import POOL, ROUND_DEPLOYMENT, WATCH_DEPLOYMENT
from flows.servers import PrefectServer

_UP, RESTART = "`rankloop up`", "`rankloop down`, then `rankloop up`"
ANEW = "remove it on the dashboard, then `rankloop up` registers it"
_SILENT = timedelta(seconds=100)  # a worker says every 30 s that it is there
_PAGE = 200


def client(server: PrefectServer) -> SyncPrefectClient:
    """Whatever Prefect's settings were when it was imported, this one asks that server."""
    return SyncPrefectClient(
        server.api_url,
        auth_string=server.access or os.environ.get("PREFECT_API_AUTH_STRING"),
        api_key=os.environ.get("PREFECT_API_KEY"),
    )


@dataclass(frozen=True)
class Prefect:
    """A site whose Prefect answers, with a client of it and the dashboard's address."""

    site: Site
    client: SyncPrefectClient
    ui_url: str

    def deployment(self, name: str) -> DeploymentResponse | None:
        try:
            return self.client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None

    def page(self, deployment: DeploymentResponse) -> str:
        return f"{self.ui_url}/deployments/deployment/{deployment.id}"

    def runs(
        self,
        deployment: DeploymentResponse,
        *types: StateType,
        sort: FlowRunSort = FlowRunSort.EXPECTED_START_TIME_ASC,
        due: FlowRunFilterExpectedStartTime | None = None,
        limit: int = _PAGE,
        offset: int = 0,
    ) -> list[FlowRun]:
        return self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
                expected_start_time=due,
            ),
            sort=sort,
            limit=limit,
            offset=offset,
        )


# --- pool and worker ------------------------------------------------------------------------------


def pool(prefect: Prefect) -> Findings:
    try:
        found = prefect.client.read_work_pool(POOL)
    except ObjectNotFound:
        yield wrong(f"Prefect has no work pool {POOL}", f"{_UP} makes it")
        return
    page = f"{prefect.ui_url}/work-pools/work-pool/{POOL}"
    if found.is_paused:
        yield wrong(
            f"the work pool {POOL} is paused, so no round begins",
            f"resume it: {page}",
        )
    elif found.concurrency_limit == 0:
        yield wrong(f"the work pool {POOL} allows 0 runs at once", f"raise it: {page}")
    elif found.type != "process":
        yield wrong(f"the work pool {POOL} is of type {found.type}, not process", ANEW)
    else:
        limit = found.concurrency_limit
        yield ok(f"work pool {POOL}" + (f", {limit} runs at once" if limit else ""))


def worker_is_heard(prefect: Prefect) -> Findings:
    """Whether Prefect hears of this machine's worker, and of no other."""
    try:
        prefect.client.read_work_pool(POOL)
    except ObjectNotFound:
        return  # that is told; asking for its workers would say no more than "404"
    found = prefect.client.read_workers_for_work_pool(POOL)
    now = datetime.now(UTC)
    last = {each.name: each.last_heartbeat_time for each in found if each.last_heartbeat_time}
    for name, heard in last.items():
        if name != worker.name() and now - heard < _SILENT:
            yield warning(
                f"another worker, {name}, takes rounds from the pool {POOL}, too",
                "end it, unless it has the same files under the same paths",
            )
    ours = last.get(worker.name())
    if worker.find(prefect.site.home) is None:
        return  # that is told, too
    if ours is None or now - ours > _SILENT:
        since = f"for {age(now - ours)}" if ours else "ever"
        log = worker.log_path(prefect.site.home)
        yield wrong(f"Prefect has not heard of the worker {since}", f"read {log}; {RESTART}")
    else:
        yield ok(f"Prefect hears of the worker {worker.name()} ({age(now - ours)} ago)")


# --- deployments ----------------------------------------------------------------------------------


def deployments(prefect: Prefect) -> Findings:
    for name in (ROUND_DEPLOYMENT, WATCH_DEPLOYMENT):
        found, title = prefect.deployment(name), name.partition("/")[0]
        if found is None:
            yield wrong(f"Prefect has no deployment {title}", f"{_UP} registers it")
        elif found.paused:
            yield wrong(f"the deployment {title} is paused", f"resume it: {prefect.page(found)}")
        elif found.work_pool_name != POOL:
            told = f"runs in the pool {found.work_pool_name}, where our worker is not"
            yield wrong(f"the deployment {title} {told}", ANEW)
        else:
            yield from _registered(prefect, title, found)


def _registered(prefect: Prefect, title: str, found: DeploymentResponse) -> Findings:
    folder = Path(str(found.job_variables.get("working_dir", "")))
    if not folder.is_dir():
        yield wrong(f"{title} runs in {folder}, which is not there", f"{_UP} where it is now")
    elif found.version != worker.version(folder):
        yield wrong(
            f"{title} was registered by another version of Rankloop, or from another place",
            f"{_UP} in {folder} registers this one",
        )
    elif folder != prefect.site.folder:
        yield warning(
            f"{title}: what is started on the dashboard runs in {folder}, and this is "
            f"{prefect.site.folder}",
            f"call rankloop there; or {_UP} here moves it",
        )
    else:
        yield ok(f"deployment {title}, version {found.version}")


# --- limits ---------------------------------------------------------------------------------------


def gpu_limit(prefect: Prefect) -> Findings:
    """The limit of this machine's GPU; the first stage that runs there makes it."""
    try:
        found = prefect.client.read_global_concurrency_limit_by_name(limit_name())
    except ObjectNotFound:
        if visible_gpus():
            yield ok(f"no limit {limit_name()} yet: the first stage on the GPU makes it")
        return
    told, page = f"the GPU's limit {found.name}", f"{prefect.ui_url}/concurrency-limits"
    if not found.active:
        yield warning(f"{told} is off: nobody sees who holds the GPU", f"turn it on: {page}")
    elif found.limit < 1:
        yield wrong(f"{told} is {found.limit}: no stage ever gets the GPU", f"make it 1: {page}")
    elif found.active_slots > (held := held_locks()):
        yield warning(
            f"{told}: {found.active_slots} of {found.limit} taken, but stages hold {held}",
            f"a killed one gives back within a minute; if it stays so, delete the limit: {page}",
        )
    else:
        yield ok(f"{told}: {found.active_slots} of {found.limit} taken")
