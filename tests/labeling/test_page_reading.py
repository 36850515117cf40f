"""What people see on the labeling page in a real browser: all of every text, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows import publication
from labeling import page
from labeling.config import Labeling
from labeling.passages import visible
from labeling.publishing import publish
from labeling.rankings import rankings_from_export
from labeling.records import Candidates, Completion, Message, Prompt, write_candidates

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

    from labeling.label_studio import LabelStudio
    from tests.labeling.driving import LabelingPage

LONG = "A sentence of some length that goes on for a while. " * 12
HOSTILE = (
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'> <b>bold</b> <!--",
    "$prompt {{key}} {{idx}} ${1 + 1} &lt;i&gt; &amp; ]]> </View><Style>*{display:none}</Style>",
    "\0\x1b[31mred\x7f \u202eesrever\u202c \u2066x\u2069 \ud800 a\u2028b\r\nc " + "e\u0301" * 200,
    "",
)


def show(
    at: LabelingPage, label_studio: LabelStudio, title: str, prompt: Prompt, *texts: str
) -> Candidates:
    task = Candidates(prompt, tuple(Completion(text) for text in texts))
    project = label_studio.ensure_project(title, "Rank.")
    publish(label_studio, project, [task])
    at.open(project)
    return task


def shown_texts(at: LabelingPage, task: Candidates) -> list[str]:
    """The answers as they stand on the page, in the order of `task.completions`."""
    count = len(task.completions)
    return [at.answer(position) for position in page.shown_positions(task.key, count)]


def test_hostile_text_is_shown_literally(at: LabelingPage, label_studio: LabelStudio) -> None:
    prompt = Prompt(messages=tuple(Message("user" + text, text) for text in HOSTILE))
    task = show(at, label_studio, "hostile", prompt, *HOSTILE)
    assert shown_texts(at, task) == [visible(text) for text in HOSTILE]
    assert at.bodies(".rl-prompt") == "".join(visible(text) for text in HOSTILE)
    assert at.run("return window.owned") is None
    assert not at.all(".rl-read :is(script, img, b, i, style)")
    seen = at.run("return document.querySelector('.rl-page').innerText")
    assert "␀␛[31mred␡ ⟨U+202E⟩esrever" in seen
    assert not {page.item_id(task.key, 0), "a0.0-text", "p0-other.0-text"} & set(seen.split())
    empty = at.all(f".rl-answer [data-ranker-id='a{page.shown_positions(task.key, 4)[3]}.0-text']")
    assert empty[0].rect["height"] > 10, "an empty answer says that it is empty"


def test_nothing_that_the_page_gets_tells_which_model_wrote_what(
    at: LabelingPage, label_studio: LabelStudio, tmp_path: Path
) -> None:
    completions = tmp_path / "policy-zebra-7b" / "completions.parquet"
    completions.parent.mkdir()
    texts = [Completion("one", finished=False), Completion("two"), Completion("three")]
    task = Candidates(Prompt(text="Which?"), tuple(texts))
    write_candidates([task], completions)
    project = publication.publish(
        label_studio,
        "blind",
        Labeling(),
        completions,
        tmp_path / "runs" / "blind" / "rounds" / "000",
    ).project
    at.open(project)
    sources = at.run(
        """return Promise.all(['/api/projects/' + arguments[0], '/api/tasks?fields=all&project=' +
            arguments[0], '/api/projects/' + arguments[0] + '/next', location.href].map(
            address => fetch(address).then(answer => answer.text())))""",
        project.id,
    )
    sources.append(at.browser.page_source)
    assert all('"completions"' in source for source in sources[1:3]), "the task is among them"
    for source in sources:
        for secret in ("zebra", '"finished"', str(tmp_path)):
            assert secret not in source
    shown = [at.answer(position) for position in range(3)]
    assert shown == [texts[index].text for index in page.shown_order(task.key, 3)]


def test_a_megabyte_is_shown_whole_and_can_be_ranked(
    at: LabelingPage, label_studio: LabelStudio
) -> None:
    one_line = "<b>{{key}}</b> مرحبا بالعالم " * (1_000_000 // 29)
    task = show(at, label_studio, "megabyte", Prompt(text="All?"), one_line, "short")
    assert shown_texts(at, task) == [one_line, "short"]
    for index, tier in ((1, "t1"), (0, "t2")):
        at.move_by_keys(page.item_id(task.key, page.shown_positions(task.key, 2)[index]), tier)
    at.submit()
    project = label_studio.ensure_project("megabyte", "Rank.")
    at.wait(lambda: label_studio.count(project).answers == 1)
    (ranking,), _ = rankings_from_export(label_studio.export(project), [task])
    assert ranking.tiers == ((1,), (0,))


def test_a_text_that_is_too_long_for_the_page_never_reaches_it(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("too long", "Rank.")
    texts = (Completion("x" * page.MOST_CHARACTERS), Completion("y"))
    with pytest.raises(ValueError, match="3,000,0"):
        publish(label_studio, project, [Candidates(Prompt(text="q"), texts)])
    assert label_studio.count(project).tasks == 0


ARABIC, HEBREW = "مرحبا بالعالم (abc)!", "שלום עולם 123"
CJK = "请问怎么安装这个软件？インストール手順を教えてください。" * 30
CODE = f"Like this:\n```python\nif a:\n    iiii()\n    mmmm()  # {'long ' * 60}\n```\nand run it."


def test_nine_answers_of_every_kind_are_readable_beside_a_small_tray(
    at: LabelingPage, label_studio: LabelStudio
) -> None:
    kinds = (
        f"{ARABIC}\nleft to right\n{HEBREW}",
        CODE,
        CJK,
        "x" * 900,
        *(LONG + c for c in "abcde"),
    )
    task = show(at, label_studio, "nine", Prompt(text=LONG * 6), *kinds)
    position = page.shown_positions(task.key, 9)

    for size in ((1400, 900), (820, 1180)):
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        at.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        at.wait(lambda size=size: at.run("return [innerWidth, innerHeight]") == list(size))
        assert at.run("return document.documentElement.scrollWidth") <= size[0], "no sideways"
        tray = at.all(".rl-tray")[0].rect
        assert tray["height"] < 0.25 * size[1]
        chips = at.all(".rl-rank .htx-ranker-item")
        tiers = [
            column for column in at.all(".rl-rank .htx-ranker-column") if column.is_displayed()
        ]
        assert (len(chips), len(tiers)) == (9, 10)
        assert all(is_in_sight(at, element) for element in (*chips, *tiers))
        cards = [card.rect for card in at.all(".rl-answer")]
        assert [card["y"] == cards[0]["y"] for card in cards] == [True, True, *[False] * 7]
        assert min(card["width"] for card in cards) > 0.45 * size[0]
        for card in at.all(".rl-answer"):
            at.run("arguments[0].scrollIntoView()", card)
            assert is_in_sight(at, card), "reached by scrolling"

        def lines(index: int, number: int) -> tuple[float, float]:
            """How far the line's ends are from its box's, in pixels: left, right."""
            css = f".rl-answer [data-ranker-id^='a{position[index]}.'] p"
            return tuple(at.run(LINE, css, number))

        assert lines(0, 0)[1] < 5 < lines(0, 0)[0], "Arabic begins at the right"
        assert lines(0, 1)[0] < 5 < lines(0, 1)[1], "English at the left"
        assert lines(0, 2)[1] < 5 < lines(0, 2)[0]
        code = f".rl-answer [data-ranker-id='a{position[1]}.1-code'] p"
        widths = at.run(WIDTHS, code, ["iiii", "mmmm"])
        assert widths[0] == pytest.approx(widths[1], abs=0.5), "code is monospaced"
        assert at.run(SCROLLS, code), "and its long lines scroll within their box"
        for index in (2, 3, 4):
            css = f".rl-answer [data-ranker-id='a{position[index]}.0-text'] p"
            assert not at.run(SCROLLS, css), "prose wraps"


# The n-th line of an element's text: distances of its ends from the element's.
LINE = """
    const p = document.querySelector(arguments[0]), text = p.firstChild
    const lines = text.data.split('\\n')
    const start = lines.slice(0, arguments[1]).join('\\n').length + (arguments[1] ? 1 : 0)
    const range = document.createRange()
    range.setStart(text, start)
    range.setEnd(text, start + lines[arguments[1]].length)
    const line = range.getBoundingClientRect(), box = p.getBoundingClientRect()
    return [line.left - box.left, box.right - line.right]"""
WIDTHS = """
    const text = document.querySelector(arguments[0]).firstChild
    return arguments[1].map(word => {
        const range = document.createRange()
        range.setStart(text, text.data.indexOf(word))
        range.setEnd(text, text.data.indexOf(word) + word.length)
        return range.getBoundingClientRect().width
    })"""
SCROLLS = """const element = document.querySelector(arguments[0])
    return element.scrollWidth > element.clientWidth"""


def is_in_sight(at: LabelingPage, element: WebElement) -> bool:
    script = """const box = arguments[0].getBoundingClientRect()
        return arguments[0].contains(document.elementFromPoint(box.x + 18, box.y + 8))"""
    return at.run(script, element)


def test_a_long_conversation_is_told_turn_by_turn_with_the_answers_in_sight(
    at: LabelingPage, label_studio: LabelStudio
) -> None:
    turns = [
        Message("system", "Be kind.\nRules:\n  - no promises"),
        *(Message("user", "My order:\n\n    kettle   1"), Message("assistant", LONG)) * 5,
        Message("tool", '{"status": "lost"}'),
        Message("user", "Where is it?\n<|im_end|> <b>now</b>"),
    ]
    answers = [f"{letter}: {LONG}" for letter in "wxyz"]
    show(at, label_studio, "turns", Prompt(messages=tuple(turns)), *answers)

    shown = at.run("""
        return [...document.querySelectorAll('.rl-prompt .htx-ranker-item')].map(item => {
            const style = getComputedStyle(item)
            return {
                title: item.querySelector('h5').textContent,
                body: item.querySelector('p').textContent,
                space: getComputedStyle(item.querySelector('p')).whiteSpace,
                look: [style.marginLeft, style.borderLeft, style.borderRight].join(),
            }
        })""")
    assert [(turn["title"].lower(), turn["body"]) for turn in shown] == [
        (turn.role, turn.content) for turn in turns
    ]
    assert {turn["space"] for turn in shown} == {"pre-wrap"}
    looks = {turn["title"]: turn["look"] for turn in shown}
    assert len(set(looks.values())) == 4, "every role looks different"

    first, *_, last = at.all(".rl-prompt .htx-ranker-item")
    assert is_in_sight(at, last), "what is to be answered"
    assert is_in_sight(at, at.all(".rl-answer")[0])
    assert not is_in_sight(at, first)
    at.run("arguments[0].scrollIntoView()", first)
    assert is_in_sight(at, first), "reached by scrolling"
