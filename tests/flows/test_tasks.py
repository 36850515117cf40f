"""What the dashboard does to a round when it is away: nothing. And what is tried again."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)
from prefect.utilities.math import clamped_poisson_interval

from flows import dashboard, tasks
from flows.embedded import free_port
from flows.runner import Line, StageResult
from flows.servers import Servers
from labeling.config import Labeling
from labeling.goal import goal_of
from labeling.tally import tally
from tests.flows.test_stage import until
from tests.flows.toy_stages import RAISE, Toy


def refuse(*_: Any, **__: Any) -> None:
    raise httpx.ConnectError("the server restarts")


def test_a_progress_artifact_that_fails_is_said_once_and_ends_no_stage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dashboard, "create_progress_artifact", refuse)
    monkeypatch.setattr(dashboard, "_ARTIFACT_EVERY_S", 0.0)
    hear = dashboard.Lines("ppo")
    caplog.set_level(logging.INFO)
    for done in range(3):
        hear(Line(logging.INFO, "ppo.train", f"iteration {done}", (done, 3)))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == ["the dashboard is not told (ConnectError); going on"]
    assert "iteration 2" in caplog.text


def test_a_summary_that_the_dashboard_does_not_take_leaves_the_round_complete(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dashboard, "create_table_artifact", refuse)
    monkeypatch.setattr(dashboard, "step_rows", lambda _: [])
    monkeypatch.setattr(dashboard, "summary_markdown", lambda _: "text")
    report: Any = tasks.Outcome[StageResult]
    done = tasks.summarise.fn({"name": "demo"}, report)
    assert isinstance(done, tasks.Outcome)
    assert "ConnectError" in caplog.text


@pytest.mark.parametrize("is_there", [False, True])
def test_that_nobody_ranks_any_more_is_news_for_the_table(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        dashboard, "create_table_artifact", lambda *_, **given: told.append(given["description"])
    )
    monkeypatch.setattr(dashboard.Rankings, "_is_there", lambda *_: is_there)
    now = datetime(2026, 3, 2, tzinfo=UTC)
    stands = tally([], goal_of(Labeling(), ["task"]), now)
    show = dashboard.Rankings("desk", "000")
    for _ in range(2):
        show(stands, "http://page")
    assert len(told) == (not is_there)
    show(replace(stands, silent_since=now.isoformat()), "http://page")
    assert len(told) == (not is_there) + 1


# --- another try, or none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "runs", "cause"),
    [
        ("network", 3, "raise failed with ConnectError: [Errno 111] Connection refused"),
        ("divergence", 1, "raise failed with FloatingPointError: the loss is not finite in step 3"),
        ("input", 1, "InputError: the rubric is wrong: mend it"),
    ],
)
def test_what_another_try_may_mend_is_tried_three_times_and_the_rest_once(
    fail: str,
    runs: int,
    cause: str,
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path))
    nobody = f"http://127.0.0.1:{free_port([])}"
    at_once = tasks.make_stage.with_options(retry_delay_seconds=0)

    @flow
    def one_stage() -> State[Any]:
        config = Toy(fail=fail, folder=nobody)
        return at_once(RAISE, config, {}, return_state=True)  # type: ignore[call-overload,no-any-return]

    settings: dict[Any, Any] = {
        PREFECT_API_URL: servers.prefect.api_url,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings(settings):
        ended = one_stage(return_state=True)
        known = _task_run(ended.state_details.flow_run_id)
    assert (known.state_name, known.run_count) == ("Failed", runs)
    assert known.state is not None
    message = str(known.state.message)
    assert cause in message
    assert len(message.splitlines()) == 1
    (log,) = (tmp_path / "logs" / "stages").iterdir()
    assert log.read_text().count("--- raise ") == runs


def _task_run(flow_run: Any) -> TaskRun:
    """The flow's only task as the dashboard shows it: Prefect hears of its end a moment later."""
    found: list[TaskRun] = []

    def has_ended() -> bool:
        with get_client(sync_client=True) as client:
            among = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
            found[:] = client.read_task_runs(flow_run_filter=among)
        return bool(found and found[0].state and found[0].state.is_final())

    until(has_ended)
    return found[0]


def test_the_retries_outlast_a_server_that_restarts() -> None:
    """Label Studio is back after 10 to 20 s."""
    options = tasks.make_stage
    assert isinstance(options.retry_delay_seconds, list)
    delays = options.retry_delay_seconds[: options.retries]
    least = [
        min(clamped_poisson_interval(delay, options.retry_jitter_factor or 0) for _ in range(2000))
        for delay in delays
    ]
    assert sum(least) > 20
    assert sum(delays) < 60


# --- Label Studio ---------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that nothing was started in."""
    for name in ("PREFECT_API_URL", "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path))
    return tmp_path


def test_label_studio_is_reached_while_prefect_is_away(
    home: Path, servers: Servers, servers_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("servers.json", "credentials.json"):
        shutil.copy(servers_home / name, home)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port([])}/api")
    assert servers.label_studio is not None
    assert tasks.label_studio().url == servers.label_studio.url


@pytest.mark.parametrize("given", ["", "http://127.0.0.1:1"])
def test_a_label_studio_that_is_away_is_named_and_asked_again(
    home: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", given)
    with pytest.raises(ConnectionError, match=f"^Label Studio .*{given}") as caught:
        tasks.label_studio()
    assert tasks.may_end_otherwise(caught.value)
