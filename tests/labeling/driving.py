"""The labeling page as a person uses it, in a real browser: look, drag, press keys.

Nothing sleeps: everything is polled on the page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from labeling import page

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

    from labeling.label_studio import LabelStudio, Project

EMAIL = "labeler@rankloop.local"
MODAL = ".lsf-modal-ls"
CHIP = ".rl-rank [data-ranker-id]"
COLUMNS = (page.UNRANKED, *page.TIERS)


class LabelingPage:
    """One browser at Label Studio, logged in."""

    def __init__(self, browser: Chrome, url: str, home: Path) -> None:
        self.browser = browser
        self.browser.get(f"{url}/user/login/")
        if "/user/login" in self.browser.current_url:
            password = json.loads((home / "credentials.json").read_text())["password"]
            self.all("input[name=email]")[0].send_keys(EMAIL)
            self.all("input[name=password]")[0].send_keys(password + "\n")
            self.wait(lambda: "/user/login" not in self.browser.current_url)

    # --- looking ---------------------------------------------------------------------------------

    def wait(self, what: Callable[[], Any], seconds: float = 60) -> Any:
        """The first truthy value of `what`, which may fail while the page is still being drawn."""
        waiter = WebDriverWait(
            self.browser, seconds, poll_frequency=0.05, ignored_exceptions=[WebDriverException]
        )
        return waiter.until(lambda _: what())

    def all(self, css: str) -> list[WebElement]:
        return self.browser.find_elements("css selector", css)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    @property
    def prompt(self) -> str:
        return self.run("return document.querySelector('.rl-prompt')?.textContent ?? ''")

    def bodies(self, css: str) -> str:
        """The passages under an element, joined: the text as it stands on the page."""
        script = """return [...document.querySelectorAll(arguments[0] + ' .htx-ranker-item')].map(
            item => item.querySelectorAll('p').length > 1 ? item.querySelector('p').textContent : ''
        ).join('')"""
        return self.run(script, css)

    def answer(self, position: int) -> str:
        """The text of an answer, by its place on the page."""
        return self.bodies(f".rl-answers [data-rbd-droppable-id='answer{position}']")

    @property
    def tiers(self) -> dict[str, list[str]]:
        script = """return Object.fromEntries([...document.querySelectorAll(
            '.rl-rank [data-rbd-droppable-id]')].map(column => [column.dataset.rbdDroppableId,
            [...column.querySelectorAll('[data-ranker-id]')].map(chip => chip.dataset.rankerId)]))
        """
        return self.run(script)

    def after(self, css: str, pseudo: str = "::after") -> str:
        """What CSS writes behind an element."""
        script = """const element = document.querySelector(arguments[0])
            return getComputedStyle(element, arguments[1]).content"""
        return self.run(script, css, pseudo)

    # --- opening ---------------------------------------------------------------------------------

    def open(self, project: Project) -> str:
        """The stream of tasks, as a labeler opens it; the instructions' text."""
        self.browser.get(f"{project.url}/data?labeling=1")
        self.wait(lambda: self.all(CHIP))
        instructions = self.wait(lambda: self.all(f"{MODAL} .rl-instructions")[0].text)
        self.wait(lambda: self.press(Keys.ESCAPE) or not self.all(MODAL))
        return instructions

    # --- keys ------------------------------------------------------------------------------------

    def press(self, *keys: str) -> None:
        """Keys held together, the last one first released."""
        actions = ActionChains(self.browser)
        for key in keys[:-1]:
            actions.key_down(key)
        actions.send_keys(keys[-1])
        for key in reversed(keys[:-1]):
            actions.key_up(key)
        actions.perform()

    def tab_to(self, css: str) -> None:
        """Press Tab or Shift+Tab until the element has the focus."""
        where = """const wanted = document.querySelector(arguments[0]), now = document.activeElement
            if (now === wanted) return 'here'
            const before = now.compareDocumentPosition(wanted) & Node.DOCUMENT_POSITION_PRECEDING
            return now !== document.body && before ? 'before' : 'after'"""
        for _ in range(60):
            place = self.run(where, css)
            if place == "here":
                return
            self.press(*([Keys.SHIFT] if place == "before" else []), Keys.TAB)
        raise AssertionError(f"{css} cannot be reached with the Tab key")

    def said(self) -> str:
        """What a screen reader was told last of the chips."""
        script = """return [...document.querySelectorAll('[id^=rbd-announcement]')].map(
            element => element.textContent).join(' ')"""
        return " ".join(self.run(script).split())

    def move_by_keys(self, id_: str, tier: str) -> None:
        """Tab to the chip, lift it with Space, carry it with the arrows, drop it with Space."""
        self.tab_to(f".rl-rank [data-ranker-id='{id_}']")
        here = next(column for column, ids in self.tiers.items() if id_ in ids)
        self.press(Keys.SPACE)
        self.wait(lambda: "You have lifted an item" in self.said())
        steps = COLUMNS.index(tier) - COLUMNS.index(here)
        way = range(COLUMNS.index(here), COLUMNS.index(tier), 1 if steps > 0 else -1)
        for place in way:
            self.press(Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT)
            column = COLUMNS[place + (1 if steps > 0 else -1)]
            self.wait(lambda column=column: f"to list {column} " in self.said())
        self.press(Keys.SPACE)
        self.wait(lambda: "You have dropped the item" in self.said() and id_ in self.tiers[tier])

    # --- pointer ---------------------------------------------------------------------------------

    def move_by_pointer(self, id_: str, tier: str) -> None:
        """Drag a chip into a tier, as often as it takes: what is pressed while the page still moves
        is not lifted, and people try again too."""
        self.wait(lambda: self._drag(id_, tier), 120)

    def _drag(self, id_: str, tier: str) -> bool:
        chip = self.all(f".rl-rank [data-ranker-id='{id_}']")[0].rect
        target = self.all(f".rl-rank [data-rbd-droppable-id='{tier}']")[0].rect
        x, y = (chip[at] + chip[size] / 2 for at, size in (("x", "width"), ("y", "height")))
        to_x, to_y = target["x"] + target["width"] / 2, target["y"] + target["height"] / 2

        def point(*places: tuple[float, float], press: bool = False) -> None:
            actions = ActionChains(self.browser, duration=20)
            pointer = actions.w3c_actions.pointer_action
            for n, place in enumerate(places):
                pointer.move_to_location(*map(int, place))
                if press and n == 0:
                    pointer.pointer_down()
            actions.perform()

        try:
            point((x, y), (x + 8, y), press=True)
            self.wait(lambda: "You have lifted an item" in self.said(), 10)
            point(*((x + (to_x - x) * n / 8, y + (to_y - y) * n / 8) for n in range(1, 9)))
            self.wait(lambda: f"to list {tier} " in self.said(), 10)
        finally:
            release = ActionChains(self.browser)
            release.w3c_actions.pointer_action.pointer_up()
            release.perform()
        self.wait(lambda: "You have dropped the item" in self.said(), 10)
        return id_ in self.tiers[tier]

    # --- answering -------------------------------------------------------------------------------

    def leave(self, *keys: str) -> None:
        """Press keys that end this task, and wait for what comes next."""
        before = self.prompt
        self.press(*keys)
        self.wait(lambda: self.prompt != before)

    def submit(self) -> None:
        self.leave(Keys.CONTROL, Keys.ENTER)

    def skip(self) -> None:
        self.leave(Keys.CONTROL, Keys.SPACE)


def wait_for_answers(
    label_studio: LabelStudio, project: Project, answers: int, skipped: int = 0
) -> None:
    deadline = time.monotonic() + 60
    while True:
        count = label_studio.count(project)
        if (count.answers, count.skipped) == (answers, skipped):
            return
        assert time.monotonic() < deadline, f"{count}, not {answers} and {skipped}"
