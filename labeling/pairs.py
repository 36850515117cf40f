"""Rankings → preference pairs.

Decisions, with their reasons:

- **Ties** are dropped, or kept in both orders with margin 0 and `tie`. In the Bradley-Terry loss
  the two orders add up to -log s(d) - log s(-d), twice the cross-entropy with a label of 1/2: it is
  smallest where both scores are equal, and no side is favoured by where it stood. A tie hence
  weighs as much as two preferences; TRL's trainers know no weights.
- **`majority`** takes one vote of each labeler who ranked both completions, whatever the strategy
  made of it: a comparison is made when the strategy makes it in one ranking at least, and one who
  puts the two far apart the other way round is not silenced by `adjacent`. As many for as against
  is a tie. The margin is the mean over those who prefer the winner.
- **`none_acceptable`** with a ranking still says which of the bad answers is less bad, so it gives
  pairs; without one it gives none.
- **`bad_prompt`** is one labeler's word: no pairs of that labeler; the others of the task keep
  theirs. With `majority`, a task that more than half of its labelers call a bad prompt gives none.
- **Identical texts** are compared exactly as the model reads them, spaces included.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labeling.config import Pairs
from labeling.errors import InputError
from labeling.pair_table import answers, pair_writer, schema
from labeling.parquet import read_batches
from labeling.ranking_arrays import (
    Array,
    PairArrays,
    outvoted,
    pair_up,
    read_ranking_arrays,
)
from labeling.records import read_task_keys
from labeling.wording import counted

logger = logging.getLogger(__name__)

_ROW_GROUP = 32_768


@dataclass(frozen=True)
class PairMetrics:
    """What came out of the rankings.

    A comparison is of two completions of a task, by one labeler or by the majority; those that the
    strategy makes are `pairs` + `ties_kept` + `ties_dropped` + `identical_texts`. A tie that is
    kept takes two rows in the file. `shared_comparisons` were made by several labelers, and in
    `contradictions` of them two prefer the opposite, whatever the strategy.

    Of the rankings, `bad_prompt`, `outvoted` (by a majority that calls the prompt bad) and
    `unranked` (only said that no answer is acceptable) gave no comparison; `all_tied` put
    everything into one tier. `disputed_prompts` are tasks that some labelers call a bad prompt and
    others do not.
    """

    rankings: int
    labelers: int
    pairs: int
    prompts: int
    ties_kept: int
    ties_dropped: int
    identical_texts: int
    all_tied: int
    unranked: int
    none_acceptable: int
    bad_prompt: int
    disputed_prompts: int
    outvoted: int
    shared_comparisons: int
    contradictions: int


@dataclass(frozen=True)
class _Tasks:
    """Some tasks of the file: the `(T,)` prompts, all texts one after the other, and where each
    task's begin."""

    prompts: pa.Array
    texts: pa.StringArray
    finished: pa.BooleanArray
    starts: Array
    sizes: Array

    def same_text(self, k: int) -> Array:
        """Which of a task's first k completions are the same text, (T, P)."""
        first, second = np.triu_indices(k, 1)
        task, comparison = np.nonzero(second < self.sizes[:, None])
        a = self.starts[task] + first[comparison]
        b = self.starts[task] + second[comparison]
        length = pc.binary_length(self.texts).to_numpy(zero_copy_only=False)
        alike = np.flatnonzero(length[a] == length[b])  # few, so few texts are looked at
        equal = pc.equal(self.texts.take(pa.array(a[alike])), self.texts.take(pa.array(b[alike])))
        same = np.zeros((len(self.sizes), len(first)), bool)
        same[task[alike], comparison[alike]] = equal.to_numpy(zero_copy_only=False)
        return same


