"""The labeling page in a real browser: what people see, and that what they do is what we read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from labeling import page
from labeling.rankings import Refusal, rankings_from_export
from labeling.records import Candidates, Completion, Message, Prompt, Ranking

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

    from flows.servers import Servers
    from labeling.label_studio import LabelStudio, Project

EMAIL = "labeler@rankloop.local"
HOSTILE = "<script>document.title='owned'</script><b>bold</b> $prompt {{key}}"


def wait(browser: Chrome, what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first truthy value of `what`, which may fail while the page is still being drawn."""
    from selenium.common.exceptions import WebDriverException  # noqa: PLC0415
    from selenium.webdriver.support.ui import WebDriverWait  # noqa: PLC0415

    waiter = WebDriverWait(browser, seconds, ignored_exceptions=[WebDriverException])
    return waiter.until(lambda _: what())


def find(browser: Chrome, css: str) -> list[WebElement]:
    return browser.find_elements("css selector", css)


def log_in(browser: Chrome, url: str, home: Path) -> None:
    browser.get(f"{url}/user/login/")
    password = json.loads((home / "credentials.json").read_text())["password"]
    find(browser, "input[name=email]")[0].send_keys(EMAIL)
    find(browser, "input[name=password]")[0].send_keys(password + "\n")
    wait(browser, lambda: "/user/login" not in browser.current_url)


def open_labeling(browser: Chrome, project: Project, chips: int) -> None:
    """Open the page as a labeler does, and close the instructions."""
    browser.get(f"{project.url}/data?labeling=1")
    wait(browser, lambda: len(find(browser, CHIP)) == chips)
    wait(browser, lambda: "best to worst" in find(browser, MODAL)[0].text)
    find(browser, f"{MODAL} button[aria-label='Close modal']")[0].click()
    wait(browser, lambda: not find(browser, MODAL))


MODAL = ".lsf-modal-ls"
CHIP = ".rl-rank .htx-ranker-item"
TIER_NUMBER = {page.UNRANKED: 0} | {tier: n for n, tier in enumerate(page.TIERS, start=1)}


def tiers_on_page(browser: Chrome) -> dict[str, list[str]]:
    script = """return Object.fromEntries([...document.querySelectorAll(
        '.rl-rank [data-rbd-droppable-id]')].map(column => [
            column.dataset.rbdDroppableId,
            [...column.querySelectorAll('[data-ranker-id]')].map(chip => chip.dataset.rankerId)]))
    """
    return browser.execute_script(script)


def chip(browser: Chrome, id_: str) -> WebElement:
    return find(browser, f".rl-rank [data-ranker-id='{id_}']")[0]


def move_by_keys(browser: Chrome, id_: str, tier: str) -> None:
    """Focus the chip, lift it with Space, carry it with the arrow, drop it with Space."""
    from selenium.webdriver.common.action_chains import ActionChains  # noqa: PLC0415
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    browser.execute_script("arguments[0].focus()", chip(browser, id_))
    keys = ActionChains(browser).send_keys(Keys.SPACE).pause(0.3)
    for _ in range(TIER_NUMBER[tier]):
        keys.send_keys(Keys.ARROW_RIGHT).pause(0.3)
    keys.send_keys(Keys.SPACE).perform()
    wait(browser, lambda: id_ in tiers_on_page(browser)[tier])


