"""`kill -9` of a round on the worker: of its process, a stage's, the worker, Prefect, Label Studio,
or of all of them, at a random moment of a step or while people rank.

Then happens what would: an engineer calls `rankloop up` for what died, the watcher looks again, and
people rank. The round ends, and comes to what the one does that nobody disturbs: a case lacks the
step that is struck, and all that follows is reused only if that step makes the same files again.
The report alone names the run: it is the same in all cases.

A moment is a share, drawn from SEED, of the time that the step took undisturbed; one that came too
late for it is tried again with half the share.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import history
from flows.recipe import LABELS_SUMMARY
from flows.server_home import Process
from tests.flows.miniature import STAGES, TASKS
from tests.flows.moments import STEPS, has_begun, moments
from tests.flows.on_worker import NAME, UNFINISHED, OnWorker, until

pytestmark = pytest.mark.timeout(900)

_AWAY_S = 8 * 24 * 3600
_KILLED: dict[str, tuple[Process, ...]] = {
    "worker": ("worker",),
    "Prefect": ("prefect",),
    "Label Studio": ("label_studio",),
    "machine": ("worker", "prefect", "label_studio"),
}
CASES = [
    *((step, "process") for step in STEPS if step not in ("simulated", "summary")),
    *((step, "child") for step in ("completions", "reward", "ppo")),
    *(("sft", "worker"), ("resumed", "worker"), ("wait", "worker")),
    *(("pairs", "Prefect"), ("wait", "Prefect"), ("ppo", "Prefect")),
    *(("publish", "Label Studio"), ("wait", "Label Studio"), ("gate", "Label Studio")),
    ("reward", "machine"),
]
assert len(CASES) <= 25
# In the ordinary suite; the rest is for `make faults` alone.
HANDFUL = [("ppo", "process"), ("wait", "worker")]


@dataclass
class Reference:
    """What the undisturbed round came to: files by stage, frozen labels, metrics, seconds by step.
    `reports`: of the rounds on the worker."""

    outputs: dict[str, dict[str, str]]
    labels: bytes
    metrics: dict[str, Any]
    seconds: dict[str, float]
    summary: Path
    reports: set[str]


@pytest.fixture(scope="module")
def reference(finished: tuple[dict[str, Any], str], undisturbed: Path) -> Reference:
    document, folder = finished[0], undisturbed / "runs" / "mini" / "rounds" / "000"
    store = undisturbed / ".rankloop" / "store"
    return Reference(
        outputs={s: outputs(store / s / document["stages"][s]["key"]) for s in STAGES},
        labels=(folder / "labels.parquet").read_bytes(),
        metrics=metrics(document),
        seconds={name: step["seconds"] for name, step in document["stages"].items()},
        summary=folder / LABELS_SUMMARY,
        reports=set(),
    )


def outputs(entry: Path) -> dict[str, str]:
    manifest = json.loads((entry / "manifest.json").read_text())
    return {name: output["sha256"] for name, output in manifest["outputs"].items()}


def metrics(document: dict[str, Any]) -> dict[str, Any]:
    parts = ("prompts", "sft", "completions", "reward", "ppo", "evaluation")
    return {part: document[part] for part in parts}


# --- a case ---------------------------------------------------------------------------------------


def is_ranked_by_people(step: str) -> bool:
    """The other cases find the labels frozen, which saves them the wait."""
    return step in ("publish", "gate", "freeze", "wait", "resumed")


def prepare(worked: OnWorker, reference: Reference, step: str) -> None:
    """Leave this step to be made, and the round's record."""
    worked.forget()
    shutil.rmtree(worked.home / "store" / step, ignore_errors=True)
    if not is_ranked_by_people(step):
        folder = worked.project.round_folder(NAME)
        folder.mkdir(parents=True)
        (folder / "labels.parquet").write_bytes(reference.labels)
        shutil.copy(reference.summary, folder / LABELS_SUMMARY)


def strike(worked: OnWorker, run: str, step: str, victim: str, seconds: float) -> str:
    """Kill the victim so many seconds after the step began; the step that was really hit."""
    if step in ("wait", "resumed", "freeze"):
        worked.wait(run, "Suspended")
        until(lambda: not worked.at_work())
    if step in ("resumed", "freeze"):
        assert worked.answer() == TASKS
        assert worked.watch()["resumed"]
    if step not in ("wait", "resumed"):
        until(lambda: has_begun(worked.project, step, NAME), every=0.003)
        let_work(worked, step, seconds)
    elif step == "resumed":
        time.sleep(seconds)
    document = worked.project.round(NAME)
    hit = step if step in ("wait", "resumed") else str(document["step"])
    engines = worked.of_run(run)
    stages = [child for engine in engines for child in engine.children(recursive=True)]
    # The stage follows its process, and all of a machine goes at once.
    at_once = {"process": engines, "child": stages, "machine": [*engines, *stages]}.get(victim)
    if victim == "machine":
        worked.kill("worker", with_processes=engines)  # before it could tell of a crash
    for process in at_once or ():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for name in _KILLED.get(victim, ()):
        if (victim, name) != ("machine", "worker"):
            worked.kill(name)
    return hit if at_once is None or at_once else "nothing, it was over"


