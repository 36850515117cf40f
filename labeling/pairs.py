"""Rankings → preference pairs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.config import Pairs
from labeling.errors import InputError
from labeling.prompts import parse_prompt
from labeling.records import (
    Candidates,
    Completion,
    PreferencePair,
    Prompt,
    Ranking,
    read_candidates,
    read_rankings,
    write_table,
)
from labeling.wording import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairMetrics:
    """What came out of the rankings."""

    rankings: int
    pairs: int
    prompts: int
    bad_prompt: int
    identical_texts: int
    all_tied: int
    unranked: int


def make_pairs(config: Pairs, completions: Path, labels: Path, out: Path) -> PairMetrics:
    """Write `out/pairs.parquet` from the frozen labels.

    The columns are TRL's: `prompt`, `chosen`, `rejected` (texts, or messages for conversations)
    and `margin`; beside them `prompt_key` (split by it, never by pair), `chosen_finished` and
    `rejected_finished`, and `labeler`.

    Raises:
        InputError: the labels rank other completions than these, or give no pair at all.
    """
    tasks = {c.key: c for c in read_candidates(completions)}
    rankings = read_rankings(labels)
    unknown = [r.task for r in rankings if r.task not in tasks]
    if unknown:
        raise InputError(
            f"{labels}: {len(unknown)} of {len(rankings)} rankings are of completions that are not "
            f"in {completions} (first: {unknown[0]})"
        )
    refused: Counter[str] = Counter()
    pairs: list[PreferencePair] = []
    for ranking in rankings:
        if ranking.bad_prompt:
            refused["bad_prompt"] += 1
            continue
        if not ranking.tiers:  # only said that no answer is acceptable
            refused["unranked"] += 1
            continue
        new, identical = pairs_of(ranking, tasks[ranking.task], config)
        refused["identical_texts"] += identical
        refused["all_tied"] += not new and not identical
        pairs.extend(new)
    if not pairs:
        raise InputError(f"{labels}: {len(rankings)} rankings hold no preference between two texts")
    write_pairs(pairs, out / "pairs.parquet")
    metrics = PairMetrics(
        rankings=len(rankings),
        pairs=len(pairs),
        prompts=len({p.prompt.key for p in pairs}),
        bad_prompt=refused["bad_prompt"],
        identical_texts=refused["identical_texts"],
        all_tied=refused["all_tied"],
        unranked=refused["unranked"],
    )
    logger.info("%s gave %s", counted(metrics.rankings, "ranking"), counted(metrics.pairs, "pair"))
    return metrics


def pairs_of(ranking: Ranking, task: Candidates, config: Pairs) -> tuple[list[PreferencePair], int]:
    """The pairs of one ranking, and how many were not made because both texts are the same."""
    pairs: list[PreferencePair] = []
    identical = 0
    for better, worse in _tier_pairs(len(ranking.tiers), config.strategy):
        for i in ranking.tiers[better]:
            for j in ranking.tiers[worse]:
                chosen, rejected = task.completions[i], task.completions[j]
                if chosen.text == rejected.text:
                    identical += 1
                    continue
                margin = config.margin_per_tier * (worse - better)
                pairs.append(PreferencePair(task.prompt, chosen, rejected, margin, ranking.labeler))
    return pairs, identical


def _tier_pairs(tiers: int, strategy: str) -> Iterator[tuple[int, int]]:
    if strategy == "adjacent":
        return iter([(t, t + 1) for t in range(tiers - 1)])
    if strategy == "best_vs_rest":
        return iter([(0, t) for t in range(1, tiers)])
    return combinations(range(tiers), 2)


# --- Parquet, in TRL's columns -------------------------------------------------------------------

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def write_pairs(pairs: Sequence[PreferencePair], path: Path) -> None:
    """Write pairs as plain text where every prompt is plain, as messages otherwise: TRL wants one
    form in a file."""
    chat = any(p.prompt.messages is not None for p in pairs)
    kind = _MESSAGES if chat else pa.string()
    schema = pa.schema(
        [
            ("prompt", kind),
            ("chosen", kind),
            ("rejected", kind),
            ("margin", pa.float64()),
            ("prompt_key", pa.string()),
            ("chosen_finished", pa.bool_()),
            ("rejected_finished", pa.bool_()),
            ("labeler", pa.string()),
        ]
    )
    rows = [
        {
            "prompt": _prompt_value(p.prompt, chat),
            "chosen": _answer_value(p.chosen, chat),
            "rejected": _answer_value(p.rejected, chat),
            "margin": p.margin,
            "prompt_key": p.prompt.key,
            "chosen_finished": p.chosen.finished,
            "rejected_finished": p.rejected.finished,
            "labeler": p.labeler,
        }
        for p in pairs
    ]
    write_table(pa.Table.from_pylist(rows, schema=schema), path)


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read pairs in TRL's columns, ours or another's: `margin` and what follows may be missing.

    Raises:
        InputError: a column is missing or a value has the wrong form, naming the row.
    """
    table = pq.read_table(path)
    missing = {"prompt", "chosen", "rejected"} - set(table.column_names)
    if missing:
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}")
    pairs = []
    for number, row in enumerate(table.to_pylist(), start=1):
        where = f"{path}, row {number}"
        pairs.append(
            PreferencePair(
                prompt=parse_prompt(row["prompt"], where, "prompt"),
                chosen=_answer(row, "chosen", where),
                rejected=_answer(row, "rejected", where),
                margin=row.get("margin") or 0.0,
                labeler=row.get("labeler") or "",
            )
        )
    return pairs


def _prompt_value(prompt: Prompt, chat: bool) -> Any:
    if not chat:
        return prompt.text
    if prompt.messages is None:
        return [{"role": "user", "content": prompt.text}]
    return [{"role": m.role, "content": m.content} for m in prompt.messages]


def _answer_value(completion: Completion, chat: bool) -> Any:
    return [{"role": "assistant", "content": completion.text}] if chat else completion.text


def _answer(row: dict[str, Any], column: str, where: str) -> Completion:
    value = row[column]
    finished = row.get(f"{column}_finished")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise InputError(f"{where}: '{column}' must be a text or one assistant message")
    return Completion(value, True if finished is None else finished)
