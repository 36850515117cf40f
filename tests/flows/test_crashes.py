"""Every crash is resumed: `kill -9` of the command, or of the process that makes a stage, at a
random moment of every step; Ctrl-C; SIGTERM.

The session's one undisturbed round is the reference. A case starts from a copy of its folder
without what the step made, so that the step is made again, by a process that is killed on the
way. All that follows must then be reused, and it is only if the step's files have the same
digests as before, because the key of what follows is made of them. Two cases start with nothing
instead: a command that is killed in every step, one after the other, and a command whose every
stage process is killed once.

Cases share the session's servers and the run's name (the report holds it), so the labeling
project is deleted where the step comes before the frozen labels. A moment is a share, drawn from
SEED, of the time that the step took in the reference; a signal that came too late hits a later
step or nothing, which is said, and is tried again with half the share.

Not compared: times, addresses, and how many answers were refused, which only the process that
froze the labels knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import history, stages
from flows.recipe import LABELS_SUMMARY
from flows.status import describe_rounds
from tests.flows.miniature import PATIENCE_S, STAGES, TASKS, Project, run_id, until
from tests.flows.moments import SEED, STEPS, has_begun, moments

# The first test waits for the servers and for the reference too, and some try several moments.
pytestmark = pytest.mark.timeout(900)

GONE_WITHIN_S = 10.0
TOO_LATE = "nothing, it was over"
KILLS = [(step, "process") for step in STEPS] + [(step, "child") for step in STAGES]
INTERRUPTIONS = [
    *(("SIGINT", step) for step in ("sft", "publish", "simulated", "gate", "ppo")),
    *(("SIGTERM", step) for step in ("prompts", "completions", "freeze", "reward", "report")),
    ("SIGTERM", "summary"),
]
# In the ordinary suite; the rest is for `make faults` alone.
HANDFUL = [
    *(("simulated", "process"), ("report", "process"), ("pairs", "child")),
    *(("SIGINT", "publish"), ("SIGTERM", "prompts")),
]


def cases(matrix: list[tuple[str, str]]) -> list[Any]:
    """The matrix, all of it but HANDFUL marked as for `make faults` alone."""
    return [
        pytest.param(
            *case, marks=() if case in HANDFUL else (pytest.mark.faults,), id="-".join(case)
        )
        for case in matrix
    ]


# --- what must be the same after a crash ----------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """All that a round comes to; `outputs` are the files' digests by stage."""

    labels: bytes = field(repr=False)
    outputs: dict[str, dict[str, str]]
    metrics: dict[str, Any]
    tasks_and_answers: tuple[int, int]
    projects: int
    decisions: int


def outcome(project: Project) -> Outcome:
    document = project.round()
    assert (document["status"], document["error"]) == ("complete", None)
    outputs = {}
    for stage in STAGES:
        entry = project.folder / ".rankloop" / "store" / stage / document["stages"][stage]["key"]
        manifest = json.loads((entry / "manifest.json").read_text())
        outputs[stage] = {name: output["sha256"] for name, output in manifest["outputs"].items()}
    parts = ("prompts", "sft", "completions", "reward", "ppo", "evaluation", "promotion")
    labels = {k: v for k, v in document["labels"].items() if k not in ("refused", "snapshot")}
    return Outcome(
        labels=(project.round_folder() / "labels.parquet").read_bytes(),
        outputs=outputs,
        metrics={part: document[part] for part in parts} | {"labels": labels},
        tasks_and_answers=project.answers(),
        projects=len(labeling_projects(project)),
        decisions=len(history.read(project.folder / "runs" / "mini").decisions),
    )


def labeling_projects(project: Project) -> list[int]:
    found = project.label_studio.client.projects.list(title="mini")
    return [each.id for each in found if each.title == "mini"]


def assert_nothing_lies_about(project: Project) -> None:
    assert at_work_in(project.folder) == []
    scraps = [p for p in project.folder.rglob("*") if p.name.endswith((".partial", ".damaged"))]
    assert scraps == []


