"""A round on the worker, which people rank: it waits without a process, and goes on as it began,
whoever resumes, retries, cancels or submits meanwhile."""

from __future__ import annotations

import base64
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import given_servers, processes, server_home
from flows.round_folder import is_locked
from tests.flows.miniature import STAGES, TASKS, Project
from tests.flows.on_worker import NAME, OnWorker, refused, until

pytestmark = pytest.mark.timeout(900)


# --- the wait ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suspended(worked: OnWorker) -> str:
    """A run that was told no number, and waits for people."""
    worked.forget()
    said = worked.command("submit", "people.yaml")
    assert said.startswith(f"round 0 of {NAME} is submitted: http://127.0.0.1:")
    run = said.split()[-1].rpartition("/")[2]
    assert worked.run(run)["parameters"] == worked.parameters()
    worked.wait(run, "Suspended")
    return run


def test_a_suspended_round_holds_no_process_and_no_lock(worked: OnWorker, suspended: str) -> None:
    until(lambda: not worked.at_work())
    assert not is_locked(worked.project.round_folder(NAME))
    document = worked.project.round(NAME)
    assert (document["status"], document["step"], document["error"]) == ("waiting", "gate", None)
    assert document["waiting"]["page"] == document["addresses"]["labeling"]
    assert document["flow_runs"] == [suspended]
    assert worked.project.answers(NAME) == (TASKS, 0)
    assert worked.run(suspended)["name"] == f"{NAME}-000"
    status = worked.command("status")
    assert f"{NAME} round 0: waiting at 'gate'" in status
    assert f"0 of {TASKS} rankings" in status


@pytest.fixture(scope="module")
def disturbed(worked: OnWorker, suspended: str) -> dict[str, str]:
    """While it waits, it is resumed too early, and another run of the same name is submitted: how
    the two stand afterwards, and the other's id."""
    other = worked.submit()
    worked.resume(suspended)
    assert worked.wait(other, "Skipped") == "Skipped"
    until(lambda: worked.history(suspended).count("Running") == 2)
    return {"resumed": worked.wait(suspended, "Suspended"), "other": other}


def test_a_round_that_is_resumed_too_early_waits_again(
    worked: OnWorker, suspended: str, disturbed: Mapping[str, str]
) -> None:
    assert disturbed["resumed"] == "Suspended"
    assert worked.history(suspended).count("Suspended") == 2
    assert worked.project.answers(NAME) == (TASKS, 0)
    assert worked.run(suspended)["name"] == f"{NAME}-000"


def test_another_run_of_a_round_that_waits_begins_nothing(
    worked: OnWorker, suspended: str, disturbed: Mapping[str, str]
) -> None:
    state = worked.run(disturbed["other"])["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Skipped")
    assert state["message"] == f"Another run is at the newest round of {NAME}: nothing is begun."
    assert worked.project.round(NAME)["flow_runs"] == [suspended]
    assert not worked.project.round_folder(NAME, 1).exists()


@pytest.fixture(scope="module")
def complete(worked: OnWorker, suspended: str, disturbed: Mapping[str, str]) -> dict[str, Any]:
    """round.json after all rankings were there; the watcher ran on the worker, as it does on its
    schedule, before and after."""
    until(lambda: not worked.at_work())
    assert worked.answer(limit=5) == 5
    assert worked.watch()["waiting"] == [f"{NAME}-000"]
    assert worked.run(suspended)["state"]["name"] == "Suspended"
    assert worked.answer() == TASKS - 5
    worked.wait(worked.begin("watch-rankings", {}), "Completed")
    worked.wait(suspended, "Completed")
    return worked.project.round(NAME)


def test_the_watcher_resumes_a_round_when_its_rankings_are_in_and_not_before(
    worked: OnWorker, suspended: str, complete: Mapping[str, Any]
) -> None:
    """Once somebody else had resumed it, too early, and once it did."""
    assert worked.history(suspended).count("Resuming") == 2
    assert "people-000: resumed" in _logs_of_watchers(worked)


def _logs_of_watchers(worked: OnWorker) -> str:
    made = {"deployments": {"id": {"any_": [worked.deployment("watch-rankings")["id"]]}}}
    return "".join(worked.logs(run["id"]) for run in worked.ask("/flow_runs/filter", made))


def test_a_round_that_waited_makes_what_one_does_that_never_did(
    worked: OnWorker,
    complete: Mapping[str, Any],
    undisturbed: Path,
) -> None:
    """Everything is in the store already, made by the command in its own process from the answers
    of a simulated labeler; only the report names the run."""
    document = complete
    assert (document["status"], document["error"]) == ("complete", None)
    made = {name for name in STAGES if not document["stages"][name]["reused"]}
    assert made <= {"report"}
    labels = "runs/mini/rounds/000/labels.parquet"
    ours = worked.project.round_folder(NAME) / "labels.parquet"
    assert ours.read_bytes() == (undisturbed / labels).read_bytes()
    assert worked.project.answers(NAME) == (TASKS, TASKS)


