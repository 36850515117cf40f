"""Numbers in sentences for people."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`counted(1, "ranking")` is "1 ranking", `counted(1200, "ranking")` is "1,200 rankings"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
