import hashlib
import tempfile
from collections import Counter
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from unittest import mock

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labeling import pairs as pairs_module
from labeling import parquet
from labeling.config import Pairs
from labeling.errors import InputError
from labeling.pair_table import read_pairs, write_pairs
from labeling.pairs import make_pairs
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


def made(config, tasks, rankings):
    """The metrics and the pairs, through files that need not outlive a power cut."""
    with tempfile.TemporaryDirectory() as name, mock.patch("labeling.durable.sync"):
        folder = Path(name)
        write_candidates(tasks, folder / "c.parquet")
        write_rankings(rankings, folder / "l.parquet")
        metrics = make_pairs(config, folder / "c.parquet", folder / "l.parquet", folder)
        return metrics, read_pairs(folder / "pairs.parquet")


def texts(pairs):
    return [(p.chosen.text, p.rejected.text) for p in pairs]


def row(pair):
    finished = (pair.chosen.finished, pair.rejected.finished)
    answers = (pair.chosen.text, pair.rejected.text, *finished)
    return (pair.prompt.text, *answers, pair.margin, pair.labeler, pair.tie)


def tiers_from(numbers):
    """The tier of each completion → tiers; None is not ranked."""
    there = sorted({n for n in numbers if n is not None})
    return tuple(tuple(i for i, n in enumerate(numbers) if n == tier) for tier in there)


# --- The same in plain Python --------------------------------------------------------------------


def asked(a, b, strategy):
    if strategy == "adjacent":
        return abs(a - b) <= 1
    return strategy == "all" or min(a, b) == 0


def expected(config, tasks, rankings):
    """The rows in order, and the counts."""
    rows, counts = [], Counter()
    for task in tasks:
        mine = sorted((r for r in rankings if r.task == task.key), key=lambda r: r.labeler)
        usable = [r for r in mine if r.tiers and not r.bad_prompt]
        counts["unranked"] += sum(not r.tiers and not r.bad_prompt for r in mine)
        bad = sum(r.bad_prompt for r in mine)
        counts["bad_prompt"] += bad
        counts["disputed_prompts"] += 0 < bad < len(mine)
        if config.labelers == "majority" and 2 * bad > len(mine):
            counts["outvoted"] += len(usable)
            usable = []
        counts["all_tied"] += sum(len(r.tiers) == 1 for r in usable)
        for who, gaps in decisions(config, task, usable, counts).items():
            for (i, j), gap in gaps.items():
                rows += rows_of(config, task, (i, j) if gap >= 0 else (j, i), who, abs(gap), counts)
    return rows, counts


def decisions(config, task, usable, counts):
    """For each labeler, or "", each comparison's distance in tiers; > 0: the first is better."""
    places = [{i: t for t, tier in enumerate(r.tiers) for i in tier} for r in usable]
    decided = {r.labeler: {} for r in usable} | {"": {}}
    for i, j in combinations(range(len(task.completions)), 2):
        both = [
            (r.labeler, p[i], p[j]) for r, p in zip(usable, places, strict=True) if {i, j} <= {*p}
        ]
        if task.completions[i].text != task.completions[j].text and len(both) > 1:
            counts["shared_comparisons"] += 1
            counts["contradictions"] += {1, -1} <= {(a > b) - (a < b) for _, a, b in both}
        own = [(who, b - a) for who, a, b in both if asked(a, b, config.strategy)]
        if config.labelers == "each":
            for who, gap in own:
                decided[who][i, j] = gap
        elif own:
            up = [b - a for _, a, b in both if a < b]
            down = [b - a for _, a, b in both if a > b]
            more = up if len(up) > len(down) else down if len(down) > len(up) else []
            decided[""][i, j] = sum(more) / len(more) if more else 0
    return decided


def rows_of(config, task, order, who, apart, counts):
    x, y = (task.completions[i] for i in order)
    new, swapped = (
        (task.prompt.text, a.text, b.text, a.finished, b.finished, config.margin_per_tier * apart)
        for a, b in ((x, y), (y, x))
    )
    if x.text == y.text:
        counts["identical_texts"] += 1
        return []
    if apart:
        counts["pairs"] += 1
        return [(*new, who, False)]
    counts["ties_kept" if config.ties == "keep" else "ties_dropped"] += 1
    return [(*new, who, True), (*swapped, who, True)] if config.ties == "keep" else []