def test_a_retry_from_the_dashboard_stays_at_the_round_that_the_run_began(
    worked: OnWorker, suspended: str, complete: Mapping[str, Any]
) -> None:
    report = (worked.project.round_folder(NAME) / "report.html").read_bytes()
    worked.set_state(suspended, "SCHEDULED", "AwaitingRetry")
    until(lambda: worked.history(suspended).count("Completed") == 2)
    document = worked.project.round(NAME)
    assert document["status"] == "complete"
    assert all(document["stages"][name]["reused"] for name in (*STAGES, "freeze", "promote"))
    assert (worked.project.round_folder(NAME) / "report.html").read_bytes() == report
    assert not worked.project.round_folder(NAME, 1).exists()
    assert worked.project.answers(NAME) == (TASKS, TASKS)


# --- the next round, and how it is cancelled -----------------------------------------------------


def test_after_a_complete_round_the_next_begins_and_what_is_cancelled_stays_so(
    worked: OnWorker, complete: Mapping[str, Any]
) -> None:
    run = worked.submit()
    until(lambda: worked.project.round(NAME, 1).get("step") == "completions")
    worked.set_state(run, "CANCELLING")  # a process is at work
    until(lambda: worked.run(run)["state"]["type"] == "CANCELLED")
    until(lambda: not worked.at_work())
    assert worked.run(run)["name"] == f"{NAME}-001"
    assert worked.project.round(NAME, 1)["status"] == "interrupted"
    before = {each["id"] for each in worked.runs()}
    follower = worked.project.command("submit", "people.yaml", "--follow")
    (again,) = until(lambda: {each["id"] for each in worked.runs()} - before)
    worked.wait(again, "Suspended")
    follower.send_signal(signal.SIGINT)
    code, out, err = worked.project.end(follower)
    assert (code, err) == (0, "")
    assert "the run goes on; `rankloop status` tells how it is" in out
    assert worked.project.round(NAME, 1)["flow_runs"] == [run, again]
    until(lambda: not worked.at_work())
    worked.set_state(again, "CANCELLING")  # no process is at work
    until(lambda: worked.run(again)["state"]["type"] == "CANCELLED")
    assert worked.watch(silent_s=0.0) == {
        "resumed": [],
        "waiting": [],
        "crashed": [],
        "revived": [],
    }
    assert {worked.run(each)["state"]["type"] for each in (run, again)} == {"CANCELLED"}
    assert worked.at_work() == []
    assert not is_locked(worked.project.round_folder(NAME, 1))


def test_a_round_here_and_now_that_waits_can_be_cancelled_on_the_dashboard(
    worked: OnWorker, complete: Mapping[str, Any]
) -> None:
    process = worked.project.command("run", "people.yaml", "--name", "here")
    document = until(lambda: _waiting(worked, "here"))
    run = document["flow_runs"][-1]
    worked.set_state(run, "CANCELLING")
    code, _, err = worked.project.end(process)
    assert code == 2
    assert err.endswith("cancelled on the dashboard; what is finished is kept\n")
    assert worked.run(run)["state"]["type"] == "CANCELLED"


def _waiting(worked: OnWorker, name: str) -> dict[str, Any] | None:
    document = worked.project.round(name)
    return document if document.get("waiting") else None


# --- the form on the dashboard -------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": {"name": "people", "model": "m", "ppo": {"kl_coeff": 0.1}}},
        {"config": {"name": "people", "model": "m", "ppo": {"kl_coef": "much"}}},
        {"config": {"name": "people", "model": "m", "labeling": {"wanted": 0}}},
        {"config": {"name": "No Name", "model": "m"}},
        {"config": {"name": "people"}},
        {"number": "first"},
        {"rounds": 2},
    ],
    ids=lambda wrong: json.dumps(wrong)[:40],
)
def test_wrong_parameters_are_refused_before_a_run_exists(
    worked: OnWorker, wrong: dict[str, Any]
) -> None:
    before, given = len(worked.runs()), worked.parameters() | wrong
    code, said = refused(lambda: worked.begin("rankloop-round", given))
    assert code in (409, 422), said
    assert len(worked.runs()) == before


@pytest.mark.parametrize("name", ["rankloop-round", "watch-rankings"])
def test_every_field_of_the_form_says_what_it_is(worked: OnWorker, name: str) -> None:
    schema = worked.deployment(name)["parameter_openapi_schema"]
    definitions = schema.get("definitions", {})
    assert schema["properties"]
    silent = [
        f"{where}.{field}"
        for where, model in {"": schema, **definitions}.items()
        for field, told in model.get("properties", {}).items()
        if not told.get("description")
        and not any(definitions[each].get("description") for each in _references(told))
    ]
    assert silent == []


def _references(told: dict[str, Any]) -> Iterator[str]:
    for each in (told, *told.get("anyOf", ()), *told.get("allOf", ())):
        if "$ref" in each:
            yield each["$ref"].rpartition("/")[2]


