import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.config import Pairs
from labeling.errors import InputError
from labeling.pairs import make_pairs, pairs_of, read_pairs, write_pairs
from labeling.records import (
    Candidates,
    Completion,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    write_candidates,
    write_rankings,
)

TASK = Candidates(Prompt(text="q"), tuple(Completion(t) for t in "abcd"))
RANKING = Ranking(TASK.key, "ann@example.org", ((1,), (0, 2), (3,)))


def texts(pairs):
    return [(p.chosen.text, p.rejected.text) for p in pairs]


def test_strategies_give_their_pairs():
    every, _ = pairs_of(RANKING, TASK, Pairs(strategy="all"))
    assert set(texts(every)) == {
        ("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d"),
    }  # fmt: skip
    adjacent, _ = pairs_of(RANKING, TASK, Pairs(strategy="adjacent"))
    assert set(texts(adjacent)) == {("b", "a"), ("b", "c"), ("a", "d"), ("c", "d")}
    best, _ = pairs_of(RANKING, TASK, Pairs(strategy="best_vs_rest"))
    assert set(texts(best)) == {("b", "a"), ("b", "c"), ("b", "d")}


def test_margin_grows_with_the_distance_in_tiers():
    pairs, _ = pairs_of(RANKING, TASK, Pairs(margin_per_tier=0.5))
    assert {texts([p])[0]: p.margin for p in pairs}[("b", "d")] == 1.0
    assert {texts([p])[0]: p.margin for p in pairs}[("a", "d")] == 0.5


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9))
def test_pairs_are_antisymmetric_and_count_what_differs(tiers_of):
    task = Candidates(Prompt(text="q"), tuple(Completion(str(i)) for i in range(len(tiers_of))))
    tiers = tuple(
        tuple(i for i, t in enumerate(tiers_of) if t == tier) for tier in sorted(set(tiers_of))
    )
    pairs, _ = pairs_of(Ranking(task.key, "x", tiers), task, Pairs())
    found = set(texts(pairs))
    assert len(found) == len(pairs)
    assert all((b, a) not in found for a, b in found)
    expected = {
        (str(i), str(j))
        for i in range(len(tiers_of))
        for j in range(len(tiers_of))
        if tiers_of[i] < tiers_of[j]
    }
    assert found == expected


def test_identical_texts_are_never_paired(tmp_path):
    task = Candidates(Prompt(text="q"), (Completion("a"), Completion("a"), Completion("b")))
    write_candidates([task], tmp_path / "c.parquet")
    write_rankings([Ranking(task.key, "x", ((0,), (1,), (2,)))], tmp_path / "l.parquet")
    metrics = make_pairs(Pairs(), tmp_path / "c.parquet", tmp_path / "l.parquet", tmp_path)
    assert texts(read_pairs(tmp_path / "pairs.parquet")) == [("a", "b"), ("a", "b")]
    assert metrics.identical_texts == 1


def test_bad_prompts_and_full_ties_are_counted_not_paired(tmp_path):
    write_candidates([TASK], tmp_path / "c.parquet")
    rankings = [
        RANKING,
        Ranking(TASK.key, "bad@example.org", RANKING.tiers, bad_prompt=True),
        Ranking(TASK.key, "tie@example.org", ((0, 1, 2, 3),)),
        Ranking(TASK.key, "none@example.org", (), none_acceptable=True),
    ]
    write_rankings(rankings, tmp_path / "l.parquet")
    metrics = make_pairs(Pairs(), tmp_path / "c.parquet", tmp_path / "l.parquet", tmp_path)
    assert (metrics.rankings, metrics.pairs) == (4, 5)
    assert (metrics.bad_prompt, metrics.all_tied, metrics.unranked) == (1, 1, 1)


def test_labels_of_other_completions_are_refused(tmp_path):
    write_candidates([TASK], tmp_path / "c.parquet")
    write_rankings([Ranking("other", "x", ((0,), (1,)))], tmp_path / "l.parquet")
    with pytest.raises(InputError, match="1 of 1 rankings are of completions that are not"):
        make_pairs(Pairs(), tmp_path / "c.parquet", tmp_path / "l.parquet", tmp_path)


@pytest.mark.parametrize("prompt", [Prompt(text="q"), Prompt(messages=(Message("user", "q"),))])
def test_pairs_come_back_as_they_went(tmp_path, prompt):
    pair = PreferencePair(prompt, Completion("a", finished=False), Completion("b"), 0.25, "ann")
    write_pairs([pair], tmp_path / "pairs.parquet")
    (back,) = read_pairs(tmp_path / "pairs.parquet")
    assert back == pair
    assert back.labeler == "ann"
