"""How many rankings are enough, and from when on."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labeling.config import Labeling
from labeling.goal import Quota, goal_of, in_words, quota
from labeling.overlap import overlaps
from labeling.records import digest

KEYS = [digest(n) for n in range(1000)]
PUBLISHED = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def wanted(**given: Any) -> Quota:
    return goal_of(Labeling(**given), KEYS).wanted


def test_without_a_number_all_rankings_are_wanted_overlap_included() -> None:
    assert wanted() == Quota(1000, by_task=True)
    assert wanted(overlap=3) == Quota(3000, by_task=True)
    several = Counter(overlaps(Labeling(overlap=3, overlap_share=0.2), KEYS).values())[3]
    assert wanted(overlap=3, overlap_share=0.2).rankings == 1000 + 2 * several


def test_a_share_is_one_of_the_rankings_of_all_tasks_overlap_included() -> None:
    assert wanted(wanted=0.8) == Quota(800, by_task=True)
    assert wanted(wanted=0.8, overlap=2).rankings == 1600
    in_full = wanted(overlap=3, overlap_share=0.2).rankings
    assert wanted(wanted=0.5, overlap=3, overlap_share=0.2).rankings == (in_full + 1) // 2
    assert set(goal_of(Labeling(wanted=0.1), KEYS).numbers.values()) == {1}


def test_a_number_is_of_rankings_wherever_they_are() -> None:
    assert wanted(wanted=7) == Quota(7, by_task=False)
    assert wanted(wanted=1) == Quota(1, by_task=False)
    assert wanted(wanted=1.0) == wanted()


@example(100, 70)  # as floats they are a little more than seven
@given(st.integers(1, 10_000), st.integers(1, 1000))
def test_a_share_is_rounded_up_and_taken_as_it_is_written(tasks: int, thousandths: int) -> None:
    numbers = {str(n): 1 for n in range(tasks)}
    found = quota(thousandths / 1000, numbers).rankings
    assert found == -(-thousandths * tasks // 1000)
    assert 1 <= found <= tasks


def test_the_deadline_counts_from_the_publishing() -> None:
    config = Labeling(deadline_hours=48, minimum=0.25)
    goal = goal_of(config, KEYS, PUBLISHED)
    assert goal.deadline == PUBLISHED + timedelta(hours=48)
    assert goal.minimum == Quota(250, by_task=True)
    assert goal_of(config, KEYS).deadline is None, "nobody knows when it was"
    assert goal_of(Labeling(minimum=5), KEYS, PUBLISHED).deadline is None


def test_a_minimum_that_is_no_less_than_what_is_wanted_changes_nothing() -> None:
    for config in (
        Labeling(deadline_hours=1, minimum=1000),
        Labeling(deadline_hours=1, minimum=0.5, wanted=400),
    ):
        goal = goal_of(config, KEYS, PUBLISHED)
        assert (goal.minimum, goal.deadline) == (None, None)


def test_a_round_without_tasks_wants_nothing() -> None:
    assert goal_of(Labeling(wanted=5), [], PUBLISHED).numbers == {}


@pytest.mark.parametrize(("asked", "words"), [(None, "one each"), (1200, "1,200")])
def test_what_is_asked_reads_well(asked: float | None, words: str) -> None:
    assert in_words(asked) == words
    assert (in_words(0.8), in_words(0.005)) == ("80% of all", "0.5% of all")
