from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import page
from labeling.rankings import Refusal, rankings_from_export
from labeling.records import Candidates, Completion, Prompt, Ranking

EMAIL = "ann@example.org"


def candidates(count: int = 4, name: str = "q") -> Candidates:
    return Candidates(Prompt(text=name), tuple(Completion(f"{name} {i}") for i in range(count)))


def annotation(result: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "completed_by": {"id": 7, "email": EMAIL},
        "was_cancelled": False,
        "updated_at": "2026-01-01T10:00:00.000000Z",
        "result": result,
    } | given


def exported(task: Candidates, *annotations: dict[str, Any]) -> dict[str, Any]:
    """The tests write c0, c1, … for the items of whichever task it is."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: named(each) for name, each in value.items()}
        if isinstance(value, list):
            return [named(each) for each in value]
        is_item = isinstance(value, str) and re.fullmatch(r"c\d", value)
        return page.item_id(task.key, int(value[1])) if is_item else value

    return {"id": 1, "data": page.task_data(task), "annotations": named(list(annotations))}


def ranked(buckets: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "from_name": "ranking",
            "to_name": "completions",
            "type": "ranker",
            "value": {"ranker": buckets},
        }
    ]


FLAGGED = {
    "from_name": "flags",
    "to_name": "completions",
    "type": "choices",
    "value": {"choices": ["bad_prompt"]},
}


@st.composite
def answers(draw: st.DrawFn) -> tuple[Candidates, Ranking]:
    task = candidates(draw(st.integers(2, 9)), draw(st.text(max_size=5)))
    tier_of = draw(st.lists(st.integers(0, 8), min_size=9, max_size=9))
    tiers = [
        tuple(i for i in range(len(task.completions)) if tier_of[i] == tier) for tier in range(9)
    ]
    ranking = Ranking(
        task.key,
        EMAIL,
        tuple(tier for tier in tiers if tier),
        none_acceptable=draw(st.booleans()),
        bad_prompt=draw(st.booleans()),
        reason=draw(st.sampled_from(["", "too long"])),
    )
    return task, ranking


@given(answers())
def test_what_the_page_saves_reads_back_as_the_same_ranking(
    answer: tuple[Candidates, Ranking],
) -> None:
    task, ranking = answer
    result = page.annotation_result(ranking, len(task.completions))
    rankings, refused = rankings_from_export([exported(task, annotation(result))], [task])
    assert rankings == [ranking]
    assert not refused


def test_the_saved_ids_lead_to_the_texts_that_stood_at_their_places() -> None:
    task = candidates(5)
    shown = page.task_data(task)["completions"]
    text = page.task_data(task)["answers"][3]["passages"][0]["body"]
    best, rest = shown[3], [item["id"] for n, item in enumerate(shown) if n != 3]
    result = ranked({"_": [], "t2": [best["id"]], "t5": rest})
    (ranking,), _ = rankings_from_export([exported(task, annotation(result))], [task])
    (index,) = ranking.tiers[0]
    assert task.completions[index].text == text
    assert len(ranking.tiers[1]) == 4


def test_positions_and_order_are_inverse_and_follow_from_the_key() -> None:
    for count in (1, 2, 9, 30):
        order = page.shown_order("abc", count)
        positions = page.shown_positions("abc", count)
        assert sorted(order) == list(range(count))
        assert [order[positions[i]] for i in range(count)] == list(range(count))
    assert page.shown_order("abc", 30) != page.shown_order("abd", 30)


def test_a_completion_stands_at_every_position_about_equally_often() -> None:
    places = Counter(page.shown_positions(f"task {n}", 4)[0] for n in range(2000))
    assert all(400 < places[position] < 600 for position in range(4))


@pytest.mark.parametrize(
    ("result", "given", "refusal"),
    [
        (ranked({"_": [], "t1": ["c0", "c1", "c2", "c3"]}), {"was_cancelled": True}, "skipped"),
        ([], {}, "untouched"),
        (ranked({"_": ["c0", "c1", "c2", "c3"]}), {}, "untouched"),
        (ranked({"_": ["c3"], "t1": ["c0"], "t2": ["c1", "c2"]}), {}, "partial"),
        (ranked({"_": [], "t1": ["c0"], "t2": ["c1", "c2"]}), {}, "partial"),
        (ranked({"_": [], "t1": ["c0", "c1", "c2", "c9"]}), {}, "unknown_id"),
        (ranked({"_": [], "t10": ["c0", "c1", "c2", "c3"]}), {}, "unknown_bucket"),
        (ranked({"_": [], "t1": ["c0", "c1", "c2", "c3"], "t2": ["c0"]}), {}, "malformed"),
        (ranked({"_": [], "t1": [0, 1, 2, 3]}), {}, "malformed"),
        (ranked({"_": [], "t1": {"c0": 1}}), {}, "malformed"),
        ({"ranker": {}}, {}, "malformed"),
        ([{"from_name": "ranking", "value": {"ranker": ["c0"]}}], {}, "malformed"),
        (ranked({"t1": ["c0", "c1", "c2", "c3"]}), {"completed_by": None}, "unknown_labeler"),
        (ranked({"t1": ["c0", "c1", "c2", "c3"]}), {"completed_by": 7}, "unknown_labeler"),
    ],
)
def test_every_unusable_annotation_is_refused_by_name(
    result: Any, given: dict[str, Any], refusal: str
) -> None:
    task = candidates(4)
    export = [exported(task, annotation(result, **given))]
    assert rankings_from_export(export, [task]) == ([], Counter({Refusal(refusal): 1}))


def test_tasks_that_were_not_published_by_us_are_refused() -> None:
    task, other = candidates(2), candidates(2, "other")
    good = annotation(ranked({"_": [], "t1": ["c0"], "t2": ["c1"]}))
    export = [
        exported(other, good),
        {"id": 3, "data": {"text": "no key"}, "annotations": [good]},
        {"id": 4, "data": None, "annotations": [good]},
        exported(task, good),
    ]
    rankings, refused = rankings_from_export(export, [task])
    assert [r.task for r in rankings] == [task.key]
    assert refused == {Refusal.UNKNOWN_TASK: 3}


@pytest.mark.parametrize("latest_first", [True, False])
def test_the_latest_answer_of_a_labeler_wins(latest_first: bool) -> None:
    task = candidates(2)
    early = annotation(ranked({"t1": ["c0"], "t2": ["c1"]}), updated_at="2026-01-01T10:00:00Z")
    late = annotation(ranked({"t1": ["c1"], "t2": ["c0"]}), updated_at="2026-01-01T11:00:00Z", id=2)
    other = annotation(
        ranked({"t1": ["c0", "c1"]}), completed_by={"email": "bob@example.org"}, id=3
    )
    given_ = [late, early, other] if latest_first else [early, other, late]
    rankings, refused = rankings_from_export([exported(task, *given_)], [task])
    (expected,), _ = rankings_from_export([exported(task, late)], [task])
    assert [r.labeler for r in rankings] == [EMAIL, "bob@example.org"]
    assert rankings[0] == expected
    assert refused == {Refusal.DUPLICATE: 1}


def test_a_later_skip_takes_the_earlier_answer_back() -> None:
    task = candidates(2)
    answer = annotation(ranked({"t1": ["c0"], "t2": ["c1"]}), updated_at="2026-01-01T10:00:00Z")
    skip = annotation([], was_cancelled=True, updated_at="2026-01-01T11:00:00Z", id=2)
    rankings, refused = rankings_from_export([exported(task, answer, skip)], [task])
    assert rankings == []
    assert refused == {Refusal.DUPLICATE: 1, Refusal.SKIPPED: 1}


def test_one_labelers_answers_to_a_task_published_twice_count_once() -> None:
    task = candidates(2)
    first = annotation(ranked({"t1": ["c0"], "t2": ["c1"]}))
    again = annotation(ranked({"t1": ["c0"], "t2": ["c1"]}), id=2)
    rankings, refused = rankings_from_export([exported(task, first), exported(task, again)], [task])
    assert len(rankings) == 1
    assert refused == {Refusal.DUPLICATE: 1}


@pytest.mark.parametrize(
    "ranking", [[], ranked({"_": ["c0", "c1"]}), ranked({"_": ["c1"], "t1": ["c0"]})]
)
def test_a_flagged_prompt_is_an_answer_without_tiers(ranking: list[dict[str, Any]]) -> None:
    task = candidates(2)
    rankings, refused = rankings_from_export(
        [exported(task, annotation([*ranking, FLAGGED]))], [task]
    )
    assert rankings == [Ranking(task.key, EMAIL, (), bad_prompt=True)]
    assert not refused


def test_a_flag_does_not_excuse_an_invalid_ranking() -> None:
    task = candidates(2)
    export = [exported(task, annotation([*ranked({"t1": ["c7"]}), FLAGGED]))]
    assert rankings_from_export(export, [task])[1] == {Refusal.UNKNOWN_ID: 1}


def test_more_tiers_than_the_page_has_cannot_be_saved() -> None:
    ranking = Ranking("k", EMAIL, tuple((i,) for i in range(10)))
    with pytest.raises(ValueError, match="10 tiers"):
        page.annotation_result(ranking, 10)


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00.000001Z"),  # as texts, the other way round
        ("2026-01-01T10:00:00.5Z", "2026-01-01T11:00:00.5+00:59"),
    ],
)
def test_times_are_compared_as_times(early: str, late: str) -> None:
    task = candidates(2)
    first = annotation(ranked({"t1": ["c0"], "t2": ["c1"]}), updated_at=early, id=2)
    last = annotation(ranked({"t1": ["c1"], "t2": ["c0"]}), updated_at=late, id=1)
    (expected,), _ = rankings_from_export([exported(task, last)], [task])
    assert rankings_from_export([exported(task, first, last)], [task])[0] == [expected]


def test_of_two_answers_of_one_moment_the_younger_wins() -> None:
    task = candidates(2)
    first = annotation(ranked({"t1": ["c0"], "t2": ["c1"]}), id=9)
    last = annotation(ranked({"t1": ["c1"], "t2": ["c0"]}), id=10)
    (expected,), _ = rankings_from_export([exported(task, last)], [task])
    assert rankings_from_export([exported(task, last, first)], [task])[0] == [expected]


def test_an_edit_of_the_first_answer_after_the_second_is_what_the_labeler_last_meant() -> None:
    task = candidates(2)
    edited = annotation(ranked({"t1": ["c0"], "t2": ["c1"]}), updated_at="2026-01-01T12:00:00Z")
    second = annotation(ranked({"t1": ["c1"]}), updated_at="2026-01-01T11:00:00Z", id=2)
    rankings, refused = rankings_from_export([exported(task, edited, second)], [task])
    assert len(rankings) == 1
    assert refused == {Refusal.DUPLICATE: 1}


def test_an_answer_after_a_skip_counts() -> None:
    task = candidates(2)
    skip = annotation([], was_cancelled=True, updated_at="2026-01-01T10:00:00Z")
    answer = annotation(
        ranked({"t1": ["c0"], "t2": ["c1"]}), updated_at="2026-01-01T11:00:00Z", id=2
    )
    rankings, refused = rankings_from_export([exported(task, skip, answer)], [task])
    assert len(rankings) == 1
    assert refused == {Refusal.DUPLICATE: 1}


def test_withdrawn_answers_are_counted_unless_they_are_there_or_of_other_tasks() -> None:
    task = candidates(2)
    export = [exported(task, annotation(ranked({"t1": ["c0"], "t2": ["c1"]})))]
    gone = [(task.key, EMAIL), (task.key, "bob@example.org"), ("another", EMAIL)]
    rankings, refused = rankings_from_export(export, [task], gone)
    assert len(rankings) == 1
    assert refused == {Refusal.WITHDRAWN: 1}


def test_an_answer_to_another_task_that_had_this_id_before_is_refused() -> None:
    old, new = candidates(2, "old"), candidates(2, "new")
    answer = annotation(page.annotation_result(Ranking(old.key, EMAIL, ((0,), (1,))), 2))
    assert rankings_from_export([exported(new, answer)], [old, new]) == (
        [],
        Counter({Refusal.UNKNOWN_ID: 1}),
    )
