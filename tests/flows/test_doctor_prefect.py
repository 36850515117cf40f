"""`rankloop doctor` on a site with nothing wrong, with a real worker; then each finding about what
Prefect holds is made true once."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from flows import doctor_prefect, doctor_schedules, gpu, servers, worker
from flows.doctor_prefect import Prefect
from flows.finding import Finding, Plans, Site
from flows.gpu import limit_name
from flows.load import load_config
from flows.prefect_environment import POOL, ROUND_DEPLOYMENT, WATCH_DEPLOYMENT
from tests.flows.on_worker import OnWorker, until

OF_THE_MACHINE = ("of disk are free", "of memory are free", "GPU", "not as pinned")


@pytest.fixture(scope="module")
def prefect(worked: OnWorker) -> Iterator[Prefect]:
    """The session's Prefect, with the watcher's schedule on, as an engineer has it."""
    site = Site(worked.home, worked.project.folder)
    found = servers.find_prefect(worked.home)
    assert found is not None
    watch = worked.deployment("watch-rankings")["id"]
    worked.ask(f"/deployments/{watch}/resume_deployment", {})
    with doctor_prefect.client(found) as client:
        asked = Prefect(site, client, found.ui_url)
        try:
            until(lambda: is_fine(doctor_schedules.scheduled_runs(asked)), every=1)
            yield asked
        finally:
            worked.ask(f"/deployments/{watch}/pause_deployment", {})


def complaint(findings: Iterable[Finding]) -> Finding:
    """The only one, which must say what to do."""
    (found,) = [finding for finding in findings if finding.mark != "ok"]
    assert found.to_do
    return found


def is_fine(findings: Iterable[Finding]) -> bool:
    return {finding.mark for finding in findings} == {"ok"}


def test_a_site_with_nothing_wrong_has_no_complaint_and_no_secret(
    worked: OnWorker, prefect: Prefect
) -> None:
    out = worked.command("doctor", "people.yaml")
    *lines, last = out.splitlines()
    told = [line for line in lines if not any(what in line for what in OF_THE_MACHINE)]
    assert [line for line in told if not line.startswith("ok ")] == []
    for said in (
        *("Prefect takes our password", "Label Studio takes our token", "the worker runs"),
        *("work pool rankloop", "deployment rankloop-round", "watch-rankings: the next run begins"),
        *("people.yaml: what round", "GB of memory for "),
    ):
        assert said in out, said
    assert last.startswith("nothing is wrong")
    secrets = json.loads((worked.home / "credentials.json").read_text())
    for name in ("password", "token", "prefect"):
        assert secrets[name].rpartition(":")[2] not in out


# --- pool and worker ------------------------------------------------------------------------------


def test_a_pool_that_takes_nothing_is_wrong_and_what_waits_is_told(prefect: Prefect) -> None:
    assert is_fine(doctor_prefect.pool(prefect))
    client, found = prefect.client, prefect.deployment(ROUND_DEPLOYMENT)
    assert found is not None
    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
    long_ago = datetime.now(UTC) - timedelta(minutes=10)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": long_ago.isoformat()}}
    body = {"parameters": {}, "state": state, "enforce_parameter_schema": False}
    late = client.request("POST", f"/deployments/{found.id}/create_flow_run", json=body).json()
    try:
        assert "is paused" in complaint(doctor_prefect.pool(prefect)).what
        waiting = complaint(doctor_schedules.scheduled_runs(prefect))
        assert waiting.mark == "wrong"
        assert "rankloop-round: 1 of its runs wait for the worker, the first for 10" in waiting.what
        client.delete_flow_run(late["id"])  # before the pool takes it
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False, concurrency_limit=0))
        assert "allows 0 runs" in complaint(doctor_prefect.pool(prefect)).what
    finally:
        with contextlib.suppress(ObjectNotFound):
            client.delete_flow_run(late["id"])
        freed = {"is_paused": False, "concurrency_limit": None}
        client.request("PATCH", f"/work_pools/{POOL}", json=freed)
    assert is_fine(doctor_prefect.pool(prefect))


def test_a_pool_that_is_not_there_is_wrong(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_prefect, "POOL", "another")
    assert "has no work pool another" in complaint(doctor_prefect.pool(prefect)).what
    assert list(doctor_prefect.worker_is_heard(prefect)) == []  # the pool is told


def test_a_silent_worker_and_one_of_others_are_told(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_fine(doctor_prefect.worker_is_heard(prefect))
    name = worker.name()
    monkeypatch.setattr(worker, "name", lambda: "rankloop-elsewhere")
    other, silent = doctor_prefect.worker_is_heard(prefect)
    assert (other.mark, silent.mark) == ("warning", "wrong")
    assert f"another worker, {name}," in other.what
    assert silent.what == "Prefect has not heard of the worker ever"


# --- deployments ----------------------------------------------------------------------------------


def test_deployments_of_another_version_are_wrong(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_fine(doctor_prefect.deployments(prefect))
    monkeypatch.setattr(worker, "version", lambda _: "another")
    for found in doctor_prefect.deployments(prefect):
        assert found.mark == "wrong"
        assert f"`rankloop up` in {prefect.site.folder}" in found.to_do


def test_deployments_for_another_folder_are_a_warning(prefect: Prefect, tmp_path: Path) -> None:
    elsewhere = Prefect(Site(prefect.site.home, tmp_path), prefect.client, prefect.ui_url)
    for found in doctor_prefect.deployments(elsewhere):
        assert found.mark == "warning"
        assert f"runs in {prefect.site.folder}, and this is {tmp_path}" in found.what


def test_a_deployment_that_is_paused_or_not_there_is_wrong(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prefect.deployment(ROUND_DEPLOYMENT)
    assert found is not None
    prefect.client.request("POST", f"/deployments/{found.id}/pause_deployment")
    try:
        paused = complaint(doctor_prefect.deployments(prefect))
        assert is_fine(doctor_schedules.scheduled_runs(prefect))  # and told once
    finally:
        prefect.client.request("POST", f"/deployments/{found.id}/resume_deployment")
    assert paused.what == "the deployment rankloop-round is paused"
    assert f"/deployments/deployment/{found.id}" in paused.to_do
    monkeypatch.setattr(doctor_prefect, "ROUND_DEPLOYMENT", "rankloop-round/another")
    assert "has no deployment rankloop-round" in complaint(doctor_prefect.deployments(prefect)).what


# --- schedules ------------------------------------------------------------------------------------


@pytest.fixture
def scheduled(prefect: Prefect) -> Iterator[Plans]:
    """A config whose rounds are scheduled every Monday."""
    path = prefect.site.folder / "people.yaml"
    config = load_config(path)
    found = prefect.deployment(ROUND_DEPLOYMENT)
    assert found is not None
    told = {"config": config.model_dump(mode="json"), "folder": str(prefect.site.folder)}
    made = DeploymentScheduleCreate(
        schedule=CronSchedule(cron="0 6 * * 1", timezone="UTC"), parameters=told, slug=config.name
    )
    (schedule,) = prefect.client.create_deployment_schedules(found.id, [made])
    yield Plans(prefect.site, path, config, 0)
    prefect.client.delete_deployment_schedule(found.id, schedule.id)


def test_a_schedule_that_makes_no_runs_is_wrong(
    prefect: Prefect, scheduled: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: is_fine(doctor_schedules.scheduled_runs(prefect)), every=1)
    with monkeypatch.context() as patch:
        patch.setattr(Prefect, "runs", lambda *_, **__: [])  # as with SQLAlchemy 2.1
        patch.setattr(doctor_schedules, "_NEW", timedelta(days=1))
        for found in doctor_schedules.scheduled_runs(prefect):
            assert "no run is planned yet; the schedule is new" in found.what
        patch.setattr(doctor_schedules, "_NEW", timedelta())
        watch, rounds = doctor_schedules.scheduled_runs(prefect)
    assert watch.mark == rounds.mark == "wrong"
    assert watch.what == "watch-rankings: it is scheduled, and Prefect plans no run"
    assert rounds.what.startswith(f"the rounds of {scheduled.whole.name}: it is scheduled")
    assert "SQLAlchemy 2.1" in watch.to_do


def test_a_schedule_far_ahead_needs_no_runs_yet(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prefect.deployment(ROUND_DEPLOYMENT)
    assert found is not None
    month = (datetime.now(UTC) + timedelta(days=200)).month
    far = DeploymentScheduleCreate(
        schedule=CronSchedule(cron=f"0 6 1 {month} *", timezone="UTC"), slug="yearly"
    )
    (schedule,) = prefect.client.create_deployment_schedules(found.id, [far])
    try:
        monkeypatch.setattr(doctor_schedules, "_NEW", timedelta())
        assert is_fine(doctor_schedules.scheduled_runs(prefect))
    finally:
        prefect.client.delete_deployment_schedule(found.id, schedule.id)


def test_a_schedule_that_is_off_is_told(prefect: Prefect, scheduled: Plans) -> None:
    found = prefect.deployment(ROUND_DEPLOYMENT)
    assert found is not None
    (schedule,) = found.schedules
    prefect.client.update_deployment_schedule(found.id, schedule.id, active=False)
    off = complaint(doctor_schedules.scheduled_runs(prefect))
    assert off.mark == "warning"
    assert off.what == f"the rounds of {scheduled.whole.name}: the schedule is off"


def test_a_config_that_changed_since_it_was_scheduled_is_told(
    prefect: Prefect, scheduled: Plans
) -> None:
    assert is_fine(doctor_schedules.own_schedule(prefect, scheduled))
    changed = scheduled.whole.model_copy(update={"seed": 7})
    found = complaint(
        doctor_schedules.own_schedule(prefect, Plans(scheduled.site, scheduled.path, changed, 0))
    )
    assert "changed since it was scheduled" in found.what
    assert f'`rankloop schedule {scheduled.path} --cron "0 6 * * 1"`' in found.to_do


def test_a_watcher_that_fails_or_never_ends_is_wrong(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_fine(doctor_schedules.watch_works(prefect))
    with monkeypatch.context() as patch:
        patch.setattr(doctor_schedules, "_WATCHED", timedelta())
        assert (
            "watch-rankings has not ended for"
            in complaint(doctor_schedules.watch_works(prefect)).what
        )
    found = prefect.deployment(WATCH_DEPLOYMENT)
    assert found is not None
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": later}}
    client = prefect.client
    made = client.request("POST", f"/deployments/{found.id}/create_flow_run", json={"state": state})
    run = made.json()["id"]
    try:
        failed = {"type": "FAILED", "name": "Failed", "message": "no luck\nin the second line"}
        client.request("POST", f"/flow_runs/{run}/set_state", json={"state": failed, "force": True})
        told = complaint(doctor_schedules.watch_works(prefect))
    finally:
        client.delete_flow_run(run)
    assert told.what == "the last watch-rankings Failed: no luck"
    assert f"/runs/flow-run/{run}" in told.to_do


# --- the GPU's limit, and rounds that wait --------------------------------------------------------


def test_a_limit_that_lets_no_stage_on_the_gpu_is_told(
    prefect: Prefect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, name = prefect.client, limit_name()
    assert is_fine(doctor_prefect.gpu_limit(prefect)) or not list(doctor_prefect.gpu_limit(prefect))
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=0))
    try:
        assert "no stage ever gets the GPU" in complaint(doctor_prefect.gpu_limit(prefect)).what
        told = {"limit": 1, "active": False}
        client.request("PATCH", f"/v2/concurrency_limits/{name}", json=told)
        assert "is off" in complaint(doctor_prefect.gpu_limit(prefect)).what
        client.request("PATCH", f"/v2/concurrency_limits/{name}", json={"active": True})
        assert is_fine(doctor_prefect.gpu_limit(prefect))
        with monkeypatch.context() as alone:
            alone.setattr(gpu, "LOCKS", tmp_path)
            taken = {"names": [name], "slots": 1}
            client.request("POST", "/v2/concurrency_limits/increment", json=taken)
            leaked = complaint(doctor_prefect.gpu_limit(prefect))
            assert "1 of 1 taken, but stages hold 0" in leaked.what
    finally:
        client.delete_global_concurrency_limit_by_name(name)


def test_a_round_that_waits_in_silence_is_told(prefect: Prefect, tmp_path: Path) -> None:
    here = Prefect(Site(prefect.site.home, tmp_path), prefect.client, prefect.ui_url)
    assert list(doctor_schedules.waiting_rounds(here)) == []
    folder = tmp_path / "runs" / "desk" / "rounds" / "000"
    (folder / "snapshots").mkdir(parents=True)
    since = datetime.now(UTC) - timedelta(days=3)
    document: dict[str, Any] = {
        **{"name": "desk", "round": 0, "status": "waiting", "finished": since.isoformat()},
        **{"waiting": {"page": "http://127.0.0.1/projects/1"}, "config": {"labeling": {}}},
    }
    (folder / "round.json").write_text(json.dumps(document))
    found = complaint(doctor_schedules.waiting_rounds(here))
    assert found.mark == "warning"
    assert found.what == "desk round 0 waits for people, and nothing came for 3 days"
    assert "http://127.0.0.1/projects/1" in found.to_do
    snapshot = folder / "snapshots" / "new.json.gz"
    snapshot.touch()
    assert is_fine(doctor_schedules.waiting_rounds(here))
    os.utime(snapshot, (0, (since + timedelta(hours=1)).timestamp()))
    assert complaint(doctor_schedules.waiting_rounds(here)).mark == "warning"
