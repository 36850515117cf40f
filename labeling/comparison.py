"""Comparisons of two completions, made by judges and by people alike, and what they add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Comparison:
    """One prompt answered by a and by b. `verdict` is 1 when a wins, 0 when b wins, ½ for a tie."""

    prompt: str
    a: str
    b: str
    verdict: float


def verdict(score_a: float, score_b: float) -> float:
    """1 when a scores higher, 0 when b does, ½ for a tie."""
    return 0.5 if score_a == score_b else float(score_a > score_b)


def win_rate(verdicts: Sequence[float]) -> float:
    """Share of comparisons that a won, a tie counting one half."""
    if not verdicts:
        raise ValueError("no comparisons")
    return sum(verdicts) / len(verdicts)


def wilson_interval(rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22).

        centre = (p + z²/2n) / (1 + z²/n),   half = z √(p(1−p)/n + z²/4n²) / (1 + z²/n)

    Unlike the normal interval it stays inside [0, 1] and keeps a width at 0 and 1. A tie has less
    variance than a win or a loss, so with ties the interval is on the wide side.

    Args:
        rate: the observed share p, in [0, 1].
        n: how many comparisons it was observed on, > 0.
        confidence: coverage, in (0, 1).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
