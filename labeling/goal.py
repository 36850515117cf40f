"""What a round waits for: how many usable rankings are enough, now and from its deadline on. Pure:
it follows from the config, the tasks' keys, and the moment at which they were published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from labeling.config import Labeling
from labeling.overlap import overlaps


@dataclass(frozen=True)
class Quota:
    """So many usable rankings; `by_task`: of one task no more count than it was to get."""

    rankings: int
    by_task: bool


@dataclass(frozen=True)
class Goal:
    """`numbers`: how many labelers each task was to get, by key. `wanted` is enough at any time,
    `minimum` from the `deadline` on; both are None, or neither. `published`: when the tasks were
    first before labelers, None where that is not known. After `remind_after` without an answer the
    round says so."""

    numbers: Mapping[str, int]
    wanted: Quota
    minimum: Quota | None = None
    deadline: datetime | None = None
    published: datetime | None = None
    remind_after: timedelta | None = None

    def counting(self, quota: Quota, there: Mapping[str, int]) -> int:
        """How many of the usable rankings count, which are `there` by key of their task."""
        if not quota.by_task:
            return sum(there.values())
        return sum(min(there.get(key, 0), number) for key, number in self.numbers.items())

    def missing(self, quota: Quota, there: Mapping[str, int]) -> int:
        return max(0, quota.rankings - self.counting(quota, there))

    def is_after_deadline(self, now: datetime) -> bool:
        return self.deadline is not None and now >= self.deadline

    def nearest(self, there: Mapping[str, int], now: datetime) -> Quota:
        """What opens the gate now: of the two after the deadline, what misses less."""
        if self.minimum is None or not self.is_after_deadline(now):
            return self.wanted
        return min(self.minimum, self.wanted, key=lambda quota: self.missing(quota, there))


def goal_of(config: Labeling, keys: Iterable[str], published: datetime | None = None) -> Goal:
    """The goal of a round with these tasks. A minimum that is no less than what is wanted changes
    nothing, and neither does a deadline while nobody knows when the tasks were published."""
    numbers = overlaps(config, list(keys))
    wanted, minimum = quota(config.wanted, numbers), quota(config.minimum, numbers)
    remind_after = timedelta(hours=config.remind_hours)
    if config.deadline_hours is None or published is None or minimum.rankings >= wanted.rankings:
        return Goal(numbers, wanted, published=published, remind_after=remind_after)
    deadline = published + timedelta(hours=config.deadline_hours)
    return Goal(numbers, wanted, minimum, deadline, published, remind_after)


def quota(asked: float | None, numbers: Mapping[str, int]) -> Quota:
    """What is asked of the tasks with these numbers of labelers: None: all, an int: so many on
    whichever tasks, a float: that share of all."""
    everything = sum(numbers.values())
    if asked is None:
        return Quota(everything, by_task=True)
    if isinstance(asked, int):
        return Quota(asked, by_task=False)
    # As it is written: 0.1 of 30 are 3, though the nearest float is a little more than a tenth.
    return Quota(math.ceil(Fraction(str(asked)) * everything), by_task=True)


def in_words(asked: float | None) -> str:
    """`one each`, `400`, `80% of all`."""
    if asked is None:
        return "one each"
    return f"{asked:,}" if isinstance(asked, int) else f"{100 * asked:.4g}% of all"
