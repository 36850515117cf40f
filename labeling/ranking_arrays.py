"""Rankings as arrays, and the comparisons in them: no loop over rankings, completions or pairs.

With K completions there are P = K (K - 1) / 2 comparisons `(first, second)`, first < second, in the
order of `numpy.triu_indices(K, 1)`. R rankings of T tasks make arrays `(R, P)` and `(T, P)`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from labeling.config import Pairs
from labeling.errors import InputError

Array = npt.NDArray[Any]
MAJORITY = -1  # in place of a labeler


@dataclass(frozen=True)
class RankingArrays:
    """R rankings, sorted by task and then by labeler.

    `task` is the row of the task in its file, `labeler` an index into `names`, both `(R,)`.
    `tiers`, `(R, K)`, holds the tier of each completion: 0 is the best, -1 says not ranked.
    """

    task: Array
    labeler: Array
    tiers: Array
    none_acceptable: Array
    bad_prompt: Array
    names: Array

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, rows: slice | Array) -> RankingArrays:
        return RankingArrays(
            self.task[rows],
            self.labeler[rows],
            self.tiers[rows],
            self.none_acceptable[rows],
            self.bad_prompt[rows],
            self.names,
        )

    def of_tasks(self, start: int, stop: int) -> RankingArrays:
        """Those of tasks `start` to `stop`, counted from `start`."""
        part = self[slice(*np.searchsorted(self.task, (start, stop)))]
        return replace(part, task=part.task - start)

    @property
    def is_ranked(self) -> Array:
        return np.asarray(self.tiers.max(axis=1, initial=-1) >= 0)


@dataclass(frozen=True)
class PairArrays:
    """n pairs: the task, the chosen and the rejected one of its completions, the distance in tiers
    (0 for a tie), and the labeler or `MAJORITY`; `(n,)` each."""

    task: Array
    chosen: Array
    rejected: Array
    tiers_apart: Array
    labeler: Array

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, rows: slice) -> PairArrays:
        columns = (self.task, self.chosen, self.rejected, self.tiers_apart, self.labeler)
        return PairArrays(*(column[rows] for column in columns))


def read_ranking_arrays(labels: Path, keys: pa.StringArray, completions: Path) -> RankingArrays:
    """Read frozen labels; `keys` are those of the tasks in `completions`, in order.

    Raises:
        InputError: the labels rank other completions than these, or one twice.
    """
    columns = ["task", "labeler", "tiers", "none_acceptable", "bad_prompt"]
    table = pq.read_table(labels, columns=columns).combine_chunks()
    rows = pc.index_in(table["task"], value_set=keys)
    if rows.null_count:
        first = table["task"].filter(pc.is_null(rows))[0]
        raise InputError(
            f"{labels}: {rows.null_count} of {len(table)} rankings are of completions that are not "
            f"in {completions} (first: {first})"
        )
    labelers = pc.dictionary_encode(table["labeler"].combine_chunks())
    names, rank = np.unique(np.array(labelers.dictionary.to_pylist(), str), return_inverse=True)
    rankings = RankingArrays(
        task=rows.to_numpy(),
        labeler=rank[labelers.indices.to_numpy()],
        tiers=_tier_of_each(table["tiers"].combine_chunks(), labels),
        none_acceptable=table["none_acceptable"].to_numpy(),
        bad_prompt=table["bad_prompt"].to_numpy(),
        names=names,
    )
    return rankings[np.lexsort((rankings.labeler, rankings.task))]


def _tier_of_each(lists: pa.ListArray, labels: Path) -> Array:
    """Tiers as lists of completions → the tier of each completion, (R, K)."""
    tiers = lists.flatten()
    count, size = (pc.list_value_length(part).to_numpy() for part in (lists, tiers))
    completion = tiers.flatten().to_numpy()
    ranking = np.repeat(np.arange(len(lists)), count)
    tier = np.arange(len(tiers)) - np.repeat(np.cumsum(count) - count, count)
    matrix = np.full((len(lists), completion.max(initial=-1) + 1), -1, np.int16)
    if completion.min(initial=0) >= 0:
        matrix[np.repeat(ranking, size), completion] = np.repeat(tier, size)
    if (matrix >= 0).sum() != len(completion):
        raise InputError(f"{labels}: a ranking names one of its completions twice, or one below 0")
    return matrix


def outvoted(rankings: RankingArrays) -> Array:
    """Which rankings are of a task that more than half of its labelers call a bad prompt, (R,)."""
    labelers = np.bincount(rankings.task)
    against = np.bincount(rankings.task, weights=rankings.bad_prompt)
    return np.asarray((2 * against > labelers)[rankings.task])


def pair_up(
    rankings: RankingArrays, same_text: Array, config: Pairs
) -> tuple[PairArrays, Counter[str]]:
    """The pairs of rankings, and how many comparisons gave none, by reason.

    Sorted by task, labeler, first and second completion; a tie that is kept stands in both orders,
    one after the other.

    Args:
        rankings: with `task` a row of `same_text`; none of them of a bad prompt.
        same_text: (T, P): whether two completions of a task are the same text.
    """
    first, second = np.triu_indices(rankings.tiers.shape[1], 1)
    above, below = rankings.tiers[:, first], rankings.tiers[:, second]
    both = (above >= 0) & (below >= 0)
    gap = np.where(both, below - above, 0)  # > 0: the first one is better
    if config.strategy == "adjacent":
        asked = both & (np.abs(gap) <= 1)
    elif config.strategy == "best_vs_rest":
        asked = both & (np.minimum(above, below) == 0)
    else:
        asked = both
    starts = np.flatnonzero(np.diff(rankings.task, prepend=-1))  # each task's first ranking
    counts = _contradictions(starts, both, gap, ~same_text[rankings.task[starts]])
    task, labeler = rankings.task, rankings.labeler
    if config.labelers == "majority":
        task, labeler = task[starts], np.full(len(starts), MAJORITY)
        asked, gap = _sums(np.logical_or, asked, starts), _majority(starts, gap)
    same = same_text[task]
    tied = asked & ~same & (gap == 0)
    wanted = asked & ~same & (gap != 0)
    counts["identical_texts"] = int((asked & same).sum())
    counts["pairs"] = int(wanted.sum())
    kept = "ties_kept" if config.ties == "keep" else "ties_dropped"
    counts[kept] = int(tied.sum())
    if config.ties == "keep":
        wanted |= tied
    row, comparison = np.nonzero(wanted)
    again = np.repeat(np.arange(len(row)), np.where(tied[row, comparison], 2, 1))
    is_second = np.diff(again, prepend=-1) == 0
    row, comparison = row[again], comparison[again]
    apart = gap[row, comparison]
    is_first_chosen = (apart > 0) | ((apart == 0) & ~is_second)
    pairs = PairArrays(
        task=task[row],
        chosen=np.where(is_first_chosen, first[comparison], second[comparison]),
        rejected=np.where(is_first_chosen, second[comparison], first[comparison]),
        tiers_apart=np.abs(apart),
        labeler=labeler[row],
    )
    return pairs, counts


def _contradictions(starts: Array, both: Array, gap: Array, distinct: Array) -> Counter[str]:
    """Comparisons that two labelers or more have made of two texts, and those of them on which one
    prefers what another rejects."""
    shared = (_sums(np.add, both.astype(np.int32), starts) > 1) & distinct
    up, down = (_sums(np.logical_or, sign, starts) for sign in (gap > 0, gap < 0))
    return Counter(
        shared_comparisons=int(shared.sum()), contradictions=int((up & down & shared).sum())
    )


def _majority(starts: Array, gap: Array) -> Array:
    """Each comparison's winner by the number of labelers, as a signed distance in tiers: the mean
    over those who prefer the winner. 0 where as many prefer one as the other. (tasks, P)"""
    up, down = np.maximum(gap, 0), np.maximum(-gap, 0)
    ups, downs = (_sums(np.add, (side > 0).astype(np.int64), starts) for side in (up, down))
    mean_up, mean_down = (
        _sums(np.add, side.astype(np.int64), starts) / np.maximum(votes, 1)
        for side, votes in ((up, ups), (down, downs))
    )
    return np.where(ups > downs, mean_up, np.where(downs > ups, -mean_down, 0.0))


def _sums(operation: np.ufunc, values: Array, starts: Array) -> Array:
    """`operation` over the rankings of each task: (R, P) → (tasks, P)."""
    return np.asarray(operation.reduceat(values, starts, axis=0)) if len(starts) else values[:0]
