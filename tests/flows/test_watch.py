"""Which runs the watcher takes for dead, and which of them it begins again. What it does to real
ones is in test_worker.py and test_faults_on_worker.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from filelock import FileLock
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed, Pending, Running, Scheduled

from flows.flow_runs import REVIVED
from flows.watch import _REVIVED_AT_MOST, _end_if_gone, _revive

MINUTE = timedelta(minutes=1)


@dataclass
class Server:
    """What the watcher asks Prefect for: one run, and the names of its earlier states."""

    run: FlowRun
    states: list[State[Any]] = field(default_factory=list)
    told: list[State[Any]] = field(default_factory=list)

    def read_flow_run(self, _: UUID) -> FlowRun:
        return self.run

    def read_flow_run_states(self, _: UUID) -> list[State[Any]]:
        return self.states

    def read_task_runs(self, **_: Any) -> list[Any]:
        return []

    def set_flow_run_state(self, _: UUID, state: State[Any], force: bool) -> None:
        self.told.append(state)

    @property
    def given(self) -> list[str | None]:
        return [state.name for state in self.told]


def is_gone(run: FlowRun) -> bool:
    server = Server(run)
    said = _end_if_gone(server, 120.0, 600.0, run)  # type: ignore[arg-type]
    assert (said, server.given) in [(None, []), ("crashed", ["Crashed"])]
    return said is not None


def goes_on(crashed: FlowRun, *states: State[Any]) -> bool:
    server = Server(crashed, list(states))
    said = _revive(server, 30.0, crashed)  # type: ignore[arg-type]
    assert (said, server.given) in [(None, []), (None, ["Failed"]), ("revived", [REVIVED])]
    return said is not None


def ago(state: State[Any], since: timedelta) -> State[Any]:
    return state.model_copy(update={"timestamp": datetime.now(UTC) - since})


def run(folder: Path, state: State[Any], *, deployed: bool = True, **config: Any) -> FlowRun:
    config = {"name": "people", "model": "m", "prompts": {"path": "p"}} | config
    return FlowRun(
        id=uuid4(),
        flow_id=uuid4(),
        deployment_id=uuid4() if deployed else None,
        state=state,
        state_type=state.type,
        parameters={"config": config, "number": None, "folder": str(folder)},
    )


def begin(folder: Path, *runs: FlowRun) -> Path:
    """The round that these were at work on, the last one last."""
    place = folder / "runs" / "people" / "rounds" / "000"
    place.mkdir(parents=True, exist_ok=True)
    document = {"status": "running", "flow_runs": [str(each.id) for each in runs]}
    (place / "round.json").write_text(json.dumps(document))
    return place


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[FlowRun]:
    """A run that has been silent for a week, and holds the lock of its round."""
    made = run(tmp_path, ago(Running(), timedelta(days=7)))
    with FileLock(begin(tmp_path, made) / ".lock"):
        yield made


# --- whose process is gone ------------------------------------------------------------------------


def test_a_run_at_work_is_left_alone_however_long_it_takes(at_work: FlowRun) -> None:
    assert not is_gone(at_work)


def test_a_run_without_a_process_is_gone_when_it_had_time_to_take_its_round(
    tmp_path: Path,
) -> None:
    old, new = (run(tmp_path, ago(Running(), n * MINUTE)) for n in (3, 1))
    for each, gone in ((old, True), (new, False)):
        begin(tmp_path, each)
        assert is_gone(each) is gone


def test_a_run_that_ended_its_round_just_now_has_time_to_say_so(tmp_path: Path) -> None:
    old = run(tmp_path, ago(Running(), timedelta(days=1)))
    place = begin(tmp_path, old) / "round.json"
    for ended, gone in ((9 * MINUTE, False), (11 * MINUTE, True)):
        finished = (datetime.now(UTC) - ended).isoformat()
        place.write_text(
            json.dumps({"status": "complete", "flow_runs": [str(old.id)], "finished": finished})
        )
        assert is_gone(old) is gone


@pytest.mark.parametrize("state", [Pending(), Running()], ids=["PENDING", "RUNNING"])
def test_a_run_that_began_no_round_has_more_time(tmp_path: Path, state: State[Any]) -> None:
    assert not is_gone(run(tmp_path, ago(state, 9 * MINUTE)))
    assert is_gone(run(tmp_path, ago(state, 11 * MINUTE)))


def test_a_state_that_came_meanwhile_stays(tmp_path: Path) -> None:
    before = run(tmp_path, ago(Running(), timedelta(days=7)))
    server = Server(before.model_copy(update={"state": Completed()}))
    assert _end_if_gone(server, 120.0, 600.0, before) is None  # type: ignore[arg-type]
    crashed = crashed_run(tmp_path)
    server = Server(crashed.model_copy(update={"state": Scheduled()}))
    assert _revive(server, 30.0, crashed) is None  # type: ignore[arg-type]
    assert server.given == []


# --- who goes on ----------------------------------------------------------------------------------


def crashed_run(folder: Path, **how: Any) -> FlowRun:
    return run(folder, ago(Crashed(), MINUTE), **how)


def test_a_crashed_run_goes_on_though_it_began_no_round(tmp_path: Path) -> None:
    assert goes_on(crashed_run(tmp_path))


def test_a_crashed_run_goes_on_unless_another_took_its_round_over(tmp_path: Path) -> None:
    crashed, other = crashed_run(tmp_path), crashed_run(tmp_path)
    begin(tmp_path, other, crashed)
    assert goes_on(crashed)
    begin(tmp_path, crashed, other)
    assert not goes_on(crashed)


def test_a_run_whose_round_is_at_work_is_not_begun_a_second_time(tmp_path: Path) -> None:
    crashed = crashed_run(tmp_path)
    with FileLock(begin(tmp_path, crashed) / ".lock"):
        assert not goes_on(crashed)
    assert goes_on(crashed)


def test_a_run_that_crashed_just_now_is_left_to_its_worker_for_a_while(tmp_path: Path) -> None:
    assert not goes_on(run(tmp_path, Crashed()))
    assert goes_on(run(tmp_path, ago(Crashed(), timedelta(seconds=40))))


def test_a_run_of_the_command_is_not_begun_by_the_worker(tmp_path: Path) -> None:
    assert not goes_on(crashed_run(tmp_path, deployed=False))


def test_a_run_that_crashes_again_and_again_is_not_begun_again(tmp_path: Path) -> None:
    crashed = crashed_run(tmp_path)
    revived = Scheduled(name=REVIVED)
    assert goes_on(crashed, *(revived, Crashed()) * (_REVIVED_AT_MOST - 1))
    assert not goes_on(crashed, *(revived, Crashed()) * _REVIVED_AT_MOST)
    long_ago = ago(revived, timedelta(days=8))
    assert goes_on(crashed, *[long_ago] * _REVIVED_AT_MOST)


def test_the_last_word_of_a_run_that_is_given_up_says_what_to_do(tmp_path: Path) -> None:
    server = Server(crashed_run(tmp_path), [Scheduled(name=REVIVED)] * _REVIVED_AT_MOST)
    assert _revive(server, 30.0, server.run) is None  # type: ignore[arg-type]
    (last,) = server.told
    assert (last.name, last.message) == (
        "Failed",
        "It crashed 6 times in a week and is left alone: read its log, then retry it, or "
        "`rankloop submit` it again.",
    )


def test_what_crashed_long_ago_is_history(tmp_path: Path) -> None:
    assert goes_on(run(tmp_path, ago(Crashed(), timedelta(days=29))))
    assert not goes_on(run(tmp_path, ago(Crashed(), timedelta(days=31))))
