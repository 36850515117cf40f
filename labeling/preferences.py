"""Preference pairs that exist already, in TRL's format → pairs, as rankings would have given."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from labeling.config import Preferences
from labeling.errors import InputError
from labeling.pair_table import write_pairs
from labeling.prompts import parse_prompt, read_rows, refuse_half_characters
from labeling.records import Completion, PreferencePair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceMetrics:
    """What was given. `identical_texts` rows were dropped; `duplicates` are kept, since each may be
    somebody's vote; `implicit_prompts` were taken from what both texts begin with. `ties_kept` take
    two rows in the file, both orders, and are no `pairs`; `unlabeled` rows choose neither text."""

    pairs: int
    prompts: int
    identical_texts: int
    duplicates: int
    implicit_prompts: int
    ties_kept: int = 0
    ties_dropped: int = 0
    unlabeled: int = 0


def load_preferences(config: Preferences, data: str, out: Path) -> PreferenceMetrics:
    """Write `out/pairs.parquet` (labeling/pairs.py says its columns) from pairs in TRL's format.

    Args:
        data: a JSONL or Parquet file, or a data set's name on the hub (`name@commit`), with columns
            `chosen` and `rejected`, or `completions` and `labels` (see `choose`); `prompt` unless
            both texts begin with it, and perhaps `margin`.

    Raises:
        InputError: a row is not of this format (naming file and line), texts and conversations are
            mixed, or no pair is left.
    """
    pairs: list[PreferencePair] = []
    rows: Counter[str] = Counter()
    for where, given in read_rows(data):
        row, verdict = choose(given, where)
        pair, is_implicit = parse_preference(row, where)
        if pair.chosen.text == pair.rejected.text:
            verdict = "identical"
        rows.update({verdict: 1, "implicit": is_implicit, "all": 1})
        if verdict == "preference":
            pairs.append(pair)
        elif verdict == "half a tie" and config.ties == "keep":
            pairs.append(replace(pair, margin=0.0, tie=True))
        elif verdict == "tie" and config.ties == "keep":
            tie = replace(pair, margin=0.0, tie=True)
            pairs += [tie, replace(tie, chosen=tie.rejected, rejected=tie.chosen)]
    if not rows["all"]:
        raise InputError(f"{data} holds no preference pairs")
    preferences = [pair for pair in pairs if not pair.tie]
    if not preferences:
        same, total = rows["identical"], rows["all"]
        raise InputError(
            f"{data} holds no preference between two texts: {total} rows, "
            + ("all" if same == total else f"{same}")
            + " of them identical"
            + ("" if same == total else ", the others ties or without a chosen one")
        )
    chat = sum(pair.prompt.messages is not None for pair in pairs)
    if 0 < chat < len(pairs):
        raise InputError(
            f"{data}: {chat} pairs are conversations and {len(pairs) - chat} are plain text; "
            "write all of them in one form"
        )
    write_pairs(pairs, out / "pairs.parquet")
    ties = rows["tie"] + rows["half a tie"] // 2
    votes = {(p.prompt.key, p.chosen.text, p.rejected.text) for p in preferences}
    metrics = PreferenceMetrics(
        pairs=len(preferences),
        prompts=len({pair.prompt.key for pair in pairs}),
        identical_texts=rows["identical"],
        duplicates=len(preferences) - len(votes),
        implicit_prompts=rows["implicit"],
        ties_kept=ties if config.ties == "keep" else 0,
        ties_dropped=ties if config.ties == "drop" else 0,
        unlabeled=rows["unlabeled"],
    )
    if metrics.identical_texts:
        logger.warning(
            "%d of %d pairs have two equal texts: left out", metrics.identical_texts, rows["all"]
        )
    logger.info("%d pairs of %d prompts", metrics.pairs, metrics.prompts)
    return metrics


Verdict = Literal["preference", "tie", "half a tie", "unlabeled", "identical"]
_VERDICTS: dict[tuple[float, ...], Verdict] = {
    (1, 0): "preference",
    (0, 1): "preference",
    (0.5, 0.5): "tie",
    (1, 1): "tie",
    (0, 0): "unlabeled",
}


def choose(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Verdict]:
    """A row with two `completions` and their `labels` → the same row with the chosen one as
    `chosen`; a row with `chosen` and `rejected` is as it should be.

    The labels say how much of the preference each text has: [1, 0] or [0, 1]; [0.5, 0.5] or [1, 1]
    is a tie; [0, 0] chooses neither and says nothing of which is better. A row of our own pairs
    that says `tie` is one of a tie's two orders.

    Raises:
        InputError: the columns hold anything else, TRL's stepwise supervision among it.
    """
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return dict(row), "half a tie" if row.get("tie") is True else "preference"
    texts, labels = row.get("completions"), row.get("labels")
    if texts is None and labels is None:
        return dict(row), "preference"  # to be refused for what it lacks
    if not isinstance(texts, list) or len(texts) != 2:
        found = f"holds {len(texts)}" if isinstance(texts, list) else f"is {type(texts).__name__}"
        raise InputError(f"{where}: 'completions' {found}; it must be a list of two answers")
    numbers = labels if isinstance(labels, list) else []
    if any(isinstance(label, bool) or not isinstance(label, (int, float)) for label in numbers):
        numbers = []  # true and false are TRL's labels of the steps of one answer
    verdict = _VERDICTS.get(tuple(numbers))
    if verdict is None:
        raise InputError(
            f"{where}: 'labels' is {json.dumps(labels, default=str)[:60]}; for two completions it "
            "must be [1, 0] or [0, 1], [0.5, 0.5] for a tie, or [0, 0] for neither"
        )
    chosen, rejected = texts if numbers[0] >= numbers[1] else reversed(texts)
    return {**row, "chosen": chosen, "rejected": rejected}, verdict


def parse_preference(row: Mapping[str, Any], where: str) -> tuple[PreferencePair, bool]:
    """A row → its pair, and whether the prompt was implicit.

    As in TRL, the prompt is implicit where there is no column `prompt`, or where that is a text
    beside conversations.
    """
    chosen: Any = row.get("chosen")
    rejected: Any = row.get("rejected")
    prompt: Any = row.get("prompt")
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, str) and not _is_conversation(value):
            found = "is missing" if value is None else f"is {type(value).__name__}"
            raise InputError(
                f"{where}: '{name}' {found}; it must be a text or a list of messages with 'role' "
                "and 'content'"
            )
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise InputError(f"{where}: one of 'chosen' and 'rejected' is a text, the other messages")
    implicit = prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str))
    if implicit:
        length = _shared(chosen, rejected)
        if length:
            prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
        elif prompt is None:
            raise InputError(
                f"{where}: 'chosen' and 'rejected' share no beginning that could be their prompt, "
                "and there is no 'prompt'"
            )
        else:
            implicit, prompt = False, [{"role": "user", "content": prompt}]
    pair = PreferencePair(
        prompt=parse_prompt(prompt, where, "prompt"),
        chosen=Completion(_answer(chosen, "chosen", where), _finished(row, "chosen")),
        rejected=Completion(_answer(rejected, "rejected", where), _finished(row, "rejected")),
        margin=_margin(row.get("margin"), where),
        labeler=str(row.get("labeler") or ""),
    )
    return pair, implicit


def _shared(chosen: Any, rejected: Any) -> int:
    """How many characters, or messages, both begin with; two texts that differ keep something each.

    Like TRL's `extract_prompt` it leaves the space before an answer to the answer; unlike it, it
    never ends within a word, because half a word has other tokens than the whole one.
    """
    most = min(len(chosen), len(rejected))
    length = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if not isinstance(chosen, str):
        return min(length, most - 1)  # one message is left on each side
    if chosen == rejected:
        return most  # to be counted, whatever stands in it
    length = min(length, most - 1)
    if any(text[length : length + 1].isalnum() for text in (chosen, rejected)):
        while length and chosen[length - 1].isalnum():
            length -= 1
    return length - 1 if length and chosen[length - 1] == " " else length


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and all(isinstance(m.get(n), str) for n in ("role", "content"))
            for m in value
        )
    )


def _answer(value: Any, name: str, where: str) -> str:
    if isinstance(value, list):
        if len(value) != 1 or value[0]["role"] != "assistant":
            roles = ", ".join(message["role"] for message in value)
            raise InputError(
                f"{where}: after the prompt, '{name}' must be one message of the assistant, not "
                f"{len(value)} ({roles})"
            )
        value = value[0]["content"]
    refuse_half_characters(value, where, name)
    return str(value)


def _finished(row: Mapping[str, Any], name: str) -> bool:
    return row.get(f"{name}_finished") is not False  # only our own files tell


def _margin(value: Any, where: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: 'margin' is {value!r}; it must be a number")
    return float(value)
