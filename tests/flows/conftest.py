"""One round in miniature that nobody disturbs, for all tests that ask what a round leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.servers import Servers
from labeling.label_studio import LabelStudio
from tests.flows import on_worker
from tests.flows.miniature import Project, make_project
from tests.flows.on_worker import OnWorker


@pytest.fixture(scope="session")
def project(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers, label_studio: LabelStudio
) -> Project:
    folder = tmp_path_factory.mktemp("a project") / "with spaces"
    return make_project(folder, servers, label_studio)


@pytest.fixture(scope="session")
def finished(project: Project) -> tuple[dict[str, Any], str]:
    """round.json and the terminal's text of the first, undisturbed run."""
    code, out, err = project.run()
    assert code == 0, out + err
    shutil.copytree(project.folder, _undisturbed(project), symlinks=True)
    return project.round(), out


@pytest.fixture(scope="session")
def undisturbed(project: Project, finished: tuple[dict[str, Any], str]) -> Path:
    """A copy of the project's folder as the first run left it."""
    return _undisturbed(project)


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes a line about the case: shown when it fails, and by `make faults`."""

    def take(line: str) -> None:
        print(line)
        record_property("note", line)

    return take


@pytest.fixture(scope="session")
def worked(
    tmp_path_factory: pytest.TempPathFactory,
    servers: Servers,
    servers_home: Path,
    label_studio: LabelStudio,
    undisturbed: Path,
) -> OnWorker:
    """A project of its own, whose rounds people rank, and a worker on the session's servers. Their
    store holds what the undisturbed round made in a process of its own."""
    shutil.copytree(undisturbed / ".rankloop" / "store", servers_home / "store", dirs_exist_ok=True)
    folder = tmp_path_factory.mktemp("on a worker") / "with spaces"
    return on_worker.start(make_project(folder, servers, label_studio), servers_home)


def _undisturbed(project: Project) -> Path:
    return project.folder.with_name("undisturbed")
