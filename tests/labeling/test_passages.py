from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.passages import LONGEST, passages, visible

# Any code point, surrogates included, and above all those that matter.
HOSTILE = st.text(
    st.one_of(
        st.characters(categories=None),
        st.sampled_from("\0\t\n\r\x1b\x7f\x85\u061c\u200d\u2028\u202e\u2066\u2069\ud800`~ a"),
    )
)
FENCED = st.lists(st.sampled_from(["```", "````", "~~~", "```py", " ```", "x = 1", "", "`a`"])).map(
    "\n".join
)


def test_no_character_acts_hides_or_breaks_the_import() -> None:
    shown = visible("".join(map(chr, range(0x110000))))
    shown.encode()
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} == {"\t", "\n"}
    acting = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not {unicodedata.bidirectional(c) for c in shown} & acting


@given(HOSTILE)
def test_what_is_shown_is_shown_as_it_is(text: str) -> None:
    assert visible(visible(text)) == visible(text)


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_texts_without_such_characters_are_shown_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_marks_say_what_they_stand_for() -> None:
    assert visible("a\0b\x1b[31m\r\n\rc\x7f\x85") == "a␀b␛[31m\n␍c␡⟨U+0085⟩"
    assert visible("user\u202etxt.exe") == "user⟨U+202E⟩txt.exe"
    kept = "tab\t, \u05e0\u200f, \U0001f468\u200d\U0001f469, \u06cc\u200c\u062e, e\u0301"
    assert visible(kept) == kept


@given(st.one_of(HOSTILE, FENCED, FENCED.map(lambda text: text * 60)))
def test_passages_joined_are_the_text(text: str) -> None:
    found = passages(text)
    assert "".join(passage.body for passage in found) == visible(text)
    assert len(found) >= 1


def test_fenced_code_is_told_from_prose() -> None:
    text = (
        "Use `this`:\n```python\nif a:\n    b()\n```\nor\n\n  ~~~~\n```\n  ~~~~\nand ```\nthe end"
    )
    assert [(passage.kind, passage.body) for passage in passages(text)] == [
        ("text", "Use `this`:\n"),
        ("code", "```python\nif a:\n    b()\n```\n"),
        ("text", "or\n\n"),
        ("code", "  ~~~~\n```\n  ~~~~\n"),
        ("text", "and ```\nthe end"),
    ]
    assert [p.kind for p in passages("```\nnever closed\n")] == ["code"]


@pytest.mark.parametrize("text", ["x" * 30_000, "two words " * 3000, "a line\n" * 4000])
def test_a_long_passage_is_cut_where_it_hurts_least(text: str) -> None:
    found = passages(text)
    assert max(len(passage.body) for passage in found) <= LONGEST
    assert len(found) <= 2 * len(text) / LONGEST
    for passage in found[:-1]:
        assert passage.body[-1] in ("\n" if "\n" in text else " " if " " in text else "x")


def test_a_megabyte_of_fences_makes_no_more_passages_than_a_megabyte_of_prose() -> None:
    found = passages("```\n" * 250_000)
    assert len(found) <= 2 * 1_000_000 / LONGEST
