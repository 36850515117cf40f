"""What `rankloop status` says of rounds, those that wait for people above all."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.config import RoundConfig
from flows.record import RoundRecord
from flows.status import describe_rounds
from labeling.config import Labeling, Prompts
from labeling.errors import InputError
from labeling.goal import goal_of
from labeling.label_studio import LabelStudio
from labeling.rankings import Answer, Refusal
from labeling.records import Ranking, write_candidates
from labeling.tally import Tally, tally
from tests.flows.ranked_round import ANN, publish_round, rank, tasks

PAGE = "http://127.0.0.1:8080/projects/1"


def config(name: str = "demo", **given: Any) -> RoundConfig:
    return RoundConfig(name=name, model="m", prompts=Prompts(path="p"), **given)


def stands(rankings: int, wanted: int) -> Tally:
    now = datetime.now(UTC)
    answers = [
        Answer(f"k{n}", ANN, now - timedelta(minutes=n), 20.0, Ranking(f"k{n}", ANN, ((0,), (1,))))
        for n in range(rankings)
    ]
    answers.append(Answer("k", ANN, now, 3.0, refusal=Refusal.SKIPPED))
    return tally(answers, goal_of(Labeling(), [f"k{n}" for n in range(wanted)]), now)


def stop_at_the_gate(record: RoundRecord, told: Tally) -> None:
    with contextlib.suppress(KeyboardInterrupt), record:
        record.begin("gate")
        record.wait(told, PAGE)
        raise KeyboardInterrupt


def test_a_round_whose_run_was_cancelled_waits_for_nobody(tmp_path: Path) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        RoundRecord(tmp_path, config(), flow_run="run-1") as record,
    ):
        record.begin("gate")
        record.wait(stands(3, 500), PAGE)
        record.is_suspended = True
        raise KeyboardInterrupt
    first, *more = describe_rounds(tmp_path, ended=lambda _: None)
    assert first == "demo round 0: waiting at 'gate'"
    assert f"  rank at {PAGE}" in more
    ends = {"run-1": "cancelled"}
    (only,) = describe_rounds(tmp_path, ended=ends.get)
    assert only.startswith("demo round 0: its run is cancelled, and nobody waits any more")


def test_a_round_that_waits_tells_how_far_people_are(tmp_path: Path) -> None:
    with RoundRecord(tmp_path, config()) as record:
        record.begin("gate")
        record.wait(stands(3, 500), PAGE)
        first, there, ann, refused, where = describe_rounds(tmp_path)
        assert first == "demo round 0: running at 'gate'"
        assert there.startswith("  3 of 500 rankings, 3 of 500 tasks done, ")
        assert "an hour, done by about" in there
        assert ann.strip().startswith(f"{ANN}: 3 rankings, 1 not usable, 20 s a task, last ")
        assert refused.strip() == "not used: 1 skipped"
        assert where == f"  rank at {PAGE}"
        record.begin("freeze")
        assert describe_rounds(tmp_path) == ["demo round 0: running at 'freeze'"]


def test_without_label_studio_a_round_that_nobody_is_at_work_on_tells_what_was_seen_last(
    tmp_path: Path,
) -> None:
    stop_at_the_gate(RoundRecord(tmp_path, config()), stands(3, 500))
    first, there, *_ = describe_rounds(tmp_path)
    assert first == "demo round 0: interrupted at 'gate'; `rankloop run` goes on"
    assert "3 of 500 rankings" in there
    assert "(as of " in there


def test_with_label_studio_it_is_looked_at_now_and_nothing_is_written(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    published = publish_round(label_studio, tmp_path)
    record = RoundRecord(tmp_path / "runs", config("name"))
    stop_at_the_gate(record, stands(0, 4))
    write_candidates(tasks(), record.folder / "completions.parquet")
    document = record.path.read_text().replace(
        '"name": "name"', f'"name": "{published.project.title}"'
    )
    record.path.write_text(document)
    for task in tasks()[:2]:
        rank(label_studio, published, task)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    _, there, ann, _ = describe_rounds(tmp_path / "runs", lambda: label_studio)
    assert there.strip().startswith("2 of 4 rankings, 2 of 4 tasks done")
    assert "as of" not in there
    assert ann.strip().startswith(f"{ANN}: 2 rankings")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_round_that_failed_at_its_first_step_says_why(tmp_path: Path) -> None:
    with contextlib.suppress(InputError), RoundRecord(tmp_path, config()) as record:
        record.begin("prompts")
        raise InputError("p does not exist\n(or is not a file)")
    (line,) = describe_rounds(tmp_path)
    assert line == "demo round 0: failed at 'prompts': p does not exist"


def test_a_round_that_stopped_where_it_should_is_not_told_as_whole(tmp_path: Path) -> None:
    with RoundRecord(tmp_path, config(stop_after="labels")):
        pass
    assert describe_rounds(tmp_path) == ["demo round 0: complete, up to labels as configured"]


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"name": 1, "round": 0, "status": "x"}'])
def test_an_unreadable_round_is_named_and_the_others_are_told(tmp_path: Path, text: str) -> None:
    with RoundRecord(tmp_path, config()):
        pass
    other = tmp_path / "a-damaged-one" / "rounds" / "000" / "round.json"
    other.parent.mkdir(parents=True)
    other.write_text(text)
    first, second = describe_rounds(tmp_path)
    assert first.startswith(f"{other} cannot be read")
    assert second == "demo round 0: complete"
