"""10,000 tasks of four completions into Label Studio and out again: Rankloop's sync against the
bare calls of Label Studio's SDK.

    python benchmarks/labeling.py --json labeling.json
    python benchmarks/labeling.py --rounds 0 --kills 6

Both use one embedded Label Studio on SQLite, made for this run in a folder that is removed
afterwards, and take turns; the order changes with every round. Seconds are of the clock, as the
median of the rounds, because most of them are the server's. A ratio is Rankloop's time over the
bare time: what safety costs. Beside it stands that of CPU seconds, the server's and the client's
together, which other work on the machine moves less.

- In, to a project that is made in that time. Bare is `projects.create` and one `import_tasks` with
  all tasks, which were made before the clock starts. Rankloop's is `flows.publication.publish`, as
  a round runs it: candidates read from their file, tasks made of them, sent in requests of
  2,500, counted, and given their number of labelers (one each).
- Out, with one ranking of each task. Bare is `exports.create` without options, and its download.
  Rankloop's is a look of the gate: export with the labelers' addresses, a snapshot on the disk, and
  every annotation checked and counted.

`--kills N` publishes once more and kills the server and the client in turn, N times in all, with
SIGKILL, at moments drawn from `--seed`. Then it publishes a last time and compares the keys.
`million_pairs_seconds` is that of benchmarks/pairs.py.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from ppo_vs_trl import machine, say, write_json

from flows import answers, embedded, processes, publication, server_home
from flows.embedded import free_port
from flows.publication import Published
from labeling import page, project_tasks
from labeling.config import Labeling
from labeling.label_studio import LabelStudio, Project
from labeling.publishing import KnownTask, publish
from labeling.rankings import read_time
from labeling.records import (
    Candidates,
    Completion,
    Prompt,
    Ranking,
    read_candidates,
    write_candidates,
)

LABELER = "labeler@example.org"
COMPLETIONS, WORDS = 4, 150  # some 4.5 kB a task
CLIENT = """
import sys
sys.path.insert(0, sys.argv[1])
from labeling_sync import publish_as_client
publish_as_client(*sys.argv[2:])
"""


@dataclass
class Times:
    """Seconds, round by round: of the clock, and of the CPUs, the server's and the client's."""

    bare: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    bare_cpu: list[float] = field(default_factory=list)
    ours_cpu: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Ours over bare, of the medians."""
        return statistics.median(self.ours) / statistics.median(self.bare)

    @property
    def cpu_ratio(self) -> float:
        return statistics.median(self.ours_cpu) / statistics.median(self.bare_cpu)

    def take(self, server: Server, is_ours: bool, call: Callable[[], Any]) -> str:
        cpu, clock = server.cpu_seconds() + time.process_time(), time.perf_counter()
        call()
        clock = time.perf_counter() - clock
        cpu = server.cpu_seconds() + time.process_time() - cpu
        (self.ours if is_ours else self.bare).append(clock)
        (self.ours_cpu if is_ours else self.bare_cpu).append(cpu)
        return f"{'Rankloop' if is_ours else 'bare'}, {clock:.2f} s, {cpu:.2f} s of CPU"