@dataclass
class Reference:
    """The undisturbed round: its folder as it was at the end, and the seconds of its steps."""

    project: Project
    outcome: Outcome
    seconds: dict[str, float]

    def without(self, step: str, folder: Path) -> Project:
        """A copy in which this step, and the round's record of all steps, is still to be made."""
        case = replace(self.project, folder=folder)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.project.folder, folder, symlinks=True)
        shutil.rmtree(folder / ".rankloop" / "store" / step, ignore_errors=True)
        shutil.rmtree(folder / "runs")
        if STEPS.index(step) > STEPS.index("freeze"):
            case.round_folder().mkdir(parents=True)
            for name in ("labels.parquet", LABELS_SUMMARY):
                shutil.copy(self.project.round_folder() / name, case.round_folder() / name)
        else:
            for labeling_project in labeling_projects(case):
                case.label_studio.client.projects.delete(labeling_project)
        return case

    def empty(self, folder: Path) -> Project:
        """The project's own files alone."""
        case = self.without("prompts", folder)
        shutil.rmtree(folder / ".rankloop")
        return case


@pytest.fixture(scope="module")
def reference(
    project: Project, finished: tuple[dict[str, Any], str], undisturbed: Path
) -> Reference:
    kept = replace(project, folder=undisturbed)
    whole, steps = outcome(kept), finished[0]["stages"]
    assert whole.tasks_and_answers == (TASKS, TASKS)
    assert tuple(steps) == STEPS
    assert not any(step["reused"] for step in steps.values())
    return Reference(kept, whole, {name: step["seconds"] for name, step in steps.items()})


# --- where a run is, and how it ends --------------------------------------------------------------


def stage_child(process: subprocess.Popen[str], step: str) -> psutil.Process | None:
    """The process that makes this stage."""
    function = getattr(stages, step.upper()).function
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children():
            if function in child.cmdline():
                return child
    return None


def at_work_in(folder: Path) -> list[psutil.Process]:
    """Processes whose current folder this is: the command, and all that it started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def let_work(process: subprocess.Popen[str], project: Project, step: str, seconds: float) -> None:
    """Let the step go on for so long, or until it is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and step not in project.round()["stages"]:
        if process.poll() is not None:
            return
        time.sleep(0.003)


def strike(
    process: subprocess.Popen[str], project: Project, step: str, how: signal.Signals, seconds: float
) -> str:
    """Signal the command so many seconds after the step began, and see that nothing of it is left;
    the step that was really hit."""
    until(lambda: has_begun(project, step), process)
    let_work(process, project, step, seconds)
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):  # it may have ended, well
        command = psutil.Process(process.pid)
        family = [command, *command.children(recursive=True)]
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)
    process.wait(PATIENCE_S)
    _, alive = psutil.wait_procs(family, timeout=GONE_WITHIN_S)
    assert alive == []
    assert at_work_in(project.folder) == []
    done = project.round()["stages"]
    return next((name for name in STEPS if name not in done), TOO_LATE)


def strike_child(
    process: subprocess.Popen[str], project: Project, step: str, seconds: float
) -> bool:
    """Kill the process that makes the stage so many seconds after it was begun; whether it was
    still there."""
    child: psutil.Process = until(lambda: stage_child(process, step), process)
    let_work(process, project, step, seconds)
    try:
        child.kill()
    except psutil.NoSuchProcess:
        return False
    return True