def let_work(worked: OnWorker, step: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and step not in worked.project.round(NAME)["stages"]:
        time.sleep(0.003)


def come_back_late(worked: OnWorker) -> None:
    """What the server knows is a week old, as when the machine was off for so long."""
    with closing(sqlite3.connect(worked.home / "prefect" / "prefect.db")) as database, database:
        for table, column in (("flow_run_state", "timestamp"), ("flow_run", "start_time")):
            database.execute(
                f"UPDATE {table} SET {column} = strftime('%Y-%m-%d %H:%M:%f', {column}, ?)",
                (f"-{_AWAY_S} seconds",),
            )


def finish(worked: OnWorker, run: str, victim: str) -> None:
    """What people, an engineer and the watcher's schedule do until the round ends."""
    if victim in _KILLED:
        worked.command("up")
        state = worked.run(run)["state"]["type"]
        if not worked.of_run(run) and state in ("RUNNING", "PENDING"):
            worked.watch(silent_s=0.0)  # later it would not need to be told to be quick
    while True:
        state = worked.wait(run, "Completed", "Suspended", "Crashed")
        if state == "Completed":
            return
        if state == "Suspended":
            until(lambda: not worked.at_work())
            worked.answer()
        worked.watch()


def assert_all_is_well(worked: OnWorker, reference: Reference, run: str, step: str) -> None:
    document = worked.project.round(NAME)
    assert (document["status"], document["error"]) == ("complete", None)
    assert document["flow_runs"] == [run]
    entries = {s: Path(document["stages"][s]["path"]) for s in STAGES}
    made = {s: outputs(entry) for s, entry in entries.items()}
    reference.reports.add(json.dumps(made.pop("report")))
    assert len(reference.reports) == 1
    assert made == {s: o for s, o in reference.outputs.items() if s != "report"}
    labels = worked.project.round_folder(NAME) / "labels.parquet"
    assert labels.read_bytes() == reference.labels
    assert metrics(document) == reference.metrics
    assert {s for s in STAGES if not document["stages"][s]["reused"]} <= {step, "report"}
    # Nothing is doubled, and nothing lies about.
    there = (TASKS, TASKS) if is_ranked_by_people(step) else (0, 0)
    assert worked.project.answers(NAME) == there
    assert len(worked.labeling_projects(NAME)) == 1
    assert len(history.read(worked.project.folder / "runs" / NAME).decisions) == 1
    for folder in (worked.project.folder, worked.home / "store"):
        scraps = [p for p in folder.rglob("*") if p.name.endswith((".partial", ".damaged"))]
        assert scraps == []
    # The dashboard's last word.
    assert worked.run(run)["state"]["type"] == "COMPLETED"
    assert [r["name"] for r in worked.runs() if r["state"]["type"] in UNFINISHED] == []
    states = worked.history(run)
    assert (states[-1], states.count("Completed")) == ("Completed", 1)
    left = {t["name"] for t in worked.task_runs(run) if t["state_type"] in UNFINISHED}
    assert left == set()
    until(lambda: not worked.at_work())


@pytest.mark.parametrize(
    ("step", "victim"),
    [
        pytest.param(
            *case, marks=() if case in HANDFUL else (pytest.mark.faults,), id="-".join(case)
        )
        for case in CASES
    ],
)
def test_a_round_on_the_worker_survives_a_kill(
    step: str,
    victim: str,
    worked: OnWorker,
    reference: Reference,
    note: Callable[[str], None],
) -> None:
    for share in moments(step, victim, "on a worker"):
        seconds = share * reference.seconds.get(step, 3.0)
        prepare(worked, reference, step)
        run = worked.submit()
        hit = strike(worked, run, step, victim, seconds)
        killed = time.monotonic()
        if victim == "machine":
            come_back_late(worked)
        if victim == "process" and hit == step:
            worked.wait(run, "Crashed")
        finish(worked, run, victim)
        took = time.monotonic() - killed
        moment = f"{seconds:.2f} s ({share:.0%})"
        note(f"kill -9 | {step} | {victim}, on a worker | {moment} | {hit} | {took:.1f} s")
        assert_all_is_well(worked, reference, run, step)
        if hit == step:
            return


@pytest.mark.faults
def test_down_ends_a_round_with_everything_and_it_goes_on_after_up(
    worked: OnWorker, reference: Reference, note: Callable[[str], None]
) -> None:
    prepare(worked, reference, "reward")
    run = worked.submit()
    until(lambda: has_begun(worked.project, "reward", NAME))
    until(lambda: len(worked.at_work()) > 1)  # its process, and the stage's
    assert "worker" in worked.command("down")
    until(lambda: not worked.at_work())
    ended = time.monotonic()
    finish(worked, run, "machine")
    note(
        f"down | reward | machine, on a worker | at its start | reward | "
        f"{time.monotonic() - ended:.1f} s"
    )
    assert_all_is_well(worked, reference, run, "reward")
