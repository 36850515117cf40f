"""`rankloop labelers invite`, and that a round leaves no secret anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import answers, labelers
from flows.servers import Servers
from labeling.accounts import invite_link, sign_in
from labeling.config import SimulatedLabeler
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.simulated import labeler_email
from tests.flows.miniature import Project
from tests.flows.ranked_round import ANN, publish_round, rank, tasks


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


def test_list_shows_who_is_there_and_what_each_has_done(
    label_studio: LabelStudio, servers: Servers, servers_home: Path, tmp_path: Path
) -> None:
    published = publish_round(label_studio, tmp_path)
    published.folder.mkdir(parents=True, exist_ok=True)
    document = {"name": published.project.title, "round": 0}
    (published.folder / "round.json").write_text(json.dumps(document))
    (published.folder / "completions.parquet").symlink_to(published.completions)
    for task in tasks()[:3]:
        rank(label_studio, published, task)
    rank(label_studio, published, tasks()[3], tiers=[[0]])
    sign_in(label_studio, "idle@example.org", "Iris")
    rows = {row[0]: row[1:] for row in labelers.list_labelers(servers_home, tmp_path / "runs")}
    assert rows[ANN][1:3] == ("3 rankings", "1 not usable")
    assert rows["idle@example.org"] == ("Iris", "0 rankings", "", "", "")
    answers.look(label_studio, published, tasks())
    label_studio.client.projects.delete(published.project.id)
    rows = {row[0]: row[1:] for row in labelers.list_labelers(servers_home, tmp_path / "runs")}
    assert rows[ANN][1] == "3 rankings", "the newest snapshot tells"


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
