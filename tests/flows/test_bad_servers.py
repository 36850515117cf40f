"""Servers that are down, are somebody else's, refuse the token, or disappear half-way."""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import answers, freezing, publication
from flows.embedded import free_port
from flows.servers import Servers
from labeling import connection, publishing
from labeling.config import Labeling
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.project_tasks import keys
from labeling.records import (
    Candidates,
    Completion,
    Prompt,
    Ranking,
    write_candidates,
    write_rankings,
)
from tests.flows.complaints import assert_says, complaint_of, make_project, one_line


class Proxy:
    """A TCP proxy before a real server; `leave` closes everything, as a crash would."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def leave(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):  # the other side may have left before
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    made = Proxy(int(servers.label_studio.url.rpartition(":")[2]))
    yield made
    made.leave()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: Servers) -> Path:
    """A project whose environment names the servers."""
    monkeypatch.setenv("PREFECT_API_URL", servers.prefect.api_url)
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.label_studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", servers.label_studio.token)
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path / "home"))
    return make_project(tmp_path / "project")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LABEL_STUDIO_API_KEY", "wrong", ["refuses the token", "set LABEL_STUDIO_API_KEY"]),
        ("LABEL_STUDIO_API_KEY", "", ["LABEL_STUDIO_API_KEY is not", "Account & Settings"]),
        ("LABEL_STUDIO_URL", "down", ["cannot be reached", "start it, or correct its address"]),
        ("LABEL_STUDIO_URL", "words", ["words", "cannot be reached", "correct its address"]),
        ("LABEL_STUDIO_URL", "prefect", ["HTTP 401", "refuses the token"]),
        ("PREFECT_API_URL", "down", ["PREFECT_API_URL", "cannot be reached", "unset"]),
        ("PREFECT_API_URL", "words", ["PREFECT_API_URL words", "correct its address"]),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(
    name: str,
    value: str,
    expected: list[str],
    project: Path,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    down = f"http://127.0.0.1:{free_port([])}"
    monkeypatch.setenv(name, {"down": down, "prefect": servers.prefect.ui_url}.get(value, value))
    line = complaint_of(project, "run", "config.yaml")
    assert_says(line, expected)
    assert servers.label_studio.token not in line


# --- half-way -------------------------------------------------------------------------------------


def tasks(prefix: str, count: int = 30) -> list[Candidates]:
    return [
        Candidates(Prompt(text=f"{prefix} {n}"), (Completion("yes"), Completion("no")))
        for n in range(count)
    ]


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    path = tmp_path / "completions.parquet"
    write_candidates(tasks("half-way"), path)
    return path


@pytest.fixture
def round_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "name" / "rounds" / "000"


def name() -> str:
    return f"bad-{uuid.uuid4().hex[:8]}"


def test_a_label_studio_that_disappears_while_publishing_is_one_line_and_doubles_nothing(
    label_studio: LabelStudio,
    servers: Servers,
    proxy: Proxy,
    completions: Path,
    round_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "BATCH", 10)
    monkeypatch.setattr(connection, "ATTEMPTS", 2)  # the waits between them are half of the time
    through, project = LabelStudio(proxy.url, servers.label_studio.token), name()
    real = through.import_tasks

    def leave_after_the_first(*arguments: Any, **given: Any) -> Any:
        made = real(*arguments, **given)
        proxy.leave()
        return made

    monkeypatch.setattr(through, "import_tasks", leave_after_the_first)
    with pytest.raises(ConnectionError) as caught:
        publication.publish(through, project, Labeling(), completions, round_folder)
    assert_says(one_line(str(caught.value), "Label Studio at"), [proxy.url, "cannot be reached"])
    published = publication.publish(label_studio, project, Labeling(), completions, round_folder)
    assert published.created == 20
    assert set(keys(label_studio, published.project).values()) == {1}


def test_a_label_studio_that_disappears_before_the_export_keeps_no_half_of_it(
    servers: Servers,
    proxy: Proxy,
    completions: Path,
    round_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "ATTEMPTS", 2)
    through = LabelStudio(proxy.url, servers.label_studio.token)
    published = publication.publish(through, name(), Labeling(), completions, round_folder)
    proxy.leave()
    with pytest.raises(ConnectionError) as caught:
        answers.look(through, published, tasks("half-way"))
    assert_says(one_line(str(caught.value), "Label Studio at"), ["cannot be reached"])
    assert not published.snapshots.exists()


def test_labels_frozen_of_other_completions_say_what_changed(
    completions: Path, tmp_path: Path
) -> None:
    frozen = tmp_path / "labels.parquet"
    write_rankings([Ranking(tasks("others")[0].key, "ann", ((0,), (1,)))], frozen)
    before = frozen.read_bytes()
    with pytest.raises(InputError) as caught:
        freezing.find_frozen(frozen, completions)
    line = one_line(str(caught.value), str(frozen))
    assert_says(line, ["1 of 1 rankings are of other completions", "--name", "remove that file"])
    assert frozen.read_bytes() == before
