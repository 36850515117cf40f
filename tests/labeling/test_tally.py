"""Where the ranking stands: counts, pace, and an expected end that one can trust."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from labeling.rankings import Answer, Refusal
from labeling.records import Ranking
from labeling.tally import describe, tally

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def answer(task: int, labeler: str, hours_ago: float, seconds: float = 30.0) -> Answer:
    at = NOW - timedelta(hours=hours_ago)
    return Answer(f"k{task}", labeler, at, seconds, Ranking(f"k{task}", labeler, ((0,), (1,))))


def numbers(tasks: int, each: int = 1) -> dict[str, int]:
    return {f"k{n}": each for n in range(tasks)}


def refusal(task: int, labeler: str, reason: Refusal) -> Answer:
    return Answer(f"k{task}", labeler, NOW, 5.0, refusal=reason)


def test_what_is_there_is_counted_by_task_and_by_labeler() -> None:
    answers = [answer(n, "ann@example.org", 1, seconds=10.0 * n) for n in range(1, 4)]
    answers += [answer(1, "bob@example.org", 0.5), refusal(2, "bob@example.org", Refusal.SKIPPED)]
    counted = tally(answers, numbers(10), 12, NOW)
    assert (counted.rankings, counted.tasks_done, counted.tasks) == (4, 3, 10)
    assert counted.refused == {"skipped": 1}
    ann, bob = counted.labelers
    assert (ann.labeler, ann.rankings, ann.refused, ann.seconds) == ("ann@example.org", 3, 0, 20.0)
    assert (bob.labeler, bob.rankings, bob.refused, bob.seconds) == ("bob@example.org", 1, 1, 30.0)
    assert bob.last == "2026-03-02T12:00:00+00:00"


def test_the_end_is_expected_when_the_rest_is_done_at_the_pace_since_the_first_answer() -> None:
    answers = [answer(n, "ann@example.org", 2 - n / 10) for n in range(10)]
    counted = tally(answers, numbers(30), 30, NOW)
    assert counted.per_hour == 5.0  # ten in the two hours since the first
    assert counted.expected_end == "2026-03-02T16:00:00+00:00"  # twenty at five an hour


def test_the_pace_is_that_of_the_last_day_nights_included() -> None:
    answers = [answer(n, "ann@example.org", 100) for n in range(500)]
    answers += [answer(500 + n, "ann@example.org", 3) for n in range(48)]
    counted = tally(answers, numbers(1000), 1000, NOW)
    assert counted.per_hour == 2.0


def test_nothing_is_expected_of_labelers_who_stopped_or_have_just_begun() -> None:
    gone = [answer(n, "ann@example.org", 30) for n in range(50)]
    begun = [answer(n, "ann@example.org", 0.1) for n in range(2)]
    for answers in ([], gone, begun):
        counted = tally(answers, numbers(100), 100, NOW)
        assert (counted.per_hour, counted.expected_end) == (None, None)


def test_a_round_that_has_enough_expects_no_end() -> None:
    counted = tally([answer(n, "ann@example.org", 1) for n in range(9)], numbers(9), None, NOW)
    assert counted.is_enough
    assert counted.expected_end is None


def test_more_rankings_than_a_task_was_to_get_do_not_stand_in_for_another_task() -> None:
    answers = [answer(0, f"{name}@example.org", 1) for name in ("ann", "bob")]
    answers.append(answer(1, "ann@example.org", 1))
    without = tally(answers, numbers(3), None, NOW)
    assert (without.rankings, without.counting, without.tasks_done) == (3, 2, 2)
    assert not without.is_enough
    assert "1 more on tasks that had enough" in describe(without.document())[0]
    assert tally(answers, numbers(3), 3, NOW).is_enough, "so many were asked for, wherever they are"
    assert tally(answers, numbers(2), None, NOW).is_enough
    assert tally(answers, numbers(2, each=2), None, NOW).tasks_done == 1


def test_refused_answers_do_not_make_the_pace() -> None:
    answers = [refusal(n, "ann@example.org", Refusal.PARTIAL) for n in range(50)]
    assert tally(answers, numbers(100), 100, NOW).per_hour is None


def test_it_reads_well() -> None:
    answers = [answer(n, "ann@example.org", 2 - n / 10) for n in range(10)]
    answers += [refusal(11, "bob@example.org", Refusal.UNKNOWN_ID)]
    lines = describe(tally(answers, numbers(1200), 1500, NOW).document())
    assert lines[0].startswith("10 of 1,500 rankings, 10 of 1,200 tasks done, 5 an hour, done by")
    assert lines[1].startswith("  ann@example.org: 10 rankings, 30 s a task, last Mon 02 Mar")
    assert lines[2].startswith("  bob@example.org: 0 rankings, 1 not usable, last")
    assert lines[3] == "  not used: 1 unknown id"