# --- schedules -----------------------------------------------------------------------------------


def test_a_second_folder_on_the_same_prefect_is_refused(worked: OnWorker, tmp_path: Path) -> None:
    before = worked.deployment("rankloop-round")
    elsewhere = Project(**vars(worked.project) | {"folder": tmp_path})
    code, _, err = elsewhere.end(elsewhere.command("up"))
    assert code == 2
    assert f"this Prefect runs the rounds of {worked.project.folder}" in err
    assert worked.deployment("rankloop-round")["updated"] == before["updated"]


def test_a_schedule_makes_runs_ahead_and_outlives_a_new_registration_as_a_pause_does(
    worked: OnWorker,
) -> None:
    cron = ("--cron", "0 6 * * 1", "--timezone", "Europe/Berlin")
    said = worked.command("schedule", "people.yaml", *cron)
    assert said.startswith(f"{NAME}: the first round begins Mon ")
    ahead = until(lambda: scheduled(worked))
    assert all(run["parameters"] == worked.parameters() for run in ahead)
    first = min(run["next_scheduled_start_time"] for run in ahead)
    assert first[11:16] in ("04:00", "05:00")  # six in Berlin
    names = ("rankloop-round", "watch-rankings")
    before = {name: worked.deployment(name) for name in names}
    assert [known["paused"] for known in before.values()] == [False, True]
    for name, known in before.items():
        older = httpx.patch(
            f"{worked.project.prefect}/deployments/{known['id']}",
            json={"version": "an older one"},
            headers=given_servers.prefect_headers(),
        )
        assert older.is_success, (name, older.text)
    worked.command("up")  # registers anew
    for name, known in before.items():
        now = worked.deployment(name)
        assert (now["version"], now["paused"]) == (known["version"], known["paused"])
        assert _schedules(now) == _schedules(known), name
    assert f"{NAME}: 0 6 * * 1 (Europe/Berlin)" in worked.command("schedule")
    assert f"Schedule      on           {NAME}: 0 6 * * 1 (Europe/Berlin)" in worked.command(
        "status"
    )
    worked.command("schedule", "people.yaml", "--cron", "30 7 * * 2")  # in place of the other
    assert [_when(s) for s in worked.deployment("rankloop-round")["schedules"]] == ["30 7 * * 2"]
    assert "not scheduled any more" in worked.command("schedule", "people.yaml", "--off")
    assert worked.deployment("rankloop-round")["schedules"] == []
    until(lambda: not scheduled(worked))


def scheduled(worked: OnWorker) -> list[dict[str, Any]]:
    return [
        run
        for run in worked.runs()
        if run["auto_scheduled"] and run["state"]["type"] == "SCHEDULED"
    ]


def _schedules(deployment: dict[str, Any]) -> list[Any]:
    return sorted((s["slug"], s["active"], _when(s)) for s in deployment["schedules"])


def _when(schedule: dict[str, Any]) -> str:
    when = schedule["schedule"]
    return str(when.get("cron") or when["interval"])


# --- the worker itself, and who may tell it what to run ------------------------------------------


def test_up_twice_starts_one_worker(worked: OnWorker) -> None:
    before = worked.process("worker")
    worked.command("up")
    assert worked.process("worker") == before
    assert processes.find(before) is not None
    (worker,) = worked.ask("/work_pools/rankloop/workers/filter", {})
    assert worker["status"] == "ONLINE"


@pytest.mark.parametrize("path", ["/flow_runs/filter", "/deployments/filter", "/logs/filter"])
@pytest.mark.parametrize("access", ["", "rankloop:wrong"])
def test_the_api_asks_for_the_password(worked: OnWorker, path: str, access: str) -> None:
    headers = {"Content-Type": "application/json"}
    if access:
        headers["Authorization"] = "Basic " + base64.b64encode(access.encode()).decode()
    request = urllib.request.Request(worked.project.prefect + path, b"{}", headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    code, _ = refused(lambda: opener.open(request, timeout=30))
    assert code == 401


def test_no_secret_is_in_a_parameter_a_log_or_an_artifact(
    worked: OnWorker, complete: Mapping[str, Any]
) -> None:
    """Prefect's database holds all three."""
    access, account = server_home.prefect_access(worked.home), server_home.account(worked.home)
    password = access.partition(":")[2]
    encoded = base64.b64encode(access.encode()).decode()
    secrets = [password, encoded, account.token, account.password]
    kept = worked.home / "prefect"
    files = [path for path in kept.rglob("*") if path.is_file()]
    files += [path for path in (worked.home / "logs").rglob("*") if path.is_file()]
    files += [p for p in (worked.project.folder / "runs").rglob("*") if p.is_file()]
    assert (kept / "prefect.db") in files
    assert any(NAME.encode() in path.read_bytes() for path in kept.glob("prefect.db*"))
    for path in files:
        content = path.read_bytes()
        assert not [n for n, s in enumerate(secrets) if s.encode() in content], path