STRATEGIES = ("all", "adjacent", "best_vs_rest")
CONFIGS = st.builds(
    Pairs,
    strategy=st.sampled_from(STRATEGIES),
    ties=st.sampled_from(["drop", "keep"]),
    labelers=st.sampled_from(["each", "majority"]),
    margin_per_tier=st.sampled_from([0.0, 0.5]),
)
COMPLETION = st.builds(Completion, st.sampled_from(["a", "b", "c", "d ", "d"]), st.booleans())


@st.composite
def labelled(draw):
    """Some tasks and who ranked them how; not every completion is ranked, some texts are equal."""
    tasks, rankings = [], []
    for number in range(draw(st.integers(1, 3))):
        answers = tuple(draw(st.lists(COMPLETION, min_size=1, max_size=5)))
        task = Candidates(Prompt(text=f"q{number}"), answers)
        tasks.append(task)
        for labeler in draw(st.sets(st.sampled_from(["ann", "bob", "cy", "di"]))):
            tier = st.one_of(st.none(), st.integers(0, 3))
            numbers = draw(st.lists(tier, min_size=len(answers), max_size=len(answers)))
            bad = draw(st.integers(0, 3)) == 0
            rankings.append(Ranking(task.key, labeler, tiers_from(numbers), False, bad))
    return tasks, draw(st.permutations(rankings))


@settings(max_examples=120, deadline=None)
@given(CONFIGS, labelled())
def test_pairs_are_those_of_plain_loops_in_the_same_order(config, data):
    tasks, rankings = data
    rows, counts = expected(config, tasks, rankings)
    if not counts["pairs"]:
        with pytest.raises(InputError, match="hold no preference"):
            made(config, tasks, rankings)
        return
    metrics, pairs = made(config, tasks, rankings)
    assert [row(p) for p in pairs] == rows
    assert (metrics.rankings, metrics.prompts) == (len(rankings), len({r[0] for r in rows}))
    assert {name: getattr(metrics, name) for name in counts} == counts
    assert len(pairs) == metrics.pairs + 2 * metrics.ties_kept


# --- Properties ----------------------------------------------------------------------------------

TIERS = st.lists(st.integers(0, 3), min_size=2, max_size=7).filter(lambda t: len(set(t)) > 1)


def of_one(numbers, **config):
    task = Candidates(Prompt(text="q"), tuple(Completion(str(i)) for i in range(len(numbers))))
    return made(Pairs(**config), [task], [Ranking(task.key, "x", tiers_from(numbers))])


@settings(max_examples=25, deadline=None)
@given(TIERS)
def test_pairs_of_a_ranking_are_antisymmetric_and_transitive(numbers):
    _, pairs = of_one(numbers)
    found = set(texts(pairs))
    assert len(found) == len(pairs)
    assert all((b, a) not in found for a, b in found)
    assert all((a, d) in found for a, b in found for c, d in found if b == c)


@settings(max_examples=40, deadline=None)
@given(TIERS, st.sampled_from(STRATEGIES), st.booleans())
def test_pairs_and_ties_are_as_many_as_the_tiers_say(numbers, strategy, keep):
    sizes = [numbers.count(n) for n in sorted(set(numbers))]
    tied = sum(comb(size, 2) for size in sizes)
    pairs, ties = {
        "all": (comb(len(numbers), 2) - tied, tied),
        "adjacent": (sum(a * b for a, b in pairwise(sizes)), tied),
        "best_vs_rest": (sizes[0] * (len(numbers) - sizes[0]), comb(sizes[0], 2)),
    }[strategy]
    metrics, found = of_one(numbers, strategy=strategy, ties="keep" if keep else "drop")
    kept, dropped = (ties, 0) if keep else (0, ties)
    assert (metrics.pairs, metrics.ties_kept, metrics.ties_dropped) == (pairs, kept, dropped)
    assert len(found) == pairs + 2 * kept


