"""Existing preference pairs in TRL's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from labeling.config import Preferences
from labeling.errors import InputError
from labeling.pair_table import read_pairs, write_pairs
from labeling.preferences import (
    PreferenceMetrics,
    choose,
    load_preferences,
    parse_preference,
)
from labeling.records import Completion, Message, PreferencePair, Prompt

CONFIG = Preferences(data="pairs.jsonl")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(folder: Path, rows: Sequence[Any]) -> tuple[PreferenceMetrics, list[PreferencePair]]:
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = load_preferences(CONFIG, str(data), folder)
    return metrics, read_pairs(folder / "pairs.parquet")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Q:", "chosen": " yes", "rejected": " no"}, Prompt(text="Q:")),
        ({"chosen": "Q: yes", "rejected": "Q: no"}, Prompt(text="Q:")),
        (
            {"prompt": [user("Q")], "chosen": [assistant(" yes")], "rejected": [assistant(" no")]},
            Prompt(messages=(Message("user", "Q"),)),
        ),
        (
            {
                "chosen": [user("Q"), assistant(" yes")],
                "rejected": [user("Q"), assistant(" no")],
            },
            Prompt(messages=(Message("user", "Q"),)),
        ),
        (  # a text beside conversations that hold it already
            {
                "prompt": "Q",
                "chosen": [user("Q"), assistant(" yes")],
                "rejected": [user("Q"), assistant(" no")],
            },
            Prompt(messages=(Message("user", "Q"),)),
        ),
        (  # a text beside answers alone
            {"prompt": "Q", "chosen": [assistant(" yes")], "rejected": [assistant(" no")]},
            Prompt(messages=(Message("user", "Q"),)),
        ),
    ],
)
def test_every_form_of_trl_is_read(tmp_path: Path, row: dict[str, Any], prompt: Prompt) -> None:
    _, (pair,) = load(tmp_path, [row])
    assert pair == PreferencePair(prompt, Completion(" yes"), Completion(" no"))


WORD = st.text("ab", min_size=1, max_size=3)
TEXT = st.lists(WORD, min_size=1, max_size=4).map(" ".join)


END = st.sampled_from(["", ".", "!", " ", ".."])


@given(TEXT, TEXT, TEXT, END, END)
def test_an_implicit_prompt_is_trls_but_never_ends_within_a_word(
    shared: str, left: str, right: str, left_end: str, right_end: str
) -> None:
    from trl.data_utils import extract_prompt  # noqa: PLC0415 (takes seconds)

    chosen, rejected = f"{shared}: {left}{left_end}", f"{shared}: {right}{right_end}"
    assume(chosen != rejected)
    pair, implicit = parse_preference({"chosen": chosen, "rejected": rejected}, "here")
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
    ours = pair.prompt.text or ""
    assert implicit
    assert theirs["prompt"].startswith(ours)
    beyond = theirs["prompt"].removeprefix(ours).strip(" ")
    assert beyond.isalnum() or not beyond
    assert pair.chosen.text
    assert pair.rejected.text
    assert ours + pair.chosen.text == chosen
    assert ours + pair.rejected.text == rejected
    assert not (ours[-1].isalnum() and pair.chosen.text[0].isalnum())


def test_an_answer_that_the_other_begins_with_is_not_taken_for_the_prompt(tmp_path: Path) -> None:
    short, long = "Human: hi Assistant: Yes", "Human: hi Assistant: Yes."
    same = {"chosen": short, "rejected": short}
    metrics, (pair,) = load(tmp_path, [{"chosen": short, "rejected": long}, same])
    assert pair.prompt == Prompt(text="Human: hi Assistant:")
    assert (pair.chosen.text, pair.rejected.text) == (" Yes", " Yes.")
    assert metrics.identical_texts == 1


def test_margins_are_kept_and_identical_and_repeated_pairs_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "Q:", "chosen": "a", "rejected": "b", "margin": 2}
    other = {"prompt": "R:", "chosen": "a", "rejected": "b"}
    same = {"prompt": "Q:", "chosen": "a", "rejected": "a"}
    metrics, pairs = load(tmp_path, [row, row, same, other])
    assert metrics == PreferenceMetrics(3, 2, identical_texts=1, duplicates=1, implicit_prompts=0)
    assert [pair.margin for pair in pairs] == [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Q", "chosen": "a"}, "line 2: 'rejected' is missing"),
        ({"prompt": "Q", "chosen": "a", "rejected": 3}, "line 2: 'rejected' is int"),
        ({"prompt": "Q", "chosen": [{"role": "user"}], "rejected": "b"}, "'chosen' is list"),
        ({"prompt": "Q", "chosen": "a", "rejected": [assistant("b")]}, "one of 'chosen' and"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "line 2: 'prompt' is int"),
        ({"chosen": "a", "rejected": "b"}, "share no beginning .*, and there is no 'prompt'"),
        ({"chosen": "a", "rejected": "a."}, "share no beginning .*, and there is no 'prompt'"),
        ({"prompt": "Q", "chosen": "a \ud800", "rejected": "b"}, r"'chosen' holds \\ud800, half"),
        (
            {"prompt": [user("Q")], "chosen": [assistant("a")], "rejected": [assistant("\udfff")]},
            r"'rejected' holds \\udfff, half a character",
        ),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": "3"}, "'margin' is '3'"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "margin": True}, "'margin' is True"),
        (
            {
                "chosen": [user("Q"), assistant("a")],
                "rejected": [user("Q"), assistant("b"), user("c"), assistant("d")],
            },
            r"'rejected' must be one message of the assistant, not 3 \(assistant, user, assistant",
        ),
        (
            {
                "prompt": [user("Q")],
                "chosen": [assistant("a")],
                "rejected": [assistant("b")],
            },
            "1 pairs are conversations and 1 are plain text",
        ),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path: Path, row: Any, words: str) -> None:
    good = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path, [good, row])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pairs.parquet").exists()


def labelled(labels: Any, first: str = "a", second: str = "b", **more: Any) -> dict[str, Any]:
    return {"prompt": "Q:", "completions": [first, second], "labels": labels, **more}


@given(
    st.sampled_from([([1, 0], True), ([0, 1], False), ([1.0, 0.0], True)]),
    st.sampled_from(["text", "messages", "implicit"]),
)
def test_a_labelled_pair_is_the_pair_with_the_chosen_one_first(
    given_labels: tuple[list[float], bool], form: str
) -> None:
    labels, is_first = given_labels
    good, bad = {
        "text": (" yes", " no"),
        "messages": ([assistant(" yes")], [assistant(" no")]),
        "implicit": ("Q: yes", "Q: no"),
    }[form]
    row: dict[str, Any] = {"prompt": [user("Q")] if form == "messages" else "Q:", "margin": 2}
    if form == "implicit":
        del row["prompt"]
    two = [good, bad] if is_first else [bad, good]
    chosen, verdict = choose({**row, "completions": two, "labels": labels}, "here")
    assert verdict == "preference"
    plain = parse_preference({**row, "chosen": good, "rejected": bad}, "here")
    assert parse_preference(chosen, "here") == plain


def test_ties_that_are_given_follow_the_rule_and_no_preference_is_none(tmp_path: Path) -> None:
    rows = [
        labelled([0, 1]),
        labelled([0.5, 0.5], "c", "d", margin=3),
        labelled([1, 1], "e", "f"),
        labelled([0, 0], "g", "h"),
        labelled([1, 0], "i", "i"),
    ]
    metrics, pairs = load(tmp_path, rows)
    assert metrics == PreferenceMetrics(1, 1, 1, 0, 0, ties_kept=0, ties_dropped=2, unlabeled=1)
    assert [(p.chosen.text, p.rejected.text) for p in pairs] == [("b", "a")]
    kept = Preferences(data="pairs.jsonl", ties="keep")
    metrics = load_preferences(kept, str(tmp_path / "pairs.jsonl"), tmp_path)
    assert (metrics.pairs, metrics.ties_kept, metrics.ties_dropped) == (1, 2, 0)
    ties = [p for p in read_pairs(tmp_path / "pairs.parquet") if p.tie]
    assert [p.chosen.text + p.rejected.text for p in ties] == ["cd", "dc", "ef", "fe"]
    assert {p.margin for p in ties} == {0.0}


def test_ties_of_another_round_are_counted_once_and_kept_as_they_are(tmp_path: Path) -> None:
    prompt, a, b = Prompt(text="Q"), Completion("a"), Completion("b")
    rows = [PreferencePair(prompt, a, b, tie=True), PreferencePair(prompt, b, a, tie=True)]
    rows.append(PreferencePair(prompt, a, Completion("c"), 1.0))
    write_pairs(rows, tmp_path / "earlier.parquet")
    for ties, kept in (("keep", rows), ("drop", rows[2:])):
        config = CONFIG.model_copy(update={"ties": ties})
        metrics = load_preferences(config, str(tmp_path / "earlier.parquet"), tmp_path)
        assert (metrics.ties_kept + metrics.ties_dropped, metrics.pairs) == (1, 1)
        assert read_pairs(tmp_path / "pairs.parquet") == kept


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            labelled([2, 1]),
            r"line 2: 'labels' is \[2, 1\]; for two completions it must be \[1, 0\]",
        ),
        (labelled([True, False]), r"'labels' is \[true, false\]"),  # TRL's stepwise supervision
        (labelled(1), "'labels' is 1;"),
        (labelled([1, 0, 0]), r"'labels' is \[1, 0, 0\]"),
        (labelled(None), "'labels' is null"),
        (
            labelled([1, 0]) | {"completions": ["a"]},
            "'completions' holds 1; it must be a list of t",
        ),
        (labelled([1, 0]) | {"completions": "ab"}, "'completions' is str; it must be"),
        (labelled([1, 0]) | {"completions": ["a", 3]}, "line 2: 'rejected' is int"),
    ],
)
def test_labels_of_another_form_are_named(tmp_path: Path, row: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path, [labelled([1, 0]), row])
    assert "\n" not in str(caught.value)


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no preference pairs"):
        load(tmp_path, [])
    with pytest.raises(InputError, match="1 rows, all of them identical"):
        load(tmp_path, [{"prompt": "Q", "chosen": "a", "rejected": "a"}])
    with pytest.raises(InputError, match="2 rows, 1 of them identical, the others ties or"):
        load(tmp_path, [labelled([1, 0], "a", "a"), labelled([1, 1])])


def test_the_pairs_of_another_round_can_be_given(tmp_path: Path) -> None:
    pair = PreferencePair(
        Prompt(text="Q"), Completion("a", finished=False), Completion("b"), 1.0, "ann"
    )
    write_pairs([pair], tmp_path / "earlier.parquet")
    load_preferences(CONFIG, str(tmp_path / "earlier.parquet"), tmp_path)
    (back,) = read_pairs(tmp_path / "pairs.parquet")
    assert (back, back.labeler) == (pair, "ann")


def test_parquet_of_another_trainer_is_read(tmp_path: Path) -> None:
    rows = [{"chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("b")]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    metrics = load_preferences(CONFIG, str(tmp_path / "p.parquet"), tmp_path)
    assert (metrics.pairs, metrics.implicit_prompts) == (1, 1)