def make_pairs(config: Pairs, completions: Path, labels: Path, out: Path) -> PairMetrics:
    """Write `out/pairs.parquet` from the frozen labels (labeling/pair_table.py says its columns).

    Rows are in the order of the tasks in `completions`, then by labeler, then by the places of the
    two completions: the same completions and labels give the same bytes. Texts are read and written
    some thousand tasks at a time; beside them stand some 300 bytes for each task and ranking.

    Raises:
        InputError: the labels rank other completions than these, or give no pair at all.
    """
    keys, prompt_keys = read_task_keys(completions)
    rankings = read_ranking_arrays(labels, keys, completions)
    bad, unranked = rankings.bad_prompt, ~rankings.is_ranked & ~rankings.bad_prompt
    lost = outvoted(rankings) & ~bad & ~unranked & (config.labelers == "majority")
    usable = rankings[~(bad | unranked | lost)]
    names = pa.array([*rankings.names.tolist(), ""], pa.string())  # -1, the last, is MAJORITY
    counts: Counter[str] = Counter()
    paired = np.zeros(len(keys), bool)
    start = 0
    with pair_writer(out / "pairs.parquet", is_chat := _is_chat(completions)) as writer:
        for tasks in _read_tasks(completions, is_chat):
            of_tasks = usable.of_tasks(start, start + len(tasks.sizes))
            k = of_tasks.tiers.shape[1]
            if (of_tasks.tiers[np.arange(k) >= tasks.sizes[of_tasks.task, None]] >= 0).any():
                raise InputError(f"{labels}: a ranking names more completions than its task has")
            pairs, more = pair_up(of_tasks, tasks.same_text(k), config)
            counts += more
            paired[start + pairs.task] = True
            for at in range(0, len(pairs), _ROW_GROUP):
                part = pairs[at : at + _ROW_GROUP]
                key = prompt_keys.take(pa.array(start + part.task))
                margin = config.margin_per_tier * part.tiers_apart
                writer.write_table(_table(part, tasks, margin, key, names, is_chat))
            start += len(tasks.sizes)
        if not counts["pairs"]:
            raise InputError(
                f"{labels}: {len(rankings)} rankings hold no preference between two texts"
            )
    metrics = PairMetrics(
        rankings=len(rankings),
        labelers=len(rankings.names),
        pairs=counts["pairs"],
        prompts=len(prompt_keys.filter(pa.array(paired)).unique()),
        ties_kept=counts["ties_kept"],
        ties_dropped=counts["ties_dropped"],
        identical_texts=counts["identical_texts"],
        all_tied=int((usable.tiers.max(axis=1, initial=0) == 0).sum()),
        unranked=int(unranked.sum()),
        none_acceptable=int(rankings.none_acceptable.sum()),
        bad_prompt=int(bad.sum()),
        disputed_prompts=len(np.intersect1d(rankings.task[bad], rankings.task[~bad])),
        outvoted=int(lost.sum()),
        shared_comparisons=counts["shared_comparisons"],
        contradictions=counts["contradictions"],
    )
    logger.info("%s gave %s", counted(metrics.rankings, "ranking"), counted(metrics.pairs, "pair"))
    return metrics


def _is_chat(completions: Path) -> bool:
    first = next(read_batches(completions, ["text"]), None)
    return first is not None and first["text"].null_count > 0


def _read_tasks(completions: Path, is_chat: bool) -> Iterator[_Tasks]:
    for batch in read_batches(completions, ["text", "messages", "completions"]):
        prompts = batch["messages" if is_chat else "text"]
        if prompts.null_count:
            raise InputError(
                f"{completions}: some prompts are plain text and others are conversations; "
                "write all of them in one form"
            )
        sizes = pc.list_value_length(batch["completions"]).to_numpy()
        each = batch["completions"].flatten()
        starts = np.cumsum(sizes) - sizes
        yield _Tasks(prompts, each.field("text"), each.field("finished"), starts, sizes)


def _table(
    pairs: PairArrays,
    tasks: _Tasks,
    margin: Array,
    prompt_key: pa.StringArray,
    names: pa.StringArray,
    is_chat: bool,
) -> pa.Table:
    chosen = pa.array(tasks.starts[pairs.task] + pairs.chosen)
    rejected = pa.array(tasks.starts[pairs.task] + pairs.rejected)
    columns = schema(is_chat)
    return pa.table(
        {
            "prompt": tasks.prompts.take(pa.array(pairs.task)).cast(columns.field("prompt").type),
            "chosen": answers(tasks.texts.take(chosen), is_chat),
            "rejected": answers(tasks.texts.take(rejected), is_chat),
            "margin": margin,
            "prompt_key": prompt_key,
            "chosen_finished": tasks.finished.take(chosen),
            "rejected_finished": tasks.finished.take(rejected),
            "labeler": names.take(pa.array(pairs.labeler % len(names))),
            "tie": pairs.tiers_apart == 0,
        },
        schema=columns,
    )
