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
from labeling.preferences import PreferenceMetrics, load_preferences, parse_preference
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


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no preference pairs"):
        load(tmp_path, [])
    with pytest.raises(InputError, match="1 rows, all of them identical"):
        load(tmp_path, [{"prompt": "Q", "chosen": "a", "rejected": "a"}])


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
