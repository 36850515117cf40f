from __future__ import annotations

from pathlib import Path

import pytest

from labeling.errors import InputError
from labeling.instructions import (
    default_instructions,
    instructions_html,
    is_path,
    read_instructions,
)


def test_markdown_becomes_headings_lists_and_tables() -> None:
    html = instructions_html("# Rules\n\n- **kind**\n\n| a | b |\n|---|--:|\n| 1 | 2 |")
    for part in ("<h1>Rules</h1>", "<li><strong>kind</strong></li>", "<td>2</td>"):
        assert part in html


def test_markup_is_shown_literally_and_scripts_are_no_links() -> None:
    html = instructions_html("<b>bold</b> <script>x</script> [go](javascript:x) [ok](https://a.b)")
    assert "&lt;b&gt;bold" in html
    assert "<script" not in html
    assert 'href="javascript' not in html
    assert '<a href="https://a.b">' in html


@pytest.mark.parametrize("given", [None, "", " \n"])
def test_without_instructions_there_are_ours(given: str | None) -> None:
    html = instructions_html(given)
    for word in ("Helpful", "Honest", "Harmless", "No answer is acceptable", "Bad prompt", "Skip"):
        assert f"<strong>{word}</strong>" in html, word
    assert "Ctrl+Enter" in html
    assert html.count("<table>") == 2, "worked examples"
    assert not is_path(default_instructions())


def test_a_path_is_told_from_a_text() -> None:
    assert is_path("criteria.md")
    assert is_path("../of the team/Criteria.MD\n")
    assert not is_path("Rank them.")
    assert not is_path("# Read\nsee criteria.md")


def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "criteria.md"
    complaints = {}
    for content in (None, b" \n", b"\xff\xfe\x00bad\xff"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"criteria\.md") as error:
            read_instructions(path)
        assert "\n" not in str(error.value)
        complaints[content] = str(error.value)
    assert len(set(complaints.values())) == 3
    path.write_text("# Ours", encoding="utf-8-sig")
    assert read_instructions(path) == "# Ours"
