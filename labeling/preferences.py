"""Preference pairs that exist already, in TRL's format → pairs, as rankings would have given."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeling.config import Preferences
from labeling.errors import InputError
from labeling.pair_table import write_pairs
from labeling.prompts import parse_prompt, read_rows, refuse_half_characters
from labeling.records import Completion, PreferencePair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceMetrics:
    """What was given. `identical_texts` rows were dropped; `duplicates` are kept, since each may be
    somebody's vote; `implicit_prompts` were taken from what both texts begin with."""

    pairs: int
    prompts: int
    identical_texts: int
    duplicates: int
    implicit_prompts: int


def load_preferences(config: Preferences, data: str, out: Path) -> PreferenceMetrics:
    """Write `out/pairs.parquet` (labeling/pairs.py says its columns) from pairs in TRL's format.

    Args:
        data: a JSONL or Parquet file, or a data set's name on the hub (`name@commit`), with columns
            `chosen` and `rejected`, `prompt` unless both begin with it, and perhaps `margin`.

    Raises:
        InputError: a row is not of this format (naming file and line), texts and conversations are
            mixed, or no pair is left.
    """
    pairs: list[PreferencePair] = []
    rows = implicit = 0
    for where, row in read_rows(data):
        pair, was_implicit = parse_preference(row, where)
        rows += 1
        implicit += was_implicit
        if pair.chosen.text != pair.rejected.text:
            pairs.append(pair)
    if not pairs:
        raise InputError(
            f"{data} holds no preference between two texts: {rows} rows, all of them identical"
            if rows
            else f"{data} holds no preference pairs"
        )
    chat = sum(pair.prompt.messages is not None for pair in pairs)
    if 0 < chat < len(pairs):
        raise InputError(
            f"{data}: {chat} pairs are conversations and {len(pairs) - chat} are plain text; "
            "write all of them in one form"
        )
    write_pairs(pairs, out / "pairs.parquet")
    votes = Counter((p.prompt.key, p.chosen.text, p.rejected.text) for p in pairs)
    metrics = PreferenceMetrics(
        pairs=len(pairs),
        prompts=len({pair.prompt.key for pair in pairs}),
        identical_texts=rows - len(pairs),
        duplicates=len(pairs) - len(votes),
        implicit_prompts=implicit,
    )
    if metrics.identical_texts:
        logger.warning("%d of %d pairs have two equal texts: left out", rows - len(pairs), rows)
    logger.info("%d pairs of %d prompts", metrics.pairs, metrics.prompts)
    return metrics


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