@settings(max_examples=40, deadline=None)
@given(CONFIGS, labelled(), st.randoms(use_true_random=False))
def test_the_order_of_completions_and_tasks_does_not_matter(config, data, random):
    tasks, rankings = data
    assume(expected(config, tasks, rankings)[1]["pairs"])
    other_tasks, other_rankings = [], []
    for task in tasks:
        order = random.sample(range(len(task.completions)), len(task.completions))
        moved = Candidates(task.prompt, tuple(task.completions[i] for i in order))
        other_tasks.append(moved)
        for r in rankings:
            if r.task == task.key:
                tiers = tuple(tuple(order.index(i) for i in tier) for tier in r.tiers)
                other_rankings.append(
                    Ranking(moved.key, r.labeler, tiers, r.none_acceptable, r.bad_prompt)
                )
    random.shuffle(other_tasks)
    metrics, pairs = made(config, tasks, rankings)
    other_metrics, others = made(config, other_tasks, other_rankings)
    assert Counter(map(row, others)) == Counter(map(row, pairs))
    assert other_metrics == metrics


@settings(max_examples=25, deadline=None)
@given(CONFIGS, labelled(), st.permutations(["ann", "bob", "cy", "di"]))
def test_a_majority_does_not_depend_on_who_is_who(config, data, names):
    tasks, rankings = data
    config = config.model_copy(update={"labelers": "majority"})
    assume(expected(config, tasks, rankings)[1]["pairs"])
    new = dict(zip(["ann", "bob", "cy", "di"], names, strict=True))
    renamed = [Ranking(r.task, new[r.labeler], r.tiers, False, r.bad_prompt) for r in rankings]
    assert made(config, tasks, renamed) == made(config, tasks, rankings)


@settings(max_examples=25, deadline=None)
@given(CONFIGS, TIERS)
def test_the_majority_of_one_labeler_is_that_labeler(config, numbers):
    options = config.model_dump(exclude={"labelers"})
    metrics, each = of_one(numbers, **options, labelers="each")
    assert of_one(numbers, **options, labelers="majority") == (metrics, each)


def test_the_same_labels_give_the_same_bytes_in_any_order_and_any_batches(tmp_path, monkeypatch):
    tasks = [Candidates(Prompt(text=f"q{i}"), TASK.completions) for i in range(5)]
    rankings = [Ranking(t.key, name, RANKING.tiers) for t in tasks for name in ("ann", "bob")]
    write_candidates(tasks, tmp_path / "c.parquet")
    digests = set()
    for order in (rankings, rankings[::-1]):
        write_rankings(order, tmp_path / "l.parquet")
        make_pairs(Pairs(), tmp_path / "c.parquet", tmp_path / "l.parquet", tmp_path)
        digests.add(hashlib.sha256((tmp_path / "pairs.parquet").read_bytes()).hexdigest())
    assert len(digests) == 1
    rows = read_pairs(tmp_path / "pairs.parquet")
    monkeypatch.setattr(parquet, "BATCH", 2)
    monkeypatch.setattr(pairs_module, "_ROW_GROUP", 3)
    make_pairs(Pairs(), tmp_path / "c.parquet", tmp_path / "l.parquet", tmp_path)
    assert read_pairs(tmp_path / "pairs.parquet") == rows
    keys = pq.read_table(tmp_path / "pairs.parquet")["prompt_key"].to_pylist()
    assert keys == [p.prompt.key for p in rows]
    assert pq.ParquetFile(tmp_path / "pairs.parquet").metadata.num_row_groups > 5


# --- By hand -------------------------------------------------------------------------------------


def test_strategies_give_their_pairs():
    for strategy, found in (
        ("all", {("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d")}),
        ("adjacent", {("b", "a"), ("b", "c"), ("a", "d"), ("c", "d")}),
        ("best_vs_rest", {("b", "a"), ("b", "c"), ("b", "d")}),
    ):
        assert set(texts(made(Pairs(strategy=strategy), [TASK], [RANKING])[1])) == found


def test_margin_grows_with_the_distance_in_tiers():
    _, pairs = made(Pairs(margin_per_tier=0.5), [TASK], [RANKING])
    margins = {texts([p])[0]: p.margin for p in pairs}
    assert (margins["b", "d"], margins["a", "d"]) == (1.0, 0.5)


