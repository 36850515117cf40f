"""What the dashboard does to a round when it is away: nothing."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from flows import tasks
from flows.runner import Line, StageResult


def refuse(*_: Any, **__: Any) -> None:
    raise httpx.ConnectError("the server restarts")


def test_a_progress_artifact_that_fails_is_said_once_and_ends_no_stage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "create_progress_artifact", refuse)
    monkeypatch.setattr(tasks, "_ARTIFACT_EVERY_S", 0.0)
    hear = tasks._Lines("ppo")
    caplog.set_level(logging.INFO)
    for done in range(3):
        hear(Line(logging.INFO, "ppo.train", f"iteration {done}", (done, 3)))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == ["the dashboard is not told (ConnectError); going on"]
    assert "iteration 2" in caplog.text


def test_a_summary_that_the_dashboard_does_not_take_leaves_the_round_complete(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "create_table_artifact", refuse)
    monkeypatch.setattr(tasks, "step_rows", lambda _: [])
    monkeypatch.setattr(tasks, "summary_markdown", lambda _: "text")
    report: Any = tasks.Outcome[StageResult]
    done = tasks.summarise.fn({"name": "demo"}, report)
    assert isinstance(done, tasks.Outcome)
    assert "ConnectError" in caplog.text