class Server:
    """A Label Studio of this run's own."""

    def __init__(self, home: Path) -> None:
        self._home, self._account = home, server_home.account(home)
        self.token = self._account.token
        embedded.prepare_database(home / "label-studio")
        # Not one of the ports that the system gives to clients: it stays free while it is killed.
        self._port = free_port(random.Random(os.getpid()).sample(range(20000, 30000), 10))
        self.client = LabelStudio(f"http://127.0.0.1:{self._port}", self.token)

    def start(self) -> None:
        """Raises InputError when it is not ready within three minutes."""
        launch = embedded.label_studio(self._home, self._port, self._account)
        self._process = launch.start()
        assert embedded.wait_ready(launch, self._process) == self._port

    def cpu_seconds(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def kill(self) -> None:
        for member in processes.members(self._process):
            member.kill()
            member.wait()

    def stop(self) -> None:
        processes.stop(self._process)

    def project(self, title: str) -> Project:
        """An empty one. It stays: to delete 10,000 tasks would take longer than to send them."""
        return self.client.ensure_project(title, "Rank them.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5, help="0 leaves out the timing")
    parser.add_argument("--kills", type=int, default=0, help="of server and client, in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()

    where = {what: which for what, which in machine().items() if what in ("processor", "python")}
    where["label-studio-sdk"] = version("label-studio-sdk")
    figures: dict[str, Any] = {"tasks": options.tasks, "machine": where}
    with tempfile.TemporaryDirectory() as folder:
        say("starts a Label Studio")
        server = Server(Path(folder))
        try:
            server.start()
            tasks = make_tasks(options.tasks)
            if options.rounds:
                figures |= measure(server, tasks, options.rounds, Path(folder))
            if options.kills:
                kill(server, tasks, options.kills, options.seed, Path(folder))
                figures["kills"] = options.kills
        finally:
            server.stop()
    if options.json:
        from pairs import million_pairs_seconds  # noqa: PLC0415 (takes a minute of its own)

        figures["million_pairs_seconds"] = million_pairs_seconds()
        write_json(options.json, figures)


def make_tasks(count: int) -> list[Candidates]:
    draw = random.Random(0)
    words = [f"word{n}" for n in range(1000)]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    return [
        Candidates(
            Prompt(text=f"{n} {text(WORDS // 3)}"),
            tuple(Completion(text(WORDS)) for _ in range(COMPLETIONS)),
        )
        for n in range(count)
    ]


# --- in and out -----------------------------------------------------------------------------------


def measure(server: Server, tasks: list[Candidates], rounds: int, folder: Path) -> dict[str, Any]:
    into, out = Times(), Times()
    rows: Any = [{"data": page.task_data(task)} for task in tasks]
    sdk = server.client.client

    once: Any = {"max_retries": 0, "timeout_in_seconds": 600}

    completions = folder / "completions.parquet"
    write_candidates(tasks, completions)

    def bare_in(title: str) -> None:
        made = sdk.projects.create(title=title, label_config=page.interface())
        sdk.projects.import_tasks(made.id, request=rows, request_options=once)

    def ours_in(title: str) -> None:
        of_round = folder / "runs" / title / "rounds" / "000"
        publication.publish(server.client, title, Labeling(), completions, of_round)

    for number in range(rounds):
        for is_ours in in_turn(number):
            title = f"in {number} {'ours' if is_ours else 'bare'}"
            put = ours_in if is_ours else bare_in
            said = into.take(server, is_ours, partial(put, title))
            (there,) = sdk.projects.list(title=title)
            assert there.task_number == len(tasks)
            say(f"round {number}: in, {said}")

    def bare_out(project: Project) -> bytes:
        exports = sdk.projects.exports
        made: Any = exports.create(project.id, request_options=once)
        return b"".join(
            exports.download(project.id, made.id, export_type="JSON", request_options=once)
        )

    project = server.project("out")
    publish(server.client, project, tasks, answered(tasks))
    for number in range(rounds):
        of_round = Published(project, Path(), len(tasks), 0, folder / f"round {number}")
        for is_ours in in_turn(number):
            take_out = (
                partial(look, server.client, of_round, tasks)
                if is_ours
                else partial(bare_out, project)
            )
            say(f"round {number}: out, {out.take(server, is_ours, take_out)}")
    print("\n".join(table(into, out, len(tasks))))
    return {
        "import_ratio": into.ratio,
        "export_ratio": out.ratio,
        "import_cpu_ratio": into.cpu_ratio,
        "export_cpu_ratio": out.cpu_ratio,
        "seconds": {"in": vars(into), "out": vars(out)},
        "load": os.getloadavg(),
    }


def look(client: LabelStudio, published: Published, tasks: list[Candidates]) -> None:
    seen = answers.look(client, published, tasks)
    assert (len(seen.rankings), len(seen.refused)) == (len(tasks), 0)


def answered(tasks: list[Candidates]) -> dict[str, KnownTask]:
    """One ranking of each task, to be put there with it: one by one would take half an hour."""
    order = tuple((index,) for index in range(COMPLETIONS))
    return {
        task.key: KnownTask(
            read_time(None),
            [
                {
                    "completed_by": {"email": LABELER},
                    "result": page.annotation_result(
                        Ranking(task.key, LABELER, order), COMPLETIONS
                    ),
                }
            ],
        )
        for task in tasks
    }


def in_turn(number: int) -> tuple[bool, bool]:
    """Whose turn it is: ours?"""
    return (True, False) if number % 2 else (False, True)


def table(into: Times, out: Times, tasks: int) -> Iterator[str]:
    """Markdown: a row for each way."""
    spread = "lowest to highest"
    yield (
        f"| {tasks:,} tasks | bare SDK, s | {spread} | Rankloop, s | {spread} | ratio "
        "| of CPU seconds |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, times in (("in", into), ("out", out)):
        cells = [name]
        for side in (times.bare, times.ours):
            cells += [f"{statistics.median(side):.2f}", f"{min(side):.2f} to {max(side):.2f}"]
        yield f"| {' | '.join(cells)} | {times.ratio:.2f} | {times.cpu_ratio:.2f} |"
    yield ""
    yield f"Medians of {len(into.ours)} rounds; load {os.getloadavg()[0]:.1f}."


# --- kills ----------------------------------------------------------------------------------------


def kill(server: Server, tasks: list[Candidates], kills: int, seed: int, folder: Path) -> None:
    """Publish under kills, once more in peace, and see that each task is there once."""
    draw, file = random.Random(seed), folder / "tasks.parquet"
    write_candidates(tasks, file)
    project = server.project("killed")
    for number in range(kills):
        # So many tasks are there, then so many seconds more: a request is under way.
        count, rest = len(tasks) * number // kills, draw.random() / 2
        hit = (_kill_server if number % 2 else _kill_client)(server, project, file, count, rest)
        there = server.client.count(project).tasks
        say(f"kill {number}: {'server' if number % 2 else 'client'}, {there} there, hit: {hit}")
    publish(server.client, project, tasks)
    there = dict(project_tasks.keys(server.client, project))
    assert there == {task.key: 1 for task in tasks}, "tasks are missing or there twice"
    print(f"{len(there):,} tasks, each once, after {kills} kills (seed {seed})")


def publish_as_client(url: str, token: str, title: str, file: str) -> None:
    """What the client does that is killed."""
    client = LabelStudio(url, token)
    publish(client, client.ensure_project(title, "Rank them."), read_candidates(Path(file)))


def _kill_client(server: Server, project: Project, file: Path, count: int, rest: float) -> bool:
    here = str(Path(__file__).parent)
    arguments = (here, server.client.url, server.token, project.title, str(file))
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *arguments])
    try:
        hit = _wait(server.client, project, count, lambda: client.poll() is None)
        time.sleep(rest)
        return hit and client.poll() is None
    finally:
        client.kill()
        client.wait()


def _kill_server(server: Server, project: Project, file: Path, count: int, rest: float) -> bool:
    def run() -> None:
        with suppress(ConnectionError):
            publish(server.client, project, read_candidates(file))

    client = threading.Thread(target=run)
    client.start()
    hit = _wait(server.client, project, count, client.is_alive)
    time.sleep(rest)
    server.kill()
    server.start()
    client.join()
    return hit


def _wait(client: LabelStudio, project: Project, count: int, alive: Callable[[], bool]) -> bool:
    while alive():
        if client.count(project).tasks > count:
            return True
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    main()
