"""The worker that runs submitted and scheduled rounds on this machine, and the deployments that it
runs: `ensure`, `find`. Talks to Prefect's server; the environment must name it before."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows import databases, processes, server_home
from flows.config import RoundConfig
from flows.embedded import ROOT
from flows.flow_runs import forget_overdue
from flows.prefect_environment import POOL, ROUND_DEPLOYMENT, WATCH_DEPLOYMENT
from flows.processes import Detached
from flows.server_home import Known
from labeling.errors import InputError

logger = logging.getLogger(__name__)

PREFECT_FILE = ROOT / "infra" / "prefect.yaml"
_READY_WITHIN_S = 90.0


@dataclass(frozen=True)
class Worker:
    """The worker's process, and whether it was started just now."""

    process: Detached
    is_new: bool


def find(home: Path) -> Detached | None:
    """The worker's process while it runs."""
    process = server_home.recall(home.resolve(), "worker").process
    return process if process and processes.find(process) else None


def log_path(home: Path) -> Path:
    return home / "logs" / "worker.log"


def ensure(home: Path, folder: Path, environment: dict[str, str]) -> Worker:
    """Have pool and deployments registered, and a worker at work that takes their runs.

    Args:
        folder: where rounds run that were not told their folder.
        environment: Prefect's settings, those of this process (flows/prefect_environment.py).

    Raises:
        InputError: the deployments are refused, or the worker ends or stays silent.
    """
    home = home.resolve()
    with server_home.lock(home), get_client(sync_client=True) as client:
        _ensure_pool(client)
        _register(client, folder, environment)
        told = _digest(environment)
        known = server_home.recall(home, "worker")
        if (running := find(home)) is not None and known.told == told:
            return Worker(running, is_new=False)
        if running is not None:
            logger.warning("servers or keys are others than the worker knows: it is restarted")
        if known.process is not None:
            processes.stop(known.process)  # also what a worker that was killed left behind
        # The schedule went on without a worker, which would begin all that it missed at once.
        forget_overdue(client, client.read_deployment_by_name(WATCH_DEPLOYMENT).id)
        begun = datetime.now(UTC)
        process = _start(home, folder, environment)
        server_home.remember(home, "worker", Known(process=process, told=told))
        _wait_online(client, process, begun, log_path(home))
        return Worker(process, is_new=True)


def _digest(environment: dict[str, str]) -> str:
    """Of what the worker is told of the servers: another port, another key, another digest."""
    given = {k: v for k, v in os.environ.items() if k.startswith("LABEL_STUDIO_")}
    told = json.dumps(environment | given, sort_keys=True)
    return sha256(told.encode()).hexdigest()


def _ensure_pool(client: SyncPrefectClient) -> None:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template)
        client.create_work_pool(pool)


def version(folder: Path) -> str:
    """Of the deployments: changes with the file, the fields of a config, and the places."""
    told = [PREFECT_FILE.read_text(), RoundConfig.model_json_schema(), str(folder), str(ROOT)]
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _register(client: SyncPrefectClient, folder: Path, environment: dict[str, str]) -> None:
    wanted, names = version(folder), (ROUND_DEPLOYMENT, WATCH_DEPLOYMENT)
    known = [_find(client, name) for name in names]
    if all(one and one.version == wanted and _is_strict(one) for one in known):
        return
    _refuse_another_folder(client, folder)
    logger.info("registering the deployments …")
    given = {"RANKLOOP_FOLDER": str(folder), "RANKLOOP_VERSION": wanted}
    done = subprocess.run(
        (
            *(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"),
            *("--prefect-file", str(PREFECT_FILE)),
        ),
        env=_clean_environment() | environment | given,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InputError(
            f"Prefect refuses {PREFECT_FILE}: {lines[-1] if lines else 'it does not say why'}"
        )
    for name, before in zip(names, known, strict=True):
        _make_strict(client, client.read_deployment_by_name(name), bool(before and before.paused))


def _make_strict(client: SyncPrefectClient, made: DeploymentResponse, is_paused: bool) -> None:
    """Have a parameter that the flow does not know refused, as a wrong value is; and keep paused
    what somebody paused, which `prefect deploy` would set going."""
    schema = {**(made.parameter_openapi_schema or {}), "additionalProperties": False}
    update = DeploymentUpdate(parameter_openapi_schema=schema, paused=is_paused)
    client.update_deployment(made.id, update)


def _is_strict(deployment: DeploymentResponse) -> bool:
    return (deployment.parameter_openapi_schema or {}).get("additionalProperties") is False


def _refuse_another_folder(client: SyncPrefectClient, folder: Path) -> None:
    """Rounds of one Prefect are at home in one folder: two watchers would take each other's rounds
    for lost. A folder that is not on this machine has moved; one on another is not told apart."""
    found = _find(client, ROUND_DEPLOYMENT)
    other = str(found.job_variables.get("working_dir") or folder) if found else str(folder)
    if other == str(folder) or not Path(other).is_dir():
        return
    raise InputError(
        f"this Prefect runs the rounds of {other}: call `rankloop up` there, or set RANKLOOP_HOME "
        "(or PREFECT_API_URL) so that this folder has a Prefect of its own"
    )


def registered_version(client: SyncPrefectClient, name: str) -> str | None:
    """None for a deployment that is not there."""
    found = _find(client, name)
    return found.version if found else None


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _start(home: Path, folder: Path, environment: dict[str, str]) -> Detached:
    log = log_path(home)
    log.parent.mkdir(parents=True, exist_ok=True)
    logger.info("starting the worker …")
    return processes.start(
        (
            *(sys.executable, "-m", "prefect", "worker", "start"),
            *("--pool", POOL, "--type", "process", "--name", name()),
        ),
        _clean_environment() | environment | _LASTING | {"RANKLOOP_HOME": str(home)},
        folder,
        log,
        f"{home}:worker",
    )


# A round rides out a restart of the server: its client asks again, after 2, 4, … 64 s.
_LASTING = {
    "PREFECT_CLIENT_MAX_RETRIES": "6",
    "PREFECT_WORKER_QUERY_SECONDS": "5",
    "PYTHONUNBUFFERED": "1",
}


def name() -> str:
    """One worker a host."""
    return f"rankloop-{socket.gethostname()}"


def _clean_environment() -> dict[str, str]:
    """Ours without settings of Prefect, of which a stray one would change what the worker does, and
    without what only servers need to know."""
    hidden = ("PREFECT_", *databases.VARIABLE.values())
    return {k: v for k, v in os.environ.items() if not k.startswith(hidden)}


def is_online(client: SyncPrefectClient, since: datetime) -> bool:
    """Whether the server has heard of this host's worker since then."""
    workers = client.read_workers_for_work_pool(POOL)
    return any(
        worker.name == name() and (worker.last_heartbeat_time or since) > since
        for worker in workers
    )


def _wait_online(client: SyncPrefectClient, process: Detached, begun: datetime, log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while not is_online(client, begun):
        if processes.reap(process) is not None or processes.find(process) is None:
            raise InputError(f"the worker ended before it was ready: read {log}")
        if time.monotonic() > deadline:
            raise InputError(f"the worker is not ready after {_READY_WITHIN_S:.0f} s: read {log}")
        time.sleep(0.5)
