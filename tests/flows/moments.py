"""When a test strikes: a share, drawn from SEED, of the time that a step takes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.flows.miniature import Project

SEED = 1
TRIES = 5
STEPS = (
    *("prompts", "sft", "completions", "publish", "simulated", "gate", "freeze"),
    *("pairs", "reward", "ppo", "evaluate", "promote", "report", "summary"),
)


def moments(*case: str) -> Iterator[float]:
    """A share of a step's time, then smaller ones, for when that came too late."""
    share = random.Random(" ".join((str(SEED), *case))).random()
    for tried in range(TRIES):
        yield share / 2**tried
    pytest.fail("the signal never came before the end of the step")


def has_begun(project: Project, step: str, name: str = "mini") -> bool:
    """Whether round.json says that all steps before this one are over, and names none of them as
    the one at work."""
    document = project.round(name)
    before = [each for each in STEPS[: STEPS.index(step)] if name == "mini" or each != "simulated"]
    is_over = set(before) <= set(document["stages"]) and document.get("step") not in before
    return document.get("status") == "running" and is_over