def move_by_pointer(browser: Chrome, id_: str, tier: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains  # noqa: PLC0415

    source = chip(browser, id_).rect
    target = find(browser, f".rl-rank [data-rbd-droppable-id='{tier}']")[0].rect
    x, y = (source[a] + source[size] / 2 for a, size in (("x", "width"), ("y", "height")))
    to_x, to_y = target["x"] + target["width"] / 2, target["y"] + target["height"] / 2
    actions = ActionChains(browser, duration=60)
    pointer = actions.w3c_actions.pointer_action
    pointer.move_to_location(int(x), int(y)).pointer_down().move_to_location(int(x) + 8, int(y))
    for step in range(1, 9):
        pointer.move_to_location(int(x + (to_x - x) * step / 8), int(y + (to_y - y) * step / 8))
    pointer.pause(0.3)
    pointer.pointer_up()
    actions.perform()
    wait(browser, lambda: id_ in tiers_on_page(browser)[tier])


def saved(label_studio: LabelStudio, project: Project, tasks: Sequence[Candidates]) -> Any:
    return rankings_from_export(label_studio.export(project), tasks)


def wait_for_answers(label_studio: LabelStudio, project: Project, count: int) -> None:
    deadline = time.monotonic() + 60
    while label_studio.count(project).answers < count:
        assert time.monotonic() < deadline, "the answer did not arrive"


@pytest.fixture
def labeling(
    browser: Chrome, label_studio: LabelStudio, servers: Servers, servers_home: Path
) -> Callable[[str, list[Candidates]], Project]:
    def start(title: str, tasks: list[Candidates]) -> Project:
        project = label_studio.ensure_project(title, "Rank the answers from best to worst.")
        from labeling.publishing import publish  # noqa: PLC0415 (the SDK takes a second)

        publish(label_studio, project, tasks)
        log_in(browser, servers.label_studio.url, servers_home)
        open_labeling(browser, project, len(tasks[0].completions))
        return project

    return start


def test_a_person_ranks_by_keyboard_and_it_reads_back(
    browser: Chrome, label_studio: LabelStudio, labeling: Callable[..., Project]
) -> None:
    texts = ("first\n\nline", HOSTILE, "third", "fourth")
    prompt = Prompt(messages=(Message("system", "Be kind."), Message("user", "Where is it?")))
    tasks = [Candidates(prompt, tuple(Completion(text) for text in texts))]
    project = labeling("page by keyboard", tasks)

    shown = find(browser, ".rl-page")[0].text
    assert all(text in shown for text in ("Be kind.", "Where is it?", "first\n\nline", HOSTILE))
    assert browser.title != "owned"
    assert not {"c0", "c1", "p0-system", "p1-user"} & set(shown.split())

    # Index 2 best, 0 and 1 tied in the middle, 3 worst.
    positions = page.shown_positions(tasks[0].key, 4)
    for index, tier in ((2, "t1"), (0, "t3"), (1, "t3"), (3, "t5")):
        move_by_keys(browser, page.item_id(positions[index]), tier)

    from selenium.webdriver.common.action_chains import ActionChains  # noqa: PLC0415
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    browser.execute_script("document.activeElement.blur()")
    ActionChains(browser).send_keys("n").perform()
    wait(browser, lambda: find(browser, ".rl-extra input[type=checkbox]:checked"))
    find(browser, ".rl-extra input[name=reason]")[0].send_keys("all are unkind" + Keys.ENTER)
    wait(browser, lambda: "all are unkind" in find(browser, ".rl-tray")[0].text)
    ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(
        Keys.CONTROL
    ).perform()

    wait_for_answers(label_studio, project, 1)
    rankings, refused = saved(label_studio, project, tasks)
    assert rankings == [
        Ranking(
            tasks[0].key,
            EMAIL,
            ((2,), (0, 1), (3,)),
            none_acceptable=True,
            reason="all are unkind",
        )
    ]
    assert not refused


def test_a_long_conversation_is_told_turn_by_turn_with_the_answers_in_sight(
    browser: Chrome, labeling: Callable[..., Project]
) -> None:
    long = "A sentence of some length that goes on for a while. " * 12
    turns = [
        Message("system", "Be kind.\nRules:\n  - no promises"),
        *(Message("user", "My order:\n\n    kettle   1"), Message("assistant", long)) * 5,
        Message("tool", '{"status": "lost"}'),
        Message("user", "Where is it?\n<|im_end|> <b>now</b>"),
    ]
    answers = tuple(Completion(f"{letter}: {long}") for letter in "wxyz")
    labeling("page of turns", [Candidates(Prompt(messages=tuple(turns)), answers)])

    shown = browser.execute_script("""
        return [...document.querySelectorAll('.rl-prompt .htx-ranker-item')].map(item => {
            const style = getComputedStyle(item)
            return {
                title: item.querySelector('h5').textContent,
                body: item.querySelector('p').textContent,
                space: getComputedStyle(item.querySelector('p')).whiteSpace,
                look: [style.marginLeft, style.borderLeftColor, style.borderTopStyle].join(),
            }
        })""")
    assert [(turn["title"].lower(), turn["body"]) for turn in shown] == [
        (turn.role, turn.content) for turn in turns
    ]
    assert {turn["space"] for turn in shown} == {"pre-wrap"}
    looks = {turn["title"]: turn["look"] for turn in shown}
    assert len(set(looks.values())) == 4, "every role looks different"

    def is_seen(element: WebElement) -> bool:
        script = """
            const box = arguments[0].getBoundingClientRect()
            return arguments[0].contains(document.elementFromPoint(box.x + 20, box.y + 8))"""
        return browser.execute_script(script, element)

    first, *_, last = find(browser, ".rl-prompt .htx-ranker-item")
    assert is_seen(last), "what is to be answered"
    assert is_seen(find(browser, ".rl-answers .htx-ranker-item")[0])
    assert not is_seen(first)
    for hidden in (first, find(browser, ".rl-answers .htx-ranker-item")[-1]):
        browser.execute_script("arguments[0].scrollIntoView()", hidden)
        assert is_seen(hidden), "reached by scrolling"


def test_nine_answers_are_ranked_by_pointer_in_a_tray_that_stays_in_sight(
    browser: Chrome, label_studio: LabelStudio, labeling: Callable[..., Project]
) -> None:
    long = "A sentence of some length that goes on for a while. " * 12
    tasks = [Candidates(Prompt(text="Nine?"), tuple(Completion(f"{i}. {long}") for i in range(9)))]
    project = labeling("page by pointer", tasks)

    view = browser.execute_script("return [innerWidth, innerHeight]")
    assert view == [1400, 900]
    for element in find(browser, CHIP):
        assert element.rect["y"] + element.rect["height"] < view[1]
    boxes = [item.rect for item in find(browser, ".rl-answers .htx-ranker-item")]
    assert len(boxes) == 9
    assert boxes[0]["y"] == boxes[1]["y"], "two columns"
    assert boxes[2]["y"] > boxes[0]["y"]
    assert min(box["width"] for box in boxes) > 500

    order = page.shown_order(tasks[0].key, 9)
    for index in range(9):
        position = order.index(index)
        move_by_pointer(browser, page.item_id(position), page.TIERS[index // 2])
    wait(
        browser,
        lambda: [b for b in find(browser, "button") if b.text == "Submit" and b.is_enabled()],
    )[0].click()

    wait_for_answers(label_studio, project, 1)
    rankings, refused = saved(label_studio, project, tasks)
    assert rankings == [Ranking(tasks[0].key, EMAIL, ((0, 1), (2, 3), (4, 5), (6, 7), (8,)))]
    assert not refused


def test_an_unfinished_ranking_is_saved_but_not_used(
    browser: Chrome, label_studio: LabelStudio, labeling: Callable[..., Project]
) -> None:
    tasks = [Candidates(Prompt(text="Two?"), (Completion("one"), Completion("two")))]
    project = labeling("page unfinished", tasks)
    move_by_keys(browser, "c0", "t1")
    wait(
        browser,
        lambda: [b for b in find(browser, "button") if b.text == "Submit" and b.is_enabled()],
    )[0].click()
    wait_for_answers(label_studio, project, 1)
    assert saved(label_studio, project, tasks) == ([], {Refusal.PARTIAL: 1})
