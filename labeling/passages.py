"""Hostile text → what the labeling page can show: nothing acts, nothing hides, nothing chokes it.

What a model wrote may hold markup, templates, control characters, or a megabyte in one line. The
page gets it as text, never as HTML, so that markup is shown as it stands. The rest is done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Control characters but tab and line feed; line breaks that are none elsewhere; bidirectional
# embeddings, overrides and isolates, which make a text read in another order than it stands; and
# halves of surrogate pairs, which no server takes.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)\n?")

# Chromium lays a paragraph out as a whole: one of a million letters takes it minutes.
LONGEST = 4000  # characters
_MOST = 200  # passages before long ones are cut; more is a text of nothing but fences

Kind = Literal["text", "code"]


@dataclass(frozen=True)
class Passage:
    """A piece of a text: prose that wraps, or fenced code that keeps its lines."""

    kind: Kind
    body: str


def visible(text: str) -> str:
    """The text with a visible mark for every character that would act, hide or break something.

    NUL (which PostgreSQL refuses) becomes `␀`, an escape `␛`, a right-to-left override
    `⟨U+202E⟩`; `\\r\\n` becomes a line feed. All other characters stay as they are.
    """
    return _HIDDEN.sub(_mark, text.replace("\r\n", "\n"))


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def passages(text: str) -> list[Passage]:
    """The text's passages, at least one; their bodies joined are `visible(text)`.

    Where a line is longer than `LONGEST`, the page begins a new one at a space.
    """
    shown = visible(text)
    if len(shown) <= LONGEST and "```" not in shown and "~~~" not in shown:  # most texts
        return [Passage("text", shown)]
    found = list(_split_code(shown))
    if len(found) > _MOST:
        found = [("text", shown)]
    pieces = [Passage(kind, piece) for kind, body in found for piece in _cut(body)]
    return pieces or [Passage("text", "")]


def _split_code(text: str) -> Iterator[tuple[Kind, str]]:
    """Prose and fenced code in turn. The fences belong to the code: they are a part of the text."""
    lines: list[str] = []
    opening = ""
    for line in text.splitlines(keepends=True):
        fence = _FENCE.fullmatch(line)
        if not opening and fence and "`" not in fence[2]:
            if lines:
                yield "text", "".join(lines)
            lines, opening = [line], fence[1]
            continue
        lines.append(line)
        if opening and fence and fence[1].startswith(opening) and not fence[2].strip():
            yield "code", "".join(lines)
            lines, opening = [], ""
    if lines:
        yield "code" if opening else "text", "".join(lines)


def _cut(body: str) -> Iterator[str]:
    """Pieces of at most LONGEST characters: cut after a line break, else after a space."""
    start = 0
    while start < len(body):
        end = start + LONGEST
        if end < len(body):
            breaks = (body.rfind(at, start, end) + 1 for at in "\n ")
            end = next((place for place in breaks if place > start), end)
        yield body[start:end]
        start = end
