"""Makes the pictures of the labeling page in docs/images anew, from a real server and browser:

    python -m tests.labeling.screenshots

They are looked at by people, so nothing compares them; the tests beside this file prove the page.
Chinese and Japanese need a font, e.g. Debian's fonts-wqy-microhei.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from flows.starting import down, up
from labeling import page
from labeling.label_studio import LabelStudio
from labeling.publishing import publish
from labeling.records import Candidates, Completion, Message, Prompt
from tests.conftest import start_chromium
from tests.labeling.driving import CHIP, MODAL, LabelingPage

IMAGES = Path(__file__).parents[2] / "docs" / "images"
NONE = Image.Dither.NONE
DESK, TABLET = (1400, 900), (820, 1180)

KETTLE = Candidates(
    Prompt(
        messages=(
            Message(
                "system", "You answer customers of a shop for kitchen goods. Be brief and kind."
            ),
            Message("user", "I ordered a kettle two weeks ago. Where is it?"),
            Message("assistant", "I am sorry for the wait! May I have your order number?"),
            Message("user", "It is 4711. What can you do for me if it got lost?"),
        )
    ),
    (
        Completion(
            "I cannot see your parcel from here. Your confirmation has a link that shows it.\n\n"
            "1. If it has not moved for three days, write to us again.\n"
            "2. We then send a new kettle the same day, or refund you: as you prefer."
        ),
        Completion("It will be with you tomorrow at nine."),
        Completion("Kettles are a great choice! We have them in red, blue and green."),
        Completion("I am sorry. Please wait a little longer."),
    ),
)
SORT = Candidates(
    Prompt(
        text="How do I sort a list of words by their length in Python? They may be in any language."
    ),
    (
        Completion(
            "Give `sorted` a key:\n\n```python\nwords = ['pear', 'fig', 'banana']\n"
            "print(sorted(words, key=len))  # ['fig', 'pear', 'banana']\n```\n\n"
            "Words of equal length keep their order, because the sort is stable."
        ),
        Completion("```python\nwords.sort(key=len)\n```\nThis changes the list itself."),
        Completion("Use the sort button."),
        Completion(
            "`len` をキーにして `sorted(words, key=len)` を使います。元のリストは変わりません。"
        ),
        Completion("可以用 `sorted(words, key=len)`，它会返回一个新的列表。"),
        Completion("استخدم `sorted(words, key=len)` وستحصل على قائمة جديدة.\nOr sort in place."),
        Completion("אפשר להשתמש ב־sorted(words, key=len)\u202e.txt, וזה מחזיר רשימה חדשה."),
        Completion("<b>Sorting</b> is done with <script>sort()</script>."),
        Completion(""),
    ),
)


def rank(at: LabelingPage, task: Candidates, *tiers: tuple[int, ...]) -> None:
    positions = page.shown_positions(task.key, len(task.completions))
    for tier, indices in zip(page.TIERS, tiers, strict=False):
        for index in indices:
            at.move_by_keys(page.item_id(task.key, positions[index]), tier)
    at.run("document.activeElement.blur()")


def save(at: LabelingPage, name: str, size: tuple[int, int]) -> None:
    """A picture with few colours: text needs no more, and the repository stays small."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    at.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    at.wait(lambda: at.run("return [innerWidth, innerHeight]") == list(size))
    path = IMAGES / f"{name}.png"
    at.browser.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(200, Image.Quantize.MAXCOVERAGE, dither=NONE).save(
        path, optimize=True
    )
    print(f"{path}: {path.stat().st_size // 1000} kB")


def main(home: Path) -> None:
    servers = up(home, ("label_studio",))
    assert servers.label_studio is not None
    label_studio = LabelStudio(servers.label_studio.url, servers.label_studio.token)
    kettle, sort = (label_studio.ensure_project(f"{name} 1", None) for name in ("shop", "python"))
    publish(label_studio, kettle, [KETTLE])
    publish(label_studio, sort, [SORT])
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        sys.exit("Debian's packages chromium and chromium-driver are needed")
    with tempfile.TemporaryDirectory() as profile:
        chrome = start_chromium(binary, driver, Path(profile))
        try:
            at = LabelingPage(chrome, servers.label_studio.url, home)
            at.browser.get(f"{kettle.url}/data?labeling=1")
            at.wait(lambda: at.all(CHIP) and at.all(f"{MODAL} .rl-instructions"))
            at.wait(lambda: at.run("return document.getAnimations().length") == 0)
            save(at, "labeling-instructions", DESK)
            at.open(kettle)
            rank(at, KETTLE, (0,), (3,), (1, 2))
            save(at, "labeling", DESK)
            at.open(sort)
            save(at, "labeling-tablet", TABLET)
            rank(at, SORT, (0,), (1,), (3, 4), (), (2,))
            save(at, "labeling-k9", DESK)
        finally:
            chrome.quit()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            try:
                main(Path(folder))
            finally:
                down(Path(folder))