def test_a_tie_that_is_kept_stands_in_both_orders_without_margin():
    metrics, pairs = made(Pairs(ties="keep", margin_per_tier=1.0), [TASK], [RANKING])
    ties = [p for p in pairs if p.tie]
    assert texts(ties) == [("a", "c"), ("c", "a")]
    assert [p.margin for p in ties] == [0.0, 0.0]
    assert (metrics.pairs, metrics.ties_kept, len(pairs)) == (5, 1, 7)


def test_only_texts_that_are_equal_to_the_letter_are_identical():
    task = Candidates(Prompt(text="q"), tuple(map(Completion, ("a", "a", "a "))))
    metrics, pairs = made(Pairs(), [task], [Ranking(task.key, "x", ((0,), (1,), (2,)))])
    assert texts(pairs) == [("a", "a "), ("a", "a ")]
    assert metrics.identical_texts == 1


def test_flags_are_respected_and_counted():
    rankings = [
        RANKING,
        Ranking(TASK.key, "bad@example.org", RANKING.tiers, bad_prompt=True),
        Ranking(TASK.key, "tie@example.org", ((0, 1, 2, 3),)),
        Ranking(TASK.key, "none@example.org", (), none_acceptable=True),
    ]
    metrics, _ = made(Pairs(), [TASK], rankings)
    assert (metrics.rankings, metrics.labelers, metrics.pairs) == (4, 4, 5)
    assert (metrics.bad_prompt, metrics.all_tied, metrics.unranked) == (1, 1, 1)
    assert (metrics.none_acceptable, metrics.disputed_prompts, metrics.outvoted) == (1, 1, 0)
    ordered = Ranking(TASK.key, "cy@example.org", RANKING.tiers, none_acceptable=True)
    metrics, _ = made(Pairs(), [TASK], [ordered])  # which bad answer is less bad
    assert (metrics.pairs, metrics.none_acceptable, metrics.unranked) == (5, 1, 0)


def test_a_majority_that_calls_a_prompt_bad_outvotes_the_others():
    other = Candidates(Prompt(text="r"), TASK.completions)
    bad = [Ranking(TASK.key, name, (), bad_prompt=True) for name in ("bob", "cy")]
    rankings = [RANKING, *bad, Ranking(other.key, "ann", RANKING.tiers)]
    metrics, pairs = made(Pairs(labelers="majority"), [TASK, other], rankings)
    assert {p.prompt.text for p in pairs} == {"r"}
    assert (metrics.bad_prompt, metrics.disputed_prompts, metrics.outvoted) == (2, 1, 1)
    metrics, pairs = made(Pairs(labelers="each"), [TASK, other], rankings)
    assert {p.prompt.text for p in pairs} == {"q", "r"}
    assert metrics.outvoted == 0


def test_contradictions_are_counted_and_a_majority_decides_them():
    task = Candidates(Prompt(text="q"), (Completion("a"), Completion("b"), Completion("c")))
    rankings = [
        Ranking(task.key, "ann", ((0,), (1,), (2,))),
        Ranking(task.key, "bob", ((0,), (2,), (1,))),
        Ranking(task.key, "cy", ((2,), (1,), (0,))),
    ]
    metrics, each = made(Pairs(margin_per_tier=1.0), [task], rankings)
    assert (metrics.shared_comparisons, metrics.contradictions, len(each)) == (3, 3, 9)
    majority = Pairs(margin_per_tier=1.0, labelers="majority")
    metrics, pairs = made(majority, [task], rankings)
    assert (metrics.shared_comparisons, metrics.contradictions) == (3, 3)
    assert {(*texts([p])[0], p.margin, p.labeler) for p in pairs} == {
        ("a", "b", 1.5, ""),
        ("a", "c", 1.5, ""),
        ("c", "b", 1.0, ""),
    }


def test_as_many_for_as_against_is_a_tie_and_no_strategy_silences_a_vote():
    task = Candidates(Prompt(text="q"), (Completion("a"), Completion("b"), Completion("c")))
    rankings = [
        Ranking(task.key, "ann", ((0,), (1,), (2,))),
        Ranking(task.key, "bob", ((1,), (2,), (0,))),  # b is better than a, by two tiers
    ]
    config = Pairs(strategy="adjacent", labelers="majority", ties="keep")
    metrics, pairs = made(config, [task], rankings)
    assert [p.tie for p in pairs if {p.chosen.text, p.rejected.text} == {"a", "b"}] == [True, True]
    assert [texts([p])[0] for p in pairs if not p.tie] == [("b", "c")]
    assert (metrics.contradictions, metrics.ties_kept) == (2, 2)


