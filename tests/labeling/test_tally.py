"""Where the ranking stands: counts, pace, and an expected end that one can trust."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from labeling.goal import Goal, Quota, quota
from labeling.rankings import Answer, Refusal
from labeling.records import Ranking
from labeling.tally import describe, standing, tally

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def answer(task: int, labeler: str, hours_ago: float, seconds: float = 30.0) -> Answer:
    at = NOW - timedelta(hours=hours_ago)
    return Answer(f"k{task}", labeler, at, seconds, Ranking(f"k{task}", labeler, ((0,), (1,))))


def goal(tasks: int, wanted: float | None = None, each: int = 1, **given: Any) -> Goal:
    numbers = {f"k{n}": each for n in range(tasks)}
    return Goal(numbers, quota(wanted, numbers), **given)


def refusal(task: int, labeler: str, reason: Refusal) -> Answer:
    return Answer(f"k{task}", labeler, NOW, 5.0, refusal=reason)


def test_what_is_there_is_counted_by_task_and_by_labeler() -> None:
    answers = [answer(n, "ann@example.org", 1, seconds=10.0 * n) for n in range(1, 4)]
    answers += [answer(1, "bob@example.org", 0.5), refusal(2, "bob@example.org", Refusal.SKIPPED)]
    counted = tally(answers, goal(10, 12), NOW)
    assert (counted.rankings, counted.tasks_done, counted.tasks) == (4, 3, 10)
    assert counted.refused == {"skipped": 1}
    ann, bob = counted.labelers
    assert (ann.labeler, ann.rankings, ann.refused, ann.seconds) == ("ann@example.org", 3, 0, 20.0)
    assert (bob.labeler, bob.rankings, bob.refused, bob.seconds) == ("bob@example.org", 1, 1, 30.0)
    assert bob.last == "2026-03-02T12:00:00+00:00"


def test_the_end_is_expected_when_the_rest_is_done_at_the_pace_since_the_first_answer() -> None:
    answers = [answer(n, "ann@example.org", 2 - n / 10) for n in range(10)]
    counted = tally(answers, goal(30, 30), NOW)
    assert counted.per_hour == 5.0  # ten in the two hours since the first
    assert counted.expected_end == "2026-03-02T16:00:00+00:00"  # twenty at five an hour


def test_the_pace_is_that_of_the_last_day_nights_included() -> None:
    answers = [answer(n, "ann@example.org", 100) for n in range(500)]
    answers += [answer(500 + n, "ann@example.org", 3) for n in range(48)]
    counted = tally(answers, goal(1000, 1000), NOW)
    assert counted.per_hour == 2.0


def test_nothing_is_expected_of_labelers_who_stopped_or_have_just_begun() -> None:
    gone = [answer(n, "ann@example.org", 30) for n in range(50)]
    begun = [answer(n, "ann@example.org", 0.1) for n in range(2)]
    for answers in ([], gone, begun):
        counted = tally(answers, goal(100, 100), NOW)
        assert (counted.per_hour, counted.expected_end) == (None, None)


def test_a_round_that_has_enough_expects_no_end() -> None:
    counted = tally([answer(n, "ann@example.org", 1) for n in range(9)], goal(9), NOW)
    assert counted.is_enough
    assert counted.expected_end is None


def test_more_rankings_than_a_task_was_to_get_do_not_stand_in_for_another_task() -> None:
    answers = [answer(0, f"{name}@example.org", 1) for name in ("ann", "bob")]
    answers.append(answer(1, "ann@example.org", 1))
    without = tally(answers, goal(3), NOW)
    assert (without.rankings, without.counting, without.tasks_done) == (3, 2, 2)
    assert not without.is_enough
    assert "1 more on tasks that had enough" in describe(without.document())[0]
    assert tally(answers, goal(3, 3), NOW).is_enough, "so many were asked for, wherever they are"
    assert tally(answers, goal(2), NOW).is_enough
    assert tally(answers, goal(2, each=2), NOW).tasks_done == 1


def test_refused_answers_do_not_make_the_pace() -> None:
    answers = [refusal(n, "ann@example.org", Refusal.PARTIAL) for n in range(50)]
    assert tally(answers, goal(100, 100), NOW).per_hour is None


def test_it_reads_well() -> None:
    answers = [answer(n, "ann@example.org", 2 - n / 10) for n in range(10)]
    answers += [refusal(11, "bob@example.org", Refusal.UNKNOWN_ID)]
    lines = describe(tally(answers, goal(1200, 1500), NOW).document())
    assert lines[0].startswith("10 of 1,500 rankings, 10 of 1,200 tasks done, 5 an hour, done by")
    assert lines[1].startswith("  ann@example.org: 10 rankings, 30 s a task, last Mon 02 Mar")
    assert lines[2].startswith("  bob@example.org: 0 rankings, 1 not usable, last")
    assert lines[3] == "  not used: 1 unknown id"


# --- a share, a deadline, silence -----------------------------------------------------------------


def test_a_share_is_one_of_all_and_surplus_on_a_task_does_not_count() -> None:
    answers = [answer(0, f"{name}@example.org", 1) for name in ("ann", "bob", "cid")]
    answers += [answer(n, "ann@example.org", 1) for n in range(1, 4)]
    stands = tally(answers, goal(5, 0.8), NOW)
    assert (stands.counting, stands.wanted, stands.is_enough) == (4, 4, True)
    stands = tally(answers[:5], goal(5, 0.8), NOW)
    assert (stands.rankings, stands.counting, stands.is_enough) == (5, 3, False)


def waiting(minimum: float, hours_to_deadline: float) -> Goal:
    """Ten tasks, published two days ago."""
    known = goal(10)
    return Goal(
        known.numbers,
        known.wanted,
        minimum=quota(minimum, known.numbers),
        deadline=NOW + timedelta(hours=hours_to_deadline),
        published=NOW - timedelta(days=2),
        remind_after=timedelta(hours=24),
    )


@pytest.mark.parametrize("minimum", [3, 0.3])
def test_the_minimum_is_enough_from_the_deadline_on_and_not_before(minimum: float) -> None:
    answers = [answer(n, "ann@example.org", 1) for n in range(3)]
    second = 1 / 3600
    before = tally(answers, waiting(minimum, second), NOW)
    assert (before.counting, before.wanted, before.minimum) == (3, 10, 3)
    assert not before.is_enough
    assert not before.is_after_deadline
    for hours in (0, -second, -1000):
        after = tally(answers, waiting(minimum, hours), NOW)
        assert (after.counting, after.wanted, after.in_full) == (3, 3, 10)
        assert after.is_enough
    assert not tally(answers[:2], waiting(minimum, -1000), NOW).is_enough


def test_all_that_is_wanted_is_enough_after_the_deadline_too() -> None:
    """A share counts no surplus, where the number that was wanted does."""
    surplus = [answer(0, f"{name}@example.org", 1) for name in ("ann", "bob", "cid", "dan")]
    numbers = goal(10).numbers
    known = Goal(numbers, Quota(4, False), quota(0.3, numbers), NOW - timedelta(hours=1))
    stands = tally(surplus, known, NOW)
    assert (stands.counting, stands.wanted, stands.is_enough) == (4, 4, True)
    stands = tally(surplus[:2], known, NOW)
    assert (stands.counting, stands.wanted, stands.is_enough) == (1, 3, False)


def test_the_end_is_expected_at_the_deadline_where_the_minimum_will_be_there_by_then() -> None:
    answers = [answer(n, "ann@example.org", 1) for n in range(3)]  # three an hour: 2 h 20 for all
    soon = tally(answers, waiting(4, 1), NOW)
    assert soon.expected_end == soon.deadline
    late = tally(answers, waiting(4, 9), NOW)
    assert late.expected_end == "2026-03-02T14:20:00+00:00"
    passed = tally(answers, waiting(6, -1), NOW)
    assert passed.expected_end == "2026-03-02T13:00:00+00:00"
    nobody = tally(answers[:2], waiting(1, 5), NOW)
    assert nobody.per_hour is None
    assert nobody.expected_end == nobody.deadline, "without a pace that much is sure"


def test_the_deadline_is_told_before_and_after() -> None:
    answers = [answer(n, "ann@example.org", 1) for n in range(3)]
    first, then = standing(tally(answers, waiting(0.5, 24), NOW).document())
    assert first.startswith("3 of 10 rankings")
    assert then.startswith("from Tue 03 Mar, ")
    assert then.endswith(" on, 5 rankings will be enough")
    first, then = standing(tally(answers, waiting(0.5, -24), NOW).document())
    assert first.startswith("3 of 5 rankings, 3 of 10 tasks done")
    assert then.startswith("since the deadline, Sun 01 Mar, ")
    assert "5 rankings would be enough in place of 10: the round waits for them" in then


def test_silence_counts_from_the_last_answer_be_it_a_skip_or_from_the_publishing() -> None:
    known = waiting(1, 1000)
    assert tally([], known, NOW).silent_since == "2026-02-28T12:00:00+00:00"
    assert standing(tally([], known, NOW).document())[-1] == "nobody has answered for 48 hours"
    old = [answer(0, "ann@example.org", 26.5)]
    assert standing(tally(old, known, NOW).document())[-1] == "nobody has answered for 26 hours"
    skip = replace(answer(1, "bob@example.org", 23), ranking=None, refusal=Refusal.SKIPPED)
    assert tally([*old, skip], known, NOW).silent_since is None
    done = [answer(n, "ann@example.org", 30) for n in range(10)]
    assert tally(done, known, NOW).silent_since is None, "there is nothing left to answer"


def test_a_tally_of_an_earlier_version_is_told_all_the_same() -> None:
    document = tally([answer(0, "ann@example.org", 30)], waiting(1, 5), NOW).document()
    new = ("in_full", "minimum", "deadline", "is_after_deadline", "silent_since")
    assert len(describe({k: v for k, v in document.items() if k not in new})) == 2
