"""What labelers read before they begin: the team's own criteria in Markdown, or Rankloop's."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from markdown_it import MarkdownIt

from labeling.errors import InputError

# Other attributes do not get past Label Studio, which would then seem to hold other instructions.
_KEPT = ("href", "src", "alt", "title", "class")


@cache
def default_instructions() -> str:
    """Helpful, honest and harmless, how to use the page, and two worked examples; Markdown."""
    return files("labeling").joinpath("instructions.md").read_text(encoding="utf-8")


def is_path(instructions: str) -> bool:
    """Whether the config gives a file's path instead of a text."""
    return "\n" not in instructions.strip() and instructions.strip().lower().endswith(".md")


def read_instructions(path: Path) -> str:
    """The Markdown of a file.

    Raises:
        InputError: it is missing, empty, or no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; correct the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({type(error).__name__})") from None
    if not text.strip():
        raise InputError(f"{path} is empty; write there what labelers should know")
    return text


def instructions_html(instructions: str | None) -> str:
    """Markdown as the HTML that Label Studio shows before the first task; the default without it.

    HTML in it is shown literally, and links to scripts are none.
    """
    markdown = MarkdownIt("js-default")
    given = instructions if instructions and instructions.strip() else default_instructions()
    tokens = markdown.parse(given)
    for token in tokens:
        for one in (token, *(token.children or ())):
            one.attrs = {name: value for name, value in one.attrs.items() if name in _KEPT}
    html = markdown.renderer.render(tokens, markdown.options, {}).strip()
    return f'<div class="rl-instructions">{html}</div>'
