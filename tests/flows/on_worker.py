"""A round in miniature that people rank, on a worker: how it is submitted, answered, watched and
looked at. Prefect is asked by HTTP, for it reads its settings when it is imported."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from flows import processes, server_home, servers
from flows.load import load_config
from flows.prefect_environment import prefect_environment
from flows.processes import Detached
from flows.publication import find_project
from flows.server_home import Process
from labeling import simulated
from labeling.config import SimulatedLabeler
from labeling.records import read_candidates
from tests.flows.miniature import RUBRIC, Project

NAME = "people"
PATIENCE_S = 240.0
GONE_WITHIN_S = 20.0
FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
UNFINISHED = frozenset({"PENDING", "RUNNING", "CANCELLING"})
LABELER = SimulatedLabeler(score="rubric.py:score", noise=0.1)  # as in the config of `mini`
# What watches every five minutes, now; a process that is silent for so many seconds is gone.
_WATCH = """
import json, sys
from flows.watch import watch_rankings
print(json.dumps(watch_rankings(float(sys.argv[1]), float(sys.argv[1]), crashed_for_s=0.0)))
"""


@dataclass(frozen=True)
class OnWorker:
    """A project folder with a worker at work in it, on the servers of `home`."""

    project: Project
    home: Path

    # --- what an engineer does ----------------------------------------------------------------

    def command(self, *arguments: str) -> str:
        """What `rankloop` prints; it must end well."""
        code, out, err = self.project.end(self.project.command(*arguments))
        assert code == 0, out + err
        return out

    def submit(self) -> str:
        """The id of a new run, as `rankloop submit people.yaml` makes it, in less time."""
        return self.begin("rankloop-round", self.parameters())

    def begin(self, name: str, parameters: Mapping[str, Any]) -> str:
        """The id of a new run of this deployment."""
        body = {"parameters": dict(parameters), "state": {"type": "SCHEDULED"}}
        made = self.ask(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)
        return str(made["id"])

    def parameters(self) -> dict[str, Any]:
        config = load_config(self.project.folder / "people.yaml").model_dump(mode="json")
        return {"config": config, "number": None, "folder": str(self.project.folder)}

    def watch(self, silent_s: float = 600.0) -> dict[str, list[str]]:
        """Run the watcher now; what it did with the runs of NAME."""
        found = servers.connect(self.home)
        assert found is not None
        done = subprocess.run(
            (sys.executable, "-c", _WATCH, str(silent_s)),
            cwd=self.project.folder,
            env=self.project.environment | prefect_environment(found, self.home),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        return {what: [n for n in names if n.startswith(NAME)] for what, names in told.items()}

    def hold_watcher(self) -> None:
        """It is run by hand here, when a test wants it to."""
        self.ask(f"/deployments/{self.deployment('watch-rankings')['id']}/pause_deployment", {})

    def set_state(self, run: str, kind: str, name: str | None = None) -> dict[str, Any]:
        """As the dashboard's buttons do."""
        state = {"type": kind, "name": name or kind.title()}
        answer = self.ask(f"/flow_runs/{run}/set_state", {"state": state, "force": False})
        return dict(answer)

    def resume(self, run: str) -> dict[str, Any]:
        return dict(self.ask(f"/flow_runs/{run}/resume", {}))

    # --- what people do -----------------------------------------------------------------------

    def answer(self, limit: int | None = None, name: str = NAME, number: int = 0) -> int:
        """Rank the round's tasks as the labeler of `mini` would, at most so many."""
        scope: dict[str, Any] = {}
        exec(RUBRIC, scope)
        folder = self.project.round_folder(name, number)
        title = name if number == 0 else f"{name}, round {number}"
        server = self.project.label_studio
        found = find_project(server, title, folder)
        assert found is not None
        tasks = read_candidates(folder / "completions.parquet")
        return simulated.answer_tasks(LABELER, scope["score"], server, found, tasks, limit)

    # --- what is seen -------------------------------------------------------------------------

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self.project.ask_prefect(path, None if body is None else dict(body))

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.ask(f"/deployments/name/{name}/{name}"))  # named as their flows

    def run(self, run: str) -> dict[str, Any]:
        return dict(self.ask(f"/flow_runs/{run}"))

    def runs(self) -> list[dict[str, Any]]:
        """All runs of rounds on the worker."""
        made = {"id": {"any_": [self.deployment("rankloop-round")["id"]]}}
        return list(self.ask("/flow_runs/filter", {"deployments": made, "limit": 200}))

    def task_runs(self, run: str) -> list[dict[str, Any]]:
        body = {"flow_runs": {"id": {"any_": [run]}}, "limit": 200}
        return list(self.ask("/task_runs/filter", body))

    def history(self, run: str) -> list[str]:
        """The names of a run's states, the first one first."""
        states = self.ask(f"/flow_run_states/?flow_run_id={run}")
        return [s["name"] for s in sorted(states, key=lambda s: s["timestamp"])]

    def wait(self, run: str, *names: str) -> str:
        """The name of the run's state as soon as it is one of these."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            state = self.run(run)["state"]
            if state["name"] in names:
                return str(state["name"])
            told = f"{state['name']}, not one of {names}: {state['message']}"
            assert state["type"] not in FINAL, f"{told}\n{self.logs(run)}"
            assert time.monotonic() < deadline, f"{told}\n{self.logs(run)}"
            time.sleep(0.2)

    def logs(self, run: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(log["message"] for log in self.ask("/logs/filter", body))

    # --- processes ----------------------------------------------------------------------------

    def process(self, name: Process) -> Detached:
        """A server, or the worker."""
        found = server_home.recall(self.home, name).process
        assert found is not None
        return found

    def kill(self, name: Process, with_processes: Sequence[psutil.Process] = ()) -> None:
        """`kill -9` of a server with all its processes, or of the worker alone; others with it."""
        process = self.process(name)
        leader = processes.find(process)
        assert leader is not None
        family = [leader] if name == "worker" else processes.members(process)
        family = [*family, *with_processes]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        processes.reap(process)
        _, alive = psutil.wait_procs(family, timeout=GONE_WITHIN_S)
        assert alive == []

    def of_run(self, run: str) -> list[psutil.Process]:
        """The processes that are at work on a run, without those of its stages."""
        return [p for p in self.at_work() if _variable(p, "PREFECT__FLOW_RUN_ID") == run]

    def at_work(self) -> list[psutil.Process]:
        """Processes in the project's folder, the worker's own left out."""
        found, worker = [], server_home.recall(self.home, "worker").process
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() != str(self.project.folder) or process.status() == "zombie":
                    continue
                if worker is None or process.pid != worker.pid:
                    found.append(process)
        return found

    # --- a new case ---------------------------------------------------------------------------

    def forget(self, name: str = NAME) -> None:
        """Remove a run's folder and its labeling projects; the store keeps what was made."""
        shutil.rmtree(self.project.folder / "runs" / name, ignore_errors=True)
        for found in self.labeling_projects(name):
            self.project.label_studio.client.projects.delete(found)

    def labeling_projects(self, name: str = NAME) -> list[int]:
        """Of all rounds of the run."""
        found = self.project.label_studio.client.projects.list(title=name)
        return [p.id for p in found if str(p.title).partition(", round ")[0] == name]


def _variable(process: psutil.Process, name: str) -> str | None:
    with contextlib.suppress(psutil.Error):
        return process.environ().get(name)
    return None


def until(condition: Callable[[], Any], every: float = 0.05) -> Any:
    """The condition's first true value; it is asked so often, in s."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
    return found


def refused(ask: Callable[[], Any]) -> tuple[int, str]:
    """The HTTP status with which the API refuses, and what it says."""
    try:
        given = ask()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    raise AssertionError(f"not refused: {given}")


def start(project: Project, home: Path) -> OnWorker:
    """The same project with a worker on the session's own servers, which are not given any more."""
    named = ("PREFECT_", "LABEL_STUDIO_")
    environment = {k: v for k, v in project.environment.items() if not k.startswith(named)}
    given = replace(project, environment=environment | {"RANKLOOP_HOME": str(home)})
    made = OnWorker(given, home)
    made.command("up")
    made.hold_watcher()
    return made
