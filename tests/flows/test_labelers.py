"""`rankloop labelers invite`, and that a round leaves no secret anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import labelers
from flows.servers import Servers
from labeling.accounts import invite_link
from labeling.config import SimulatedLabeler
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.simulated import labeler_email
from tests.flows.miniature import Project


def test_invite_prints_a_link_and_what_to_do_with_it(project: Project, servers: Servers) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "flows.cli", "labelers", "invite"),
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    link, hint = done.stdout.splitlines()
    assert link.startswith(f"{servers.label_studio.url}/user/signup/?token=")
    assert "send it to your labelers" in hint
    assert done.stderr == ""


def test_invite_finds_the_embedded_server(servers: Servers, servers_home: Path) -> None:
    link, _ = labelers.invite(servers_home)
    assert link.startswith(f"{servers.label_studio.url}/user/signup/?token=")


def test_invite_says_which_given_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:1 does not answer: start it"):
        labelers.invite(tmp_path)


def test_a_round_leaves_no_secret_behind(
    project: Project, finished: tuple[dict[str, Any], str], label_studio: LabelStudio
) -> None:
    """Neither in the terminal's text nor in any file: logs, the store, the report, round.json."""
    email = labeler_email(SimulatedLabeler(score="rubric.py:score"))
    invitation = invite_link(label_studio).rpartition("=")[2]
    secrets = [label_studio._token, label_studio.derived_secret(email), invitation]
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".html" for path in files)
    assert any(path.suffix == ".log" for path in files)
    for secret in secrets:
        assert secret not in finished[1]
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
