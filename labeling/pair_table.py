"""Preference pairs as Parquet, in TRL's columns.

`prompt`, `chosen` and `rejected` are texts, or lists of messages for conversations: TRL wants one
form in a file. `margin` is what TRL's trainers read beside them. The rest is ours, and other
trainers pass over it: `prompt_key` (split by it, never by pair), `chosen_finished` and
`rejected_finished`, `labeler` (empty for a majority), and `tie`, for a pair of which neither side
is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labeling.errors import InputError
from labeling.parquet import BATCH, read_batches, table_writer
from labeling.prompts import parse_prompt
from labeling.records import Completion, PreferencePair, Prompt

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def schema(is_chat: bool) -> pa.Schema:
    kind = _MESSAGES if is_chat else pa.string()
    return pa.schema(
        [
            ("prompt", kind),
            ("chosen", kind),
            ("rejected", kind),
            ("margin", pa.float64()),
            ("prompt_key", pa.string()),
            ("chosen_finished", pa.bool_()),
            ("rejected_finished", pa.bool_()),
            ("labeler", pa.string()),
            ("tie", pa.bool_()),
        ]
    )


@contextmanager
def pair_writer(path: Path, is_chat: bool) -> Iterator[pq.ParquetWriter]:
    """Write tables of `schema` piece by piece, atomically. A text stands in several pairs of its
    task; each row group stores it once, for its dictionary may grow as large as the texts are."""
    with table_writer(path, schema(is_chat), "lz4", dictionary_bytes=2**30) as writer:
        yield writer


def answers(texts: pa.StringArray, is_chat: bool) -> pa.Array:
    """Completions as `chosen` and `rejected` hold them, (n,)."""
    if not is_chat:
        return texts
    role = pa.repeat("assistant", len(texts))
    message = pa.StructArray.from_arrays([role, texts], fields=list(_MESSAGES.value_type))
    return pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), message)


def write_pairs(pairs: Sequence[PreferencePair], path: Path) -> None:
    """Write pairs in the order given.

    Raises:
        InputError: some prompts are plain text and others are conversations.
    """
    chat = sum(pair.prompt.messages is not None for pair in pairs)
    if 0 < chat < len(pairs):
        raise InputError(
            f"{chat} pairs are conversations and {len(pairs) - chat} are plain text; "
            "write all of them in one form"
        )
    with pair_writer(path, bool(chat)) as writer:
        for start in range(0, len(pairs), BATCH):
            writer.write_table(_table(pairs[start : start + BATCH], bool(chat)))


def _table(pairs: Sequence[PreferencePair], is_chat: bool) -> pa.Table:
    columns = {
        "prompt": [_prompt_value(p.prompt) for p in pairs],
        "chosen": answers(pa.array([p.chosen.text for p in pairs], pa.string()), is_chat),
        "rejected": answers(pa.array([p.rejected.text for p in pairs], pa.string()), is_chat),
        "margin": [p.margin for p in pairs],
        "prompt_key": [p.prompt.key for p in pairs],
        "chosen_finished": [p.chosen.finished for p in pairs],
        "rejected_finished": [p.rejected.finished for p in pairs],
        "labeler": [p.labeler for p in pairs],
        "tie": [p.tie for p in pairs],
    }
    return pa.table(columns, schema=schema(is_chat))


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read pairs in TRL's columns, ours or another's: `margin` and what follows may be missing.

    Raises:
        InputError: a column is missing or a value has the wrong form, naming the row.
    """
    names = pq.read_schema(path).names
    missing = {"prompt", "chosen", "rejected"} - set(names)
    if missing:
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}")
    pairs: list[PreferencePair] = []
    before: Any = None
    for batch in read_batches(path, [n for n in schema(is_chat=False).names if n in names]):
        for row in batch.to_pylist():
            where = f"{path}, row {len(pairs) + 1}"
            if before is None or row["prompt"] != before:  # pairs of a prompt share one
                prompt, before = parse_prompt(row["prompt"], where, "prompt"), row["prompt"]
            pairs.append(
                PreferencePair(
                    prompt=prompt,
                    chosen=_answer(row, "chosen", where),
                    rejected=_answer(row, "rejected", where),
                    margin=row.get("margin") or 0.0,
                    tie=row.get("tie") is True,
                    labeler=row.get("labeler") or "",
                )
            )
    return pairs


def _prompt_value(prompt: Prompt) -> Any:
    if prompt.messages is None:
        return prompt.text
    return [{"role": m.role, "content": m.content} for m in prompt.messages]


def _answer(row: dict[str, Any], column: str, where: str) -> Completion:
    value = row[column]
    finished = row.get(f"{column}_finished")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise InputError(f"{where}: '{column}' must be a text or one assistant message")
    return Completion(value, True if finished is None else finished)
