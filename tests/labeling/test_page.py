"""What a task tells the labeling page, and what it must not tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import page
from labeling.errors import InputError
from labeling.passages import visible
from labeling.records import Candidates, Completion, Message, Prompt

TEXTS = st.lists(st.text(max_size=30), min_size=2, max_size=9)


def text_of(items: list[dict[str, str]]) -> str:
    return "".join(item["body"] for item in items)


def strings(value: Any) -> Iterator[str]:
    """Every string of a JSON document, keys included."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    else:
        yield value


@given(TEXTS)
def test_a_task_shows_every_text_once_at_the_place_that_is_read_back(texts: list[str]) -> None:
    task = Candidates(Prompt(text="q"), tuple(Completion(text) for text in texts))
    data = page.task_data(task)
    shown = [text_of(answer["passages"]) for answer in data["answers"]]
    positions = page.shown_positions(task.key, len(texts))
    assert [shown[position] for position in positions] == [visible(text) for text in texts]
    assert [chip["id"] for chip in data["completions"]] == [
        page.item_id(task.key, n) for n in range(len(texts))
    ]


@given(TEXTS, st.lists(st.booleans(), min_size=9, max_size=9))
def test_a_task_tells_texts_and_nothing_about_where_they_come_from(
    texts: list[str], finished: list[bool]
) -> None:
    """All that is not a text follows from the place on the page alone: the same for every task."""
    prompt = Prompt(messages=(Message("system", "Be kind."), Message("user", "Hello?")))
    completions = zip(texts, finished, strict=False)
    task = Candidates(prompt, tuple(Completion(text, end) for text, end in completions))
    data = page.task_data(task)
    other = Candidates(prompt, tuple(Completion(str(n)) for n in range(len(texts))))
    expected = page.task_data(other)
    for document in (data, expected):
        key = document.pop("key")
        for chip in document["completions"]:
            chip["id"] = chip["id"].removesuffix(f"-{key[:8]}")
        for answer in document["answers"]:
            answer["passages"] = [item["id"].split(".")[0] for item in answer["passages"]][:1]
    assert data == expected


def test_prompts_and_roles_are_shown_turn_by_turn() -> None:
    turns = (Message("system", "Be kind."), Message("user", "a\n```\nb\n```"), Message("\0", "{}"))
    shown = page.task_data(
        Candidates(Prompt(messages=turns), (Completion("one"), Completion("two")))
    )["prompt"]
    assert [(item["id"], item.get("title"), item["body"]) for item in shown] == [
        ("p0-system.0-text", "System", "Be kind."),
        ("p1-user.0-text", "User", "a\n"),
        ("p1-user.1-code", None, "```\nb\n```"),
        ("p2-other.0-text", "␀", "{}"),
    ]


def test_the_order_is_shuffled_by_the_task_and_the_same_every_time() -> None:
    def shown(n: int) -> str:
        task = Candidates(Prompt(text=f"{n}"), tuple(Completion(c) for c in "abc"))
        return "".join(text_of(answer["passages"]) for answer in page.task_data(task)["answers"])

    orders = [shown(n) for n in range(200)]
    assert orders == [shown(n) for n in range(200)]
    assert set(orders) == {"".join(order) for order in permutations("abc")}


@given(TEXTS, st.text(max_size=30))
def test_what_reaches_the_server_is_what_postgresql_and_json_take(
    texts: list[str], prompt: str
) -> None:
    hostile = "\0\ud800"
    task = Candidates(
        Prompt(messages=(Message("user" + hostile, prompt + hostile),)),
        tuple(Completion(text + hostile) for text in texts),
    )
    data = page.task_data(task)
    assert not any("\0" in text for text in strings(data))
    json.dumps(data, ensure_ascii=False).encode()


def test_what_the_page_cannot_take_is_refused_with_a_reason() -> None:
    many = Candidates(Prompt(text="q"), tuple(Completion(str(n)) for n in range(10)))
    with pytest.raises(InputError, match=rf"{many.key}.* 10 completions.* 9"):
        page.task_data(many)
    long = Candidates(Prompt(text="q"), (Completion("a"), Completion("b" * page.MOST_CHARACTERS)))
    with pytest.raises(InputError, match=rf"{long.key}.* 3,000,002 .*3,000,000"):
        page.task_data(long)


def test_the_page_has_the_tiers_and_names_that_are_read_back() -> None:
    xml = page.interface()
    assert tuple(re.findall(r'<Bucket name="(\w+)"', xml)) == page.TIERS
    for name in (page.RANKING, page.COMPLETIONS, page.FLAGS, page.REASON):
        assert f'name="{name}"' in xml
    for alias in (page.NONE_ACCEPTABLE, page.BAD_PROMPT):
        assert f'alias="{alias}"' in xml
