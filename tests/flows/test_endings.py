"""How a run of a round ends when it could not go on: crashed is begun again, skipped is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import State

from flows import dashboard
from flows import round as flow
from flows.config import RoundConfig
from flows.flow_runs import CancelledByHand
from flows.record import AtWork, RoundRecord, Taken
from labeling.config import Prompts
from labeling.errors import InputError

RUN = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., State[Any]]:
    """The state of a deployed run in which looking for its round raises this."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", RUN)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", RUN)

    def run(error: Exception) -> State[Any]:
        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(flow, "take", fail)
        config = RoundConfig(name="people", model="m", prompts=Prompts(path="p"))
        state = flow.rankloop_round.fn(config)
        assert isinstance(state, State)
        return state

    return run


def test_a_prefect_that_goes_away_before_the_round_is_known_crashes_the_run(
    end: Callable[..., State[Any]],
) -> None:
    state = end(httpx.ConnectError("refused"))
    assert state.is_crashed()
    assert state.message == "refused; `watch-rankings` begins it again"


def test_what_no_other_try_can_mend_fails(end: Callable[..., State[Any]]) -> None:
    with pytest.raises(InputError, match="unreadable"):
        end(InputError("round.json is unreadable"))


def test_a_cancelled_run_ends_as_cancelled(end: Callable[..., State[Any]]) -> None:
    assert end(CancelledByHand("cancelled on the dashboard")).is_cancelled()


@pytest.mark.parametrize(
    ("error", "flow_runs", "ends"),
    [
        (AtWork("another process is at work"), [RUN], ("CRASHED", "Crashed")),
        (AtWork("another process is at work"), ["other"], ("COMPLETED", "Skipped")),
        (Taken("another run waits"), [RUN, "other"], ("COMPLETED", "Skipped")),
    ],
    ids=["our own process before", "the process of another run", "another run that waits"],
)
def test_a_round_that_cannot_be_had_is_begun_again_only_by_its_own_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Taken,
    flow_runs: list[str],
    ends: tuple[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RoundConfig(name="people", model="m", prompts=Prompts(path="p"))
    for each in flow_runs:
        with RoundRecord(tmp_path / "runs", config, flow_run=each):
            pass

    def refuse(_: RoundRecord) -> None:
        raise error

    monkeypatch.setattr(RoundRecord, "__enter__", refuse)
    state = flow._take_up(config, 0, RUN, True)
    assert isinstance(state, State)
    assert (state.type.value, state.name) == ends


def test_a_killed_run_is_noted_until_the_dashboard_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(**_: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(dashboard, "get_client", away)
    assert not dashboard.mark_killed(f"http://127.0.0.1/runs/flow-run/{RUN}")
