"""Servers that are down, are somebody else's, refuse the token, or disappear half-way."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from label_studio_sdk.core.api_error import ApiError

from flows import labels
from flows.embedded import free_port
from flows.servers import Servers
from labeling import label_studio as module
from labeling.config import Labeling
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
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
        ("LABEL_STUDIO_URL", "prefect", ["HTTP 404", "no Label Studio"]),
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


def name() -> str:
    return f"bad-{uuid.uuid4().hex[:8]}"


def test_a_label_studio_that_disappears_while_publishing_is_one_line_and_doubles_nothing(
    label_studio: LabelStudio,
    servers: Servers,
    proxy: Proxy,
    completions: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BATCH", 10)
    monkeypatch.setattr(module, "_ATTEMPTS", 2)  # the waits between them are half of the time
    through, project = LabelStudio(proxy.url, servers.label_studio.token), name()
    real = through._import

    def leave_after_the_first(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        proxy.leave()

    monkeypatch.setattr(through, "_import", leave_after_the_first)
    with pytest.raises(ConnectionError) as caught:
        labels.publish(through, project, Labeling(), completions)
    assert_says(one_line(str(caught.value), "Label Studio at"), [proxy.url, "cannot be reached"])
    published = labels.publish(label_studio, project, Labeling(), completions)
    assert published.created == 20
    assert set(label_studio.keys(published.project).values()) == {1}


def test_a_label_studio_that_disappears_before_the_labels_are_frozen_leaves_no_file(
    servers: Servers,
    proxy: Proxy,
    completions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ATTEMPTS", 2)
    through = LabelStudio(proxy.url, servers.label_studio.token)
    published = labels.publish(through, name(), Labeling(), completions)
    proxy.leave()
    with pytest.raises(ConnectionError) as caught:
        labels.freeze(through, published, tmp_path / "labels.parquet")
    assert_says(one_line(str(caught.value), "Label Studio at"), ["cannot be reached"])
    assert not list(tmp_path.glob("labels*"))


def test_a_project_deleted_while_the_gate_waits_ends_the_wait(
    label_studio: LabelStudio, completions: Path
) -> None:
    published = labels.publish(label_studio, name(), Labeling(), completions)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            labels.wait_for_rankings(label_studio, published, Labeling(poll_seconds=0.05))
        except InputError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    deadline = time.monotonic() + 30
    while (
        not ended and time.monotonic() < deadline
    ):  # Label Studio refuses while an export of the project is at work
        with contextlib.suppress(ApiError):
            label_studio.client.projects.delete(published.project.id)
        waiting.join(0.5)
    assert len(ended) == 1
    line = one_line(str(ended[0]), "")
    assert label_studio.url in line
    assert "gone" in line or "deleted" in line


def test_labels_frozen_of_other_completions_say_what_changed(
    completions: Path, tmp_path: Path
) -> None:
    frozen = tmp_path / "labels.parquet"
    write_rankings([Ranking(tasks("others")[0].key, "ann", ((0,), (1,)))], frozen)
    before = frozen.read_bytes()
    with pytest.raises(InputError) as caught:
        labels.find_frozen(frozen, completions)
    line = one_line(str(caught.value), str(frozen))
    assert_says(line, ["1 of 1 rankings are of other completions", "--name", "remove that file"])
    assert frozen.read_bytes() == before
