"""A round in miniature, run by the real command: the project's files, and how it is asked."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import given_servers
from flows.servers import Servers
from labeling.label_studio import LabelStudio
from tests import tiny

PATIENCE_S = 180.0
TASKS = 12
STAGES = ("prompts", "sft", "completions", "pairs", "reward", "ppo", "evaluate", "report")
CONFIG = """\
name: mini
model: model
max_new_tokens: 5
prompts: {path: prompts.jsonl, evaluation_fraction: 0.4}
sft: {data: sft.jsonl, learning_rate: 1.0e-3, max_length: 24}
labeling:
  poll_seconds: 0.2
  simulated: [{score: "rubric.py:score", noise: 0.1}]
reward: {epochs: 1, batch_size: 16, max_length: 24}
ppo: {iterations: 2, rollout_batch_size: 8, epochs: 1, minibatches: 2}
evaluation: {judge: "rubric.py:score", guards: {valid: "rubric.py:valid"}}
"""
# The same round, ranked by people.
BY_PEOPLE = CONFIG.replace("name: mini", "name: people").replace(
    '  simulated: [{score: "rubric.py:score", noise: 0.1}]\n', ""
)
RUBRIC = """\
def score(prompts, completions):
    return [float(c.count("good") - c.count("bad")) for c in completions]
def valid(prompts, completions):
    return [float("thanks" in c) for c in completions]
def broken(prompts, completions):
    raise ValueError("no luck")
"""


@dataclass
class Project:
    """A project folder, and the command run in it."""

    folder: Path
    environment: dict[str, str]
    label_studio: LabelStudio
    prefect: str

    def start(self, *flags: str) -> subprocess.Popen[str]:
        return self.command("run", "config.yaml", *flags)

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            (sys.executable, "-m", "flows.cli", *arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the command."""
        return self.end(self.start(*flags))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Wait for the command's end: exit code, stdout and stderr."""
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        return process.returncode, out, err

    def round_folder(self, name: str = "mini", number: int = 0) -> Path:
        return self.folder / "runs" / name / "rounds" / f"{number:03d}"

    def round(self, name: str = "mini", number: int = 0) -> dict[str, Any]:
        path = self.round_folder(name, number) / "round.json"
        return json.loads(path.read_text()) if path.exists() else {"stages": {}}

    def answers(self, name: str = "mini") -> tuple[int, int]:
        """How many tasks and answers the labeling project holds."""
        counts = self.label_studio.count(self.label_studio.ensure_project(name, ""))
        return counts.tasks, counts.answers

    def ask_prefect(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self.prefect + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", **given_servers.prefect_headers()},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(10):
            try:
                answer = opener.open(request, timeout=30)
                break
            except urllib.error.HTTPError as error:
                if error.code != 503:  # its database is locked: its own client asks again, too
                    raise
                time.sleep(0.5)
        else:
            answer = opener.open(request, timeout=30)
        with answer:
            return json.load(answer)

    def state(self, run: str) -> str:
        """The state in which the dashboard shows a run."""
        return str(self.ask_prefect(f"/flow_runs/{run}")["state_type"])

    def task_runs(self, run: str) -> dict[str, dict[str, Any]]:
        body = {"flow_runs": {"id": {"any_": [run]}}}
        return {task["name"]: task for task in self.ask_prefect("/task_runs/filter", body)}


def make_project(folder: Path, servers: Servers, label_studio: LabelStudio) -> Project:
    """Write the project's files: a tiny model, prompts, demonstrations, a rubric, the config."""
    folder.mkdir()
    tiny.save(folder / "model")
    draw = random.Random(0)
    prompts = {" ".join(draw.choices(tiny.WORDS, k=4)) for _ in range(20)}
    rows = [{"prompt": prompt} for prompt in sorted(prompts)]
    assert len(rows) - round(0.4 * len(rows)) == TASKS
    corpus = [
        {
            "prompt": " ".join(draw.choices(tiny.WORDS, k=4)),
            "completion": " " + " ".join(draw.choices(tiny.WORDS, k=3)),
        }
        for _ in range(32)
    ]
    for name, lines in (("prompts", rows), ("sft", corpus)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "people.yaml").write_text(BY_PEOPLE)
    (folder / "rubric.py").write_text(RUBRIC)
    environment = os.environ | {
        "PREFECT_API_URL": servers.prefect.api_url,
        "LABEL_STUDIO_URL": servers.label_studio.url,
        "LABEL_STUDIO_API_KEY": servers.label_studio.token,
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RANKLOOP_HOME", None)
    return Project(folder, environment, label_studio, servers.prefect.api_url)


def run_id(document: dict[str, Any]) -> str:
    return str(document["addresses"]["dashboard"]).rpartition("/")[2]


def until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """The condition's first true value, while the command runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.003)
    return found