# --- one crash ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "victim"), cases(KILLS))
def test_a_kill_at_any_moment_is_resumed(
    step: str, victim: str, reference: Reference, tmp_path: Path, note: Callable[[str], None]
) -> None:
    for share in moments(step, victim):
        case, seconds = reference.without(step, tmp_path / "case"), share * reference.seconds[step]
        process = case.start()
        try:
            if victim == "process":
                hit = strike(process, case, step, signal.SIGKILL, seconds)
                line, *_ = describe_rounds(case.folder / "runs")
                killed, process = time.monotonic(), case.start()
            else:
                was_there = strike_child(process, case, step, seconds)
                killed = time.monotonic()
            code, out, err = case.end(process)  # a killed stage is tried again by the same command
        finally:
            process.kill()
        assert code == 0, out + err
        took = time.monotonic() - killed
        if victim == "child":
            tries = case.task_runs(run_id(case.round()))[step]["run_count"]
            hit = step if was_there and tries == 2 else TOO_LATE
        note(f"kill -9 | {step} | {victim} | {seconds:.2f} s ({share:.0%}) | {hit} | {took:.1f} s")
        assert_nothing_lies_about(case)
        assert outcome(case) == reference.outcome
        reused = {name for name in STAGES if case.round()["stages"][name]["reused"]}
        assert reused >= {*STAGES} - {step}
        if hit == step:
            if victim == "process":
                assert line.startswith(f"mini round 0: killed at '{step}'"), line
            return


@pytest.mark.parametrize(("name", "step"), cases(INTERRUPTIONS))
def test_an_interruption_ends_cleanly_and_says_how_to_go_on(
    name: str, step: str, reference: Reference, tmp_path: Path, note: Callable[[str], None]
) -> None:
    for share in moments(name, step):
        case, seconds = reference.without(step, tmp_path / "case"), share * reference.seconds[step]
        process = case.start()
        try:
            hit = strike(process, case, step, signal.Signals[name], seconds)
            asked = time.monotonic()
            code, _, err = case.end(process)
        finally:
            process.kill()
        if hit != step:
            note(f"{name} | {step} | process | {seconds:.2f} s ({share:.0%}) | {hit} |")
            continue
        assert code == 128 + signal.Signals[name], err
        assert err.splitlines() == [
            "rankloop: stopped; what is finished is kept, `rankloop run config.yaml` goes on from "
            "there"
        ]
        document = case.round()
        assert document["status"] == "interrupted"
        assert case.state(run_id(document)) == "CRASHED"
        code, out, err = case.run()
        assert code == 0, out + err
        took = time.monotonic() - asked
        note(f"{name} | {step} | process | {seconds:.2f} s ({share:.0%}) | {hit} | {took:.1f} s")
        assert_nothing_lies_about(case)
        assert outcome(case) == reference.outcome
        return


# --- one after the other, from nothing ------------------------------------------------------------


@pytest.mark.faults
def test_a_command_that_is_killed_in_every_step_comes_to_the_same_end(
    reference: Reference, tmp_path: Path, note: Callable[[str], None]
) -> None:
    """In the end the dashboard shows none of the killed runs at work."""
    case, runs = reference.empty(tmp_path / "case"), []
    draw = random.Random(f"{SEED} every step")
    for step in STEPS:
        process, seconds = case.start(), draw.random() * reference.seconds[step]
        try:
            hit = strike(process, case, step, signal.SIGKILL, seconds)
        finally:
            process.kill()
        runs.append(run_id(case.round()))
        note(f"kill -9 | {step} | process, in a row | {seconds:.2f} s | {hit} |")
    code, out, err = case.run()
    assert code == 0, out + err
    assert_nothing_lies_about(case)
    assert outcome(case) == reference.outcome
    assert {case.state(run) for run in runs} == {"CRASHED"}
    assert case.state(run_id(case.round())) == "COMPLETED"


@pytest.mark.faults
def test_a_round_whose_every_stage_is_killed_once_needs_no_second_run(
    reference: Reference, tmp_path: Path, note: Callable[[str], None]
) -> None:
    case, draw = reference.empty(tmp_path / "case"), random.Random(f"{SEED} every stage")
    process = case.start()
    try:
        for step in STAGES:
            seconds = draw.random() / 2 * reference.seconds[step]
            hit = step if strike_child(process, case, step, seconds) else TOO_LATE
            note(f"kill -9 | {step} | child, in a row | {seconds:.2f} s | {hit} |")
        code, out, err = case.end(process)
    finally:
        process.kill()
    assert code == 0, out + err
    assert_nothing_lies_about(case)
    assert outcome(case) == reference.outcome
