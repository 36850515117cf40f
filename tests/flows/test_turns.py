"""Which round falls to a Prefect run: the round's own file tells, and nobody else."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from flows.config import StopAfter
from flows.turns import is_newest, round_of, take
from labeling.errors import InputError


def note(
    run: Path, number: int, status: str, *flow_runs: str, stopped_after: StopAfter | None = None
) -> None:
    folder = run / "rounds" / f"{number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    document = {"status": status, "stopped_after": stopped_after, "flow_runs": list(flow_runs)}
    (folder / "round.json").write_text(json.dumps(document))


def taken(
    run: Path, flow_run: str, alive: Collection[str] = (), stop_after: StopAfter | None = None
) -> int | None:
    return take(run, flow_run, stop_after, lambda other: other in alive)


def test_the_first_run_of_all_takes_the_first_round(tmp_path: Path) -> None:
    assert taken(tmp_path, "a") == 0


@pytest.mark.parametrize("status", ["running", "waiting", "failed", "interrupted", "complete"])
def test_a_run_stays_at_the_round_that_it_began(tmp_path: Path, status: str) -> None:
    note(tmp_path, 0, status, "a")
    assert taken(tmp_path, "a") == 0
    note(tmp_path, 1, "waiting", "b")
    assert taken(tmp_path, "a", alive={"b"}) == 0


@pytest.mark.parametrize("status", ["running", "waiting", "failed", "interrupted"])
def test_a_round_that_is_not_complete_is_left_to_its_own_run_while_that_lives(
    tmp_path: Path, status: str
) -> None:
    note(tmp_path, 0, "complete", "a")
    note(tmp_path, 1, status, "a", "b")
    assert taken(tmp_path, "c", alive={"b"}) is None
    assert taken(tmp_path, "c", alive={"a"}) == 1  # that one had handed it on


def test_after_a_complete_round_comes_the_next_whoever_made_it(tmp_path: Path) -> None:
    note(tmp_path, 0, "complete", "a")
    assert taken(tmp_path, "b", alive={"a"}) == 1
    note(tmp_path, 1, "complete")  # by the command
    assert taken(tmp_path, "b") == 2


def test_what_was_ranked_in_a_round_that_was_stopped_is_what_the_next_run_goes_on_with(
    tmp_path: Path,
) -> None:
    note(tmp_path, 0, "complete", "a", stopped_after="labels")
    assert taken(tmp_path, "b") == 0
    assert taken(tmp_path, "b", stop_after="reward") == 0
    assert taken(tmp_path, "b", stop_after="labels") == 1  # round after round of rankings alone
    note(tmp_path, 0, "waiting", "a", "b")
    assert taken(tmp_path, "c", alive={"b"}) is None


def test_the_round_that_a_run_was_at_last_is_its_own(tmp_path: Path) -> None:
    note(tmp_path, 0, "complete", "a", "b")
    note(tmp_path, 1, "running", "b", "c")
    assert [round_of(tmp_path, run) for run in ("a", "b", "c", "d")] == [0, 1, 1, None]
    assert not is_newest(tmp_path, 1, "b")
    assert is_newest(tmp_path, 1, "c")
    assert not is_newest(tmp_path, 2, "c")


def test_a_newest_round_that_cannot_be_read_is_told_not_begun_anew(tmp_path: Path) -> None:
    note(tmp_path, 0, "running", "a")
    (tmp_path / "rounds" / "000" / "round.json").write_text("{")
    assert round_of(tmp_path, "a") is None
    with pytest.raises(InputError, match="cannot be read"):
        taken(tmp_path, "a")
