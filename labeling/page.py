"""What the labeling page (interface.xml) shows of a task, and the answers it can save.

The completions stand in an order of their own on each task's page, so that a position tells
nothing about where a completion came from. The order follows from the task's key alone.

Every text of a task goes through `passages`: what a model wrote is hostile.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from labeling.errors import InputError
from labeling.passages import passages, visible
from labeling.records import Candidates, Ranking

# Names in interface.xml.
RANKING, COMPLETIONS, FLAGS, REASON = "ranking", "completions", "flags", "reason"
UNRANKED = "_"
# As many as the most completions of a task, so that a strict order can be told. The page shows as
# many as the task has completions.
TIERS = ("t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9")
# Of a task. Nine texts with so much open in 7 s, and a chip takes 5 s to move, on two cores that
# were busy otherwise; with three times as much it took 25 s.
MOST_CHARACTERS = 3_000_000
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


def item_id(task: str, position: int) -> str:
    """Name of the item at a position of the task with this key; one that looks like a number would
    be re-sorted. SQLite gives a deleted task's id to another one: with the key in the name, an
    answer from a page still open on the old task is not taken for one of the new."""
    return f"c{position}-{task[:8]}"


def answer_name(position: int) -> str:
    """What people call the item: A, … I."""
    return chr(ord("A") + position)


def _items(name: str, text: str, title: str = "") -> list[dict[str, str]]:
    """A text as items of a <List>: the page tells kinds of passages apart by their names."""
    items = [
        {"id": f"{name}.{n}-{passage.kind}", "body": passage.body}
        for n, passage in enumerate(passages(text))
    ]
    if title:
        items[0]["title"] = title
    return items


# --- tasks ---------------------------------------------------------------------------------------


def task_data(candidates: Candidates) -> dict[str, Any]:
    """A task's `data`: its key, the prompt, the answers as they are shown, and the chips to rank.

    Nothing in it says which policy wrote what.

    Raises:
        InputError: more completions than the page has tiers, or a text that is too long for it.
    """
    prompt, key = candidates.prompt, candidates.key
    count = len(candidates.completions)
    if count > len(TIERS):
        raise InputError(
            f"task {key} has {count} completions; the labeling page takes {len(TIERS)}"
        )
    if prompt.messages is None:
        turns = _items("p0", prompt.text or "", "Prompt")
    else:
        turns = [
            item
            for n, message in enumerate(prompt.messages)
            for item in _items(
                f"p{n}-{message.role if message.role in ROLES else 'other'}",
                message.content,
                visible(message.role).capitalize(),
            )
        ]
    answers = [
        _items(f"a{position}", candidates.completions[index].text)
        for position, index in enumerate(shown_order(key, count))
    ]
    length = sum(len(item["body"]) for items in (turns, *answers) for item in items)
    if length > MOST_CHARACTERS:
        raise InputError(
            f"task {key}: its texts have {length:,} characters; the labeling page takes "
            f"{MOST_CHARACTERS:,}: lower max_new_tokens, or leave this prompt out"
        )
    return {
        "key": key,
        "prompt": turns,
        "answers": [
            {"title": f"Answer {answer_name(position)}", "passages": items}
            for position, items in enumerate(answers)
        ],
        "completions": [
            {"id": item_id(key, position), "title": answer_name(position)}
            for position in range(count)
        ],
    }


# --- answers -------------------------------------------------------------------------------------


def annotation_result(ranking: Ranking, count: int) -> list[dict[str, Any]]:
    """What the page saves when a labeler answers with `ranking` on a task of `count` completions.

    Raises ValueError when there are more tiers than the page has.
    """
    if len(ranking.tiers) > len(TIERS):
        raise ValueError(f"{len(ranking.tiers)} tiers, but the page has {len(TIERS)}")
    positions = shown_positions(ranking.task, count)
    buckets: dict[str, list[str]] = {UNRANKED: [], **{tier: [] for tier in TIERS}}
    for name, tier in zip(TIERS, ranking.tiers, strict=False):
        buckets[name] = [item_id(ranking.task, positions[index]) for index in tier]
    ranked = {index for tier in ranking.tiers for index in tier}
    buckets[UNRANKED] = [
        item_id(ranking.task, positions[i]) for i in range(count) if i not in ranked
    ]
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
