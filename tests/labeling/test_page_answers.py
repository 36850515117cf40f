"""People answer on the labeling page in a real browser; what they did is what an export gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from labeling import page
from labeling.publishing import publish
from labeling.rankings import Refusal, rankings_from_export
from labeling.records import Candidates, Completion, Prompt, Ranking

if TYPE_CHECKING:
    from labeling.label_studio import LabelStudio, Project
    from tests.labeling.driving import LabelingPage

EMAIL = "labeler@rankloop.local"


def make_task(question: str, count: int) -> Candidates:
    texts = tuple(Completion(f"{question} {n}: {'a word or two, ' * 20}") for n in range(count))
    return Candidates(Prompt(text=question), texts)


def chip(task: Candidates, index: int) -> str:
    return page.item_id(task.key, page.shown_positions(task.key, len(task.completions))[index])


def put(label_studio: LabelStudio, title: str, tasks: list[Candidates]) -> Project:
    project = label_studio.ensure_project(title, None)
    publish(label_studio, project, tasks)
    return project


@pytest.mark.parametrize(
    ("count", "tiers"),
    [
        (4, ((2,), (0, 3), (1,))),
        (9, ((8,), (3,), (0,), (7,), (1,), (6,), (2,), (5,), (4,))),
    ],
)
def test_a_ranking_by_drag_reads_back(
    at: LabelingPage, label_studio: LabelStudio, count: int, tiers: tuple[tuple[int, ...], ...]
) -> None:
    task = make_task(f"Drag {count}?", count)
    project = put(label_studio, f"drag {count}", [task])
    at.open(project)
    for tier, indices in zip(page.TIERS, tiers, strict=False):
        for index in indices:
            at.move_by_pointer(chip(task, index), tier)
    at.wait(lambda: at.all("button[name=submit]:enabled"))[0].click()
    at.wait(lambda: label_studio.count(project).answers == 1)
    rankings, refused = rankings_from_export(label_studio.export(project), [task])
    assert rankings == [Ranking(task.key, EMAIL, tiers)]
    assert not refused


def test_one_sitting_by_keyboard_alone(at: LabelingPage, label_studio: LabelStudio) -> None:
    """Every kind of answer once, each told by the keyboard only; after each the next task opens."""
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    names = ("ties", "none acceptable", "bad prompt", "skip", "partial", "correction", "rest")
    tasks = {name: make_task(f"What of {name}?", 3) for name in names}
    project = put(label_studio, "by keyboard", list(tasks.values()))
    at.open(project)

    def is_open(name: str) -> None:
        at.wait(lambda: f"What of {name}?" in at.prompt)

    def rank(name: str, *tiers: tuple[int, ...]) -> None:
        is_open(name)
        for tier, indices in zip(page.TIERS, tiers, strict=False):
            for index in indices:
                at.move_by_keys(chip(tasks[name], index), tier)

    def tick(key: str) -> None:
        at.press(key)
        at.wait(lambda: at.all(".rl-extra input[type=checkbox]:checked"))

    rank("ties", (1,), (0, 2))
    at.tab_to(".rl-extra input[name=reason]")
    at.press("both are unkind")
    at.press(Keys.ENTER)
    at.wait(lambda: not at.all(".rl-extra input[name=reason]"))
    at.submit()

    rank("none acceptable", (2,), (1,), (0,))
    tick("n")
    at.submit()

    is_open("bad prompt")
    tick("b")
    at.submit()

    is_open("skip")
    at.skip()

    rank("partial", (0,), (1,))
    assert warning(at) == "1 left, would not count"
    at.submit()

    rank("correction", (0,), (1,), (2,))
    assert warning(at) == "all ranked"
    at.submit()
    is_open("rest")
    assert warning(at) == "3 left"
    at.tab_to("[data-testid=prev-task]")
    at.leave(Keys.SPACE)
    rank("correction", (2,), (), (0,))
    at.press(Keys.CONTROL, Keys.ENTER)

    def answers() -> dict[str, Ranking]:
        export = label_studio.export(project)
        rankings, refused = rankings_from_export(export, list(tasks.values()))
        assert refused == {Refusal.SKIPPED: 1, Refusal.PARTIAL: 1}
        names_of = {task.key: name for name, task in tasks.items()}
        return {names_of[ranking.task]: ranking for ranking in rankings}

    at.wait(lambda: answers()["correction"].tiers[0] == (2,))
    assert answers() == {
        "ties": Ranking(tasks["ties"].key, EMAIL, ((1,), (0, 2)), reason="both are unkind"),
        "none acceptable": Ranking(
            tasks["none acceptable"].key, EMAIL, ((2,), (1,), (0,)), none_acceptable=True
        ),
        "bad prompt": Ranking(tasks["bad prompt"].key, EMAIL, (), bad_prompt=True),
        "correction": Ranking(tasks["correction"].key, EMAIL, ((2,), (1,), (0,))),
    }


def warning(at: LabelingPage) -> str:
    """What the page says of an order that is not complete."""
    left = at.after(".rl-rank .htx-ranker-column:first-child", "::after")
    count = len(at.tiers[page.UNRANKED])
    said = left.strip('"').replace("counter(left)", str(count)).replace('" ', "")
    beside = at.after(".lsf-controls", "::before")
    return f"{said}, would not count" if "would not count" in beside else said
