"""The split by prompt over rounds, and the share of earlier pairs."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from labeling.config import Pairs
from labeling.errors import InputError
from labeling.pair_table import read_pairs
from labeling.pairs import make_pairs
from labeling.records import (
    Candidates,
    Completion,
    PreferencePair,
    Prompt,
    Ranking,
    write_candidates,
    write_rankings,
)
from reward.mix import Encoded, held_out_prompts, share_of, split_by_prompt


def encoded(prompts: range, times: int = 1) -> list[Encoded]:
    pairs = [
        PreferencePair(Prompt(text=f"prompt {i}"), Completion(f"a {n}"), Completion("b"))
        for i in prompts
        for n in range(times)
    ]
    return [Encoded(pair, {}) for pair in pairs]


def keys(pairs: list[Encoded]) -> set[str]:
    return {e.pair.prompt.key for e in pairs}


def test_no_prompt_is_on_both_sides_of_the_split() -> None:
    pairs = encoded(range(60), times=3)
    split, earlier = split_by_prompt([pairs], 0.3, seed=1)
    assert not keys(split.train) & keys(split.held_out)
    assert len(split.train) + len(split.held_out) == len(pairs)
    assert not earlier.train
    assert not earlier.held_out
    assert keys(split_by_prompt([pairs], 0.3, seed=2)[0].held_out) != keys(split.held_out)


def test_the_share_of_prompts_is_held_out() -> None:
    held_out = held_out_prompts([keys(encoded(range(2000)))], 0.1, seed=0)
    assert 160 < len(held_out) < 240


@pytest.mark.parametrize("sizes", [(100, 100), (60, 200), (2, 60)])
def test_what_one_round_learned_or_held_out_stays_so_in_the_next(sizes: tuple[int, int]) -> None:
    first, second = encoded(range(sizes[0])), encoded(range(1, 1 + sizes[1]))
    for seed in range(20):
        alone, _ = split_by_prompt([first], 0.2, seed)
        new, old = split_by_prompt([first, second], 0.2, seed)
        assert keys(old.held_out) == keys(alone.held_out)
        assert not keys(new.held_out) & keys(alone.train)
        assert not keys(new.train) & keys(alone.held_out)


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 are needed"):
        split_by_prompt([encoded(range(1), times=5)], 0.3, seed=1)


def test_a_round_of_prompts_that_were_all_learned_is_measured_on_those_of_earlier_ones() -> None:
    first = encoded(range(60))
    alone, _ = split_by_prompt([first], 0.2, seed=0)
    again = [e for e in first if e in alone.train][:3]
    new, old = split_by_prompt([first, again], 0.2, seed=0)
    assert (new.train, new.held_out) == (again, [])
    assert keys(old.held_out) == keys(alone.held_out)


@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_however_few_prompts_there_are_some_are_on_either_side(prompts: int) -> None:
    for seed in range(30):
        split, _ = split_by_prompt([encoded(range(prompts))], 0.1, seed)
        assert split.train
        assert split.held_out


def test_earlier_pairs_make_up_the_share_that_is_asked_for() -> None:
    earlier = encoded(range(100))
    assert len(share_of(earlier, 40, None, seed=0)) == 100
    assert len(share_of(earlier, 40, 0.5, seed=0)) == 40
    assert len(share_of(earlier, 40, 0.2, seed=0)) == 10
    assert len(share_of(earlier, 40, 0.9, seed=0)) == 100, "there are no more"
    assert share_of(earlier, 40, 0.0, seed=0) == []
    assert share_of(earlier, 40, 0.5, seed=0) != share_of(earlier, 40, 0.5, seed=1)


def test_a_prompt_of_several_tasks_is_in_one_split(tmp_path: Path) -> None:
    """From rankings to the split, with the prompt's key in the file as its witness."""
    tasks = [
        Candidates(prompt.pair.prompt, (Completion(f"{word} good"), Completion(f"{word} bad")))
        for prompt in encoded(range(8))
        for word in ("hello", "thanks")
    ]
    write_candidates(tasks, tmp_path / "completions.parquet")
    write_rankings([Ranking(t.key, "ann", ((0,), (1,))) for t in tasks], tmp_path / "l.parquet")
    make_pairs(Pairs(), tmp_path / "completions.parquet", tmp_path / "l.parquet", tmp_path)
    pairs = read_pairs(tmp_path / "pairs.parquet")
    written = pq.read_table(tmp_path / "pairs.parquet")["prompt_key"].to_pylist()
    assert written == [p.prompt.key for p in pairs]
    for seed in range(5):
        split, _ = split_by_prompt([[Encoded(pair, {}) for pair in pairs]], 0.3, seed)
        assert len(split.train) + len(split.held_out) == 16
        assert split.held_out
        assert not keys(split.train) & keys(split.held_out)


def test_ties_are_trained_on_and_measure_nothing() -> None:
    decided = encoded(range(10))
    ties = [
        Encoded(PreferencePair(e.pair.prompt, Completion(a), Completion(b), tie=True), {})
        for e in encoded(range(20))
        for a, b in (("x", "y"), ("y", "x"))
    ]
    split, _ = split_by_prompt([decided + ties], 0.3, seed=1)
    assert split.held_out
    assert not any(e.pair.tie for e in split.held_out)
    kept = [e for e in split.train if e.pair.tie]
    assert len(kept) == len(ties) - 2 * len(keys(split.held_out))  # the others are nowhere
    with pytest.raises(InputError, match="at least 2 are needed"):
        split_by_prompt([decided[:1] + ties], 0.3, seed=1)
