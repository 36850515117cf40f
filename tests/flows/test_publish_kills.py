"""A publish of 2,000 tasks, with either side killed, stopped or locked at moments drawn from a
seed. Whatever happens: run again, and exactly the 2,000 are there."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import answers, embedded, processes, publication, server_home
from flows.embedded import free_port
from flows.servers import Servers
from labeling import connection, page, publishing, snapshots
from labeling.config import Labeling
from labeling.label_studio import LabelStudio, Project
from labeling.overlap import overlaps
from labeling.project_tasks import keys, list_tasks
from labeling.publishing import publish
from labeling.records import (
    Candidates,
    Completion,
    Prompt,
    Ranking,
    read_candidates,
    write_candidates,
)

TASKS, BATCH, KILLS = 2000, 250, 3
RANKER = "ann@example.org"
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.faults) for seed in range(1, 4)))
ROOT = Path(__file__).parents[2]
CLIENT = """
import os, sys
from pathlib import Path
from labeling import publishing
from labeling.label_studio import LabelStudio
from labeling.records import read_candidates
publishing.BATCH = int(sys.argv[3])
server = LabelStudio(os.environ["LABEL_STUDIO_URL"], os.environ["LABEL_STUDIO_API_KEY"])
project = server.ensure_project(sys.argv[1], "Rank them.")
publishing.publish(server, project, read_candidates(Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def tasks() -> list[Candidates]:
    return [
        Candidates(Prompt(text=f"question {n}"), (Completion(f"yes {n}"), Completion(f"no {n}")))
        for n in range(TASKS)
    ]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "BATCH", BATCH)


class Server:
    """A Label Studio to be killed and started again, at the same address.

    It begins with a copy of the suite's own, which starts faster than an empty one.
    """

    def __init__(self, home: Path, suites: Path, token: str) -> None:
        self.home, self._account = home, server_home.account(suites)
        folder = home / "label-studio"
        shutil.copytree(
            suites / "label-studio", folder, ignore=shutil.ignore_patterns("*.sqlite3*")
        )
        self.database = folder / "label_studio.sqlite3"
        with (
            closing(sqlite3.connect(suites / "label-studio" / self.database.name)) as source,
            closing(sqlite3.connect(self.database)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=WAL")
        # Not one of those that the system gives to clients: one of them could take it meanwhile.
        self._port = free_port(random.Random(os.getpid()).sample(range(20000, 30000), 10))
        self.start()
        self.client = LabelStudio(f"http://127.0.0.1:{self._port}", token)

    def start(self) -> None:
        launch = embedded.label_studio(self.home, self._port, self._account)
        self.process = launch.start()
        assert embedded.wait_ready(launch, self.process) == self._port

    def signal(self, which: signal.Signals) -> None:
        for member in processes.members(self.process):
            member.send_signal(which)

    def kill(self) -> None:
        family = processes.members(self.process)
        assert family
        self.signal(signal.SIGKILL)
        processes.reap(self.process)
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []


@pytest.fixture(scope="module")
def server(
    servers: Servers, servers_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    assert servers.label_studio is not None
    home = tmp_path_factory.mktemp("killed") / "home"
    made = Server(home, servers_home, servers.label_studio.token)
    try:
        yield made
    finally:
        made.signal(signal.SIGCONT)
        processes.stop(made.process)


@contextmanager
def publishing_in_a_thread(
    server: Server, project: Project, tasks: list[Candidates]
) -> Iterator[threading.Thread]:
    """It may fail when the server is away for too long: then it is run again."""

    def run() -> None:
        with suppress(ConnectionError):
            publish(server.client, project, tasks)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(200)
        assert not thread.is_alive()


def wait_for(server: Server, project: Project, count: int, alive: Callable[[], bool]) -> bool:
    """Whether so many tasks arrived while the other side was at work."""
    while alive():
        if server.client.count(project).tasks >= count:
            return True
        time.sleep(0.02)
    return False


def moments(seed: int, what: str) -> Iterator[tuple[int, float]]:
    """So many tasks are there, and then so many seconds more: the next request is under way."""
    draw = random.Random(f"{what} {seed}")
    for count in sorted(draw.sample(range(0, TASKS, BATCH), KILLS)):
        yield count, draw.random() * 0.3


def assert_each_once(server: Server, project: Project, tasks: list[Candidates]) -> None:
    publish(server.client, project, tasks)
    assert dict(keys(server.client, project)) == {task.key: 1 for task in tasks}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_killed_at_any_moment_has_exactly_the_tasks_in_the_end(
    server: Server, tasks: list[Candidates], seed: int, record_property: Callable[..., None]
) -> None:
    project = server.client.ensure_project(f"server killed {seed}", "Rank them.")
    hits = 0
    with publishing_in_a_thread(server, project, tasks) as publisher:
        for count, seconds in moments(seed, "server"):
            hit = wait_for(server, project, count, publisher.is_alive)
            time.sleep(seconds)
            hit = hit and publisher.is_alive()
            hits += hit
            server.kill()
            server.start()
            there = server.client.count(project).tasks
            record_property("note", f"kill -9 | publish | server | {there} there | {hit} |")
    assert hits, "nothing was killed at work"
    assert_each_once(server, project, tasks)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_killed_at_any_moment_leaves_nothing_to_mend_by_hand(
    server: Server,
    servers: Servers,
    tasks: list[Candidates],
    tmp_path: Path,
    seed: int,
    record_property: Callable[..., None],
) -> None:
    file, title = tmp_path / "completions.parquet", f"client killed {seed}"
    write_candidates(tasks, file)
    assert servers.label_studio is not None
    environment = os.environ | {
        "LABEL_STUDIO_URL": server.client.url,
        "LABEL_STUDIO_API_KEY": servers.label_studio.token,
        "PYTHONPATH": str(ROOT),
    }
    command = (sys.executable, "-c", CLIENT, title, str(file), str(BATCH))
    project = server.client.ensure_project(title, "Rank them.")
    hits = 0
    for count, seconds in moments(seed, "client"):
        client = subprocess.Popen(command, env=environment)
        try:
            hit = wait_for(server, project, count, lambda c=client: c.poll() is None)  # type: ignore[misc]
            time.sleep(seconds)
            hit = hit and client.poll() is None
        finally:
            client.kill()
            client.wait()
        hits += hit
        there = server.client.count(project).tasks
        record_property("note", f"kill -9 | publish | client | {there} there | {hit} |")
    assert hits, "nothing was killed at work"
    assert_each_once(server, project, read_candidates(file))


# --- a whole round's publish: answers that come back, and a number of labelers for each ----------

ROUND = """
import os, sys
from pathlib import Path
from flows import answers, publication
from labeling import publishing
from labeling.config import Labeling
from labeling.label_studio import LabelStudio
publishing.BATCH = int(sys.argv[4])
server = LabelStudio(os.environ["LABEL_STUDIO_URL"], os.environ["LABEL_STUDIO_API_KEY"])
config = Labeling(overlap=2, overlap_share=0.5)
publication.publish(server, sys.argv[1], config, Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("victim", ["client", pytest.param("server", marks=pytest.mark.faults)])
def test_a_round_killed_while_answers_come_back_and_numbers_are_set_is_whole_when_run_again(
    server: Server,
    servers: Servers,
    tasks: list[Candidates],
    tmp_path: Path,
    victim: str,
    record_property: Callable[..., None],
) -> None:
    """Killed twice: while tasks go in with their answers, and while they get their numbers."""
    some, batch = tasks[:120], 20
    file, folder = tmp_path / "completions.parquet", tmp_path / "runs" / "n" / "rounds" / "000"
    write_candidates(some, file)
    title, config = f"round {victim} killed", Labeling(overlap=2, overlap_share=0.5)
    numbers = overlaps(config, [task.key for task in some])
    first = publication.publish(server.client, title, Labeling(), file, folder)
    kept = [
        task | {"annotations": [_annotation(task["data"]["key"])]}
        for task in server.client.export(first.project)
    ]
    snapshots.keep(first.snapshots, json.dumps(kept).encode())
    server.client.client.projects.delete(first.project.id)
    assert servers.label_studio is not None
    environment = os.environ | {
        "LABEL_STUDIO_URL": server.client.url,
        "LABEL_STUDIO_API_KEY": servers.label_studio.token,
        "PYTHONPATH": str(ROOT),
    }
    command = (sys.executable, "-c", ROUND, title, str(file), str(folder), str(batch))

    def is_importing() -> bool:
        found = server.client.find_project(title)
        return found is not None and server.client.count(found).tasks >= batch

    def is_numbering() -> bool:
        found = server.client.find_project(title)
        if found is None or server.client.count(found).tasks < len(some):
            return False
        there = {task.key: task.overlap for task in list_tasks(server.client, found)[0]}
        return 0 < sum(there[key] != number for key, number in numbers.items()) < len(some) / 2

    for moment in (is_importing, is_numbering):
        client = subprocess.Popen(command, env=environment)
        try:
            while client.poll() is None and not moment():
                time.sleep(0.01)
            hit = client.poll() is None
            if victim == "server":
                server.kill()
        finally:
            client.kill()
            client.wait()
        if victim == "server":
            server.start()
        record_property("note", f"kill -9 | publish | {victim} | {moment.__name__} | {hit} |")
        assert hit
    published = publication.publish(server.client, title, config, file, folder)
    listed = list_tasks(server.client, published.project)[0]
    assert sorted((task.key, task.overlap) for task in listed) == sorted(numbers.items())
    seen = answers.look(server.client, published, some)
    assert {(r.task, r.labeler) for r in seen.rankings} == {(t.key, RANKER) for t in some}
    assert not seen.refused


def _annotation(key: str) -> dict[str, Any]:
    result = page.annotation_result(Ranking(key, RANKER, ((0,), (1,))), 2)
    return {"result": result, "completed_by": {"email": RANKER}}


def test_a_client_that_gives_up_on_a_slow_server_sends_nothing_twice(
    server: Server, tasks: list[Candidates], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is stopped in a request, and goes on with it when its client has gone."""
    project = server.client.ensure_project("slow server", "Rank them.")
    monkeypatch.setattr(connection, "LONG_REQUEST_S", 1.0)
    with publishing_in_a_thread(server, project, tasks) as publisher:
        assert wait_for(server, project, 2 * BATCH, publisher.is_alive)
        server.signal(signal.SIGSTOP)
        time.sleep(2.5)
        server.signal(signal.SIGCONT)
        monkeypatch.undo()
    assert_each_once(server, project, tasks)


def test_a_locked_database_doubles_nothing(
    server: Server, tasks: list[Candidates], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server waits for the lock and commits when its client has given up."""
    project = server.client.ensure_project("locked database", "Rank them.")
    database = sqlite3.connect(server.database, isolation_level=None)
    monkeypatch.setattr(connection, "LONG_REQUEST_S", 2.0)
    with publishing_in_a_thread(server, project, tasks[: 2 * BATCH]) as publisher:
        assert wait_for(server, project, BATCH, publisher.is_alive)
        database.execute("BEGIN IMMEDIATE")
        time.sleep(6)
        database.execute("COMMIT")
        monkeypatch.undo()
    database.close()
    assert_each_once(server, project, tasks[: 2 * BATCH])
