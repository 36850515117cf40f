"""What the labeling page (interface.xml) shows of a task, and the answers it can save.

The completions stand in an order of their own on each task's page, so that a position tells
nothing about where a completion came from. The order follows from the task's key alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from labeling.records import Candidates, Ranking

# Names in interface.xml.
RANKING, COMPLETIONS, FLAGS, REASON = "ranking", "completions", "flags", "reason"
UNRANKED = "_"
TIERS = ("t1", "t2", "t3", "t4", "t5")
ROLES = ("system", "user", "assistant")
NONE_ACCEPTABLE, BAD_PROMPT = "none_acceptable", "bad_prompt"


@cache
def interface() -> str:
    """The labeling page in Label Studio's XML."""
    text = files("labeling").joinpath("interface.xml").read_text(encoding="utf-8")
    return text.strip()  # as Label Studio keeps it, so that the two can be compared


def shown_order(task: str, count: int) -> tuple[int, ...]:
    """Which completion stands at each position of the page: `shown_order(key, K)[position]` is an
    index into `Candidates.completions`."""

    def lot(index: int) -> bytes:
        return hashlib.sha256(f"{task}:{index}".encode()).digest()

    return tuple(sorted(range(count), key=lot))


def shown_positions(task: str, count: int) -> tuple[int, ...]:
    """The inverse of `shown_order`: `shown_positions(key, K)[index]` is a position on the page."""
    order = shown_order(task, count)
    return tuple(sorted(range(count), key=order.__getitem__))


def item_id(position: int) -> str:
    """Name of the item at a position; one that looks like a number would be re-sorted."""
    return f"c{position}"


def turn_id(number: int, role: str) -> str:
    """Name of a conversation's turn: the page tells roles apart by its ending."""
    return f"p{number}-{role if role in ROLES else 'other'}"


def answer_name(position: int) -> str:
    """What people call the item: A, … Z, AA, …"""
    letters = ""
    position += 1
    while position:
        position, last = divmod(position - 1, 26)
        letters = chr(ord("A") + last) + letters
    return letters


def task_data(candidates: Candidates) -> dict[str, Any]:
    """A task's `data`: its key, the prompt, and the completions as they are shown.

    Nothing in it says which policy wrote what. Bodies are shown literally, never as HTML.
    """
    prompt, key = candidates.prompt, candidates.key
    turns = [{"id": "p0", "title": "Prompt", "body": prompt.text or ""}]
    if prompt.messages is not None:
        turns = [
            {"id": turn_id(n, m.role), "title": m.role.capitalize(), "body": m.content}
            for n, m in enumerate(prompt.messages)
        ]
    order = shown_order(key, len(candidates.completions))
    return {
        "key": key,
        "prompt": turns,
        "completions": [
            {
                "id": item_id(position),
                "title": answer_name(position),
                "body": candidates.completions[index].text,
            }
            for position, index in enumerate(order)
        ],
    }


def annotation_result(ranking: Ranking, count: int) -> list[dict[str, Any]]:
    """What the page saves when a labeler answers with `ranking` on a task of `count` completions.

    Raises ValueError when there are more tiers than the page has.
    """
    if len(ranking.tiers) > len(TIERS):
        raise ValueError(f"{len(ranking.tiers)} tiers, but the page has {len(TIERS)}")
    positions = shown_positions(ranking.task, count)
    buckets: dict[str, list[str]] = {UNRANKED: [], **{tier: [] for tier in TIERS}}
    for name, tier in zip(TIERS, ranking.tiers, strict=False):
        buckets[name] = [item_id(positions[index]) for index in tier]
    ranked = {index for tier in ranking.tiers for index in tier}
    buckets[UNRANKED] = [item_id(positions[i]) for i in range(count) if i not in ranked]
    result = [_item(RANKING, "ranker", {"ranker": buckets})]
    flags = [
        name
        for name, raised in (
            (NONE_ACCEPTABLE, ranking.none_acceptable),
            (BAD_PROMPT, ranking.bad_prompt),
        )
        if raised
    ]
    if flags:
        result.append(_item(FLAGS, "choices", {"choices": flags}))
    if ranking.reason:
        result.append(_item(REASON, "textarea", {"text": [ranking.reason]}))
    return result


def _item(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": COMPLETIONS, "type": kind, "value": value}


def fit_tiers(tiers: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """At most as many tiers as the page has: neighbouring tiers are joined, evenly.

    Nine different answers cannot stand in nine tiers on a page that has five.
    """
    if len(tiers) <= len(TIERS):
        return tuple(tuple(tier) for tier in tiers)
    joined: list[list[int]] = [[] for _ in TIERS]
    for rank, tier in enumerate(tiers):
        joined[rank * len(TIERS) // len(tiers)].extend(tier)
    return tuple(tuple(tier) for tier in joined)