@pytest.mark.parametrize(
    ("task", "tiers", "words"),
    [
        ("other", ((0,), (1,)), "1 of 1 rankings are of completions that are not"),
        (TASK.key, ((0,), (0, 1)), "names one of its completions twice"),
        (TASK.key, ((0,), (-1,)), "or one below 0"),
        (TASK.key, ((0,), (4,)), "names more completions than its task has"),
        (TASK.key, ((0, 1, 2, 3),), "1 rankings hold no preference between two texts"),
    ],
)
def test_labels_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path, task, tiers, words):
    write_candidates([TASK], tmp_path / "c.parquet")
    write_rankings([Ranking(task, "x", tiers)], tmp_path / "l.parquet")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=words):
        make_pairs(Pairs(), tmp_path / "c.parquet", tmp_path / "l.parquet", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_no_labels_at_all_are_refused():
    with pytest.raises(InputError, match="0 rankings hold no preference"):
        made(Pairs(), [TASK], [])


def test_completions_written_before_keys_stood_beside_them_give_the_same_bytes(tmp_path):
    write_rankings([RANKING], tmp_path / "l.parquet")
    write_candidates([TASK], tmp_path / "c.parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    pq.write_table(table.drop_columns(["key", "prompt_key"]), tmp_path / "old.parquet")
    written = []
    for name in ("c.parquet", "old.parquet"):
        make_pairs(Pairs(), tmp_path / name, tmp_path / "l.parquet", tmp_path)
        written.append((tmp_path / "pairs.parquet").read_bytes())
    assert written[0] == written[1]


# --- The file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [Prompt(text="q"), Prompt(messages=(Message("user", "q"),))])
def test_pairs_come_back_as_they_went(tmp_path, prompt):
    pair = PreferencePair(prompt, Completion("a", finished=False), Completion("b"), 0.25, "ann")
    tie = PreferencePair(prompt, Completion("a"), Completion("b"), tie=True)
    write_pairs([pair, tie], tmp_path / "pairs.parquet")
    back = read_pairs(tmp_path / "pairs.parquet")
    assert back == [pair, tie]
    assert back[0].labeler == "ann"


def test_texts_and_conversations_are_not_mixed(tmp_path):
    chat = Prompt(messages=(Message("user", "q"),))
    tasks = [TASK, Candidates(chat, TASK.completions)]
    with pytest.raises(InputError, match="some prompts are plain text and others are conv"):
        made(Pairs(), tasks, [RANKING])
    one = [PreferencePair(t.prompt, Completion("a"), Completion("b")) for t in tasks]
    with pytest.raises(InputError, match="1 pairs are conversations and 1 are plain text"):
        write_pairs(one, tmp_path / "pairs.parquet")


@pytest.mark.parametrize("is_chat", [False, True])
def test_trl_and_pandas_read_plain_strings(tmp_path, is_chat):
    from datasets import Value, load_dataset  # noqa: PLC0415 (takes seconds)

    asked = [Message("system", "s"), Message("user", "q")]
    prompt = Prompt(messages=tuple(asked)) if is_chat else Prompt(text="q")
    task = Candidates(prompt, TASK.completions)
    write_candidates([task], tmp_path / "c.parquet")
    write_rankings([Ranking(task.key, "ann", ((1,), (0,)))], tmp_path / "l.parquet")
    make_pairs(Pairs(), tmp_path / "c.parquet", tmp_path / "l.parquet", tmp_path)
    path = tmp_path / "pairs.parquet"
    data = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    if not is_chat:
        assert [data.features[n] for n in ("prompt", "chosen", "rejected")] == [Value("string")] * 3
        assert (data[0]["prompt"], data[0]["chosen"], data[0]["rejected"]) == ("q", "b", "a")
        assert pd.read_parquet(path)["chosen"].tolist() == ["b"]
    else:
        assert data[0]["prompt"] == [{"role": m.role, "content": m.content} for m in asked]
        assert data[0]["chosen"] == [{"role": "assistant", "content": "b"}]
        assert read_pairs(path)[0].prompt == prompt
