"""What travels from prompts to preferences: small frozen records, and their Parquet files.

A prompt or a completion is either plain text or chat messages. Records hold what a person would
read; token ids never leave `reward/` and `ppo/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.parquet import BATCH, read_batches, write_table

Split = Literal["train", "evaluation"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, e.g. `Message("user", "Where is my order?")`."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a policy answers: plain text, or the messages of a conversation.

    Exactly one of `text` and `messages` is set. `key` is a digest of the content alone, so the
    same prompt has the same key in every file, run and round.
    """

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    split: Split = "train"

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError("a Prompt has either text or messages")

    @cached_property
    def key(self) -> str:
        if self.messages is None:
            return digest(["text", self.text])
        return digest(["messages", [[m.role, m.content] for m in self.messages]])

    @property
    def readable(self) -> str:
        """The prompt as one text for people and for user functions: plain text as it is, a
        conversation as `role: content` paragraphs."""
        if self.messages is None:
            return self.text or ""
        return "\n\n".join(f"{m.role}: {m.content}" for m in self.messages)


@dataclass(frozen=True)
class Completion:
    """One answer. `finished` is False when it hit the token limit instead of a stop token."""

    text: str
    finished: bool = True


@dataclass(frozen=True)
class Candidates:
    """One prompt's K completions: the task that a labeler ranks.

    `key` names the task everywhere (in Label Studio's data, in the frozen labels): it is a digest
    of the prompt and of the completions in order.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]

    @cached_property
    def key(self) -> str:
        return digest([self.prompt.key, [c.text for c in self.completions]])


@dataclass(frozen=True)
class Ranking:
    """One labeler's order of one task's completions.

    `tiers` holds indices into `Candidates.completions`, best tier first; indices in one tier are
    tied. Example: `tiers=((2, 3), (0,), (1,))` says 2 and 3 are equally good, then 0, then 1.
    """

    task: str
    labeler: str
    tiers: tuple[tuple[int, ...], ...]
    none_acceptable: bool = False
    bad_prompt: bool = False
    reason: str = ""


@dataclass(frozen=True)
class PreferencePair:
    """One completion preferred to another, in TRL's columns `prompt`, `chosen`, `rejected`.

    `margin` is the distance in tiers scaled by the user's setting; TRL subtracts it inside the
    logistic loss. 0 asks for no margin. `tie` says that neither is better; such a pair stands in
    both orders (labeling/pairs.py says why).
    """

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    margin: float = 0.0
    labeler: str = field(default="", compare=False)
    tie: bool = False


def digest(value: object) -> str:
    """16 hex digits of SHA-256 over the value's canonical JSON."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- Parquet -------------------------------------------------------------------------------------

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_COMPLETION = pa.struct([("text", pa.string()), ("finished", pa.bool_())])
_PROMPT = [("text", pa.string()), ("messages", _MESSAGES), ("split", pa.string())]
_PROMPTS = pa.schema(_PROMPT)
_KEYS = [("key", pa.string()), ("prompt_key", pa.string())]
_CANDIDATES = pa.schema([*_PROMPT, ("completions", pa.list_(_COMPLETION)), *_KEYS])
_RANKINGS = pa.schema(
    [
        ("task", pa.string()),
        ("labeler", pa.string()),
        ("tiers", pa.list_(pa.list_(pa.int32()))),
        ("none_acceptable", pa.bool_()),
        ("bad_prompt", pa.bool_()),
        ("reason", pa.string()),
    ]
)


def _prompt_row(prompt: Prompt) -> dict:
    messages = prompt.messages
    return {
        "text": prompt.text,
        "messages": None
        if messages is None
        else [{"role": m.role, "content": m.content} for m in messages],
        "split": prompt.split,
    }


def _prompt_of(row: dict) -> Prompt:
    messages = row["messages"]
    return Prompt(
        text=row["text"],
        messages=None
        if messages is None
        else tuple(Message(m["role"], m["content"]) for m in messages),
        split=row["split"],
    )


def write_prompts(prompts: Iterable[Prompt], path: Path) -> None:
    write_table(pa.Table.from_pylist([_prompt_row(p) for p in prompts], schema=_PROMPTS), path)


def read_prompts(path: Path, split: Split | None = None) -> list[Prompt]:
    """All prompts of the file in order, or those of one split."""
    prompts = [_prompt_of(row) for row in pq.read_table(path).to_pylist()]
    return [p for p in prompts if split is None or p.split == split]


def write_candidates(candidates: Iterable[Candidates], path: Path) -> None:
    """Write tasks with their keys beside them, for a digest of every text takes its time."""
    rows = [
        _prompt_row(c.prompt)
        | {
            "completions": [{"text": a.text, "finished": a.finished} for a in c.completions],
            "key": c.key,
            "prompt_key": c.prompt.key,
        }
        for c in candidates
    ]
    table = pa.Table.from_pylist(rows, schema=_CANDIDATES)
    write_table(table, path, compression="lz4", row_group_size=BATCH)


def read_candidates(path: Path) -> list[Candidates]:
    """All tasks of the file in order, with or without keys in it."""
    return [_candidates_of(row) for row in pq.read_table(path, columns=_READ).to_pylist()]


def read_task_keys(path: Path) -> tuple[pa.StringArray, pa.StringArray]:
    """The keys of the tasks in a file of candidates, and those of their prompts, (tasks,) each.

    They are read where they stand in the file, and computed for one that was written before they
    did.
    """
    if {"key", "prompt_key"} <= set(pq.read_schema(path).names):
        table = pq.read_table(path, columns=["key", "prompt_key"])
        return table["key"].combine_chunks(), table["prompt_key"].combine_chunks()
    keys = [
        (task.key, task.prompt.key)
        for batch in read_batches(path, _READ)
        for task in map(_candidates_of, batch.to_pylist())
    ]
    return pa.array([k for k, _ in keys], pa.string()), pa.array([p for _, p in keys], pa.string())


_READ = ["text", "messages", "split", "completions"]


def _candidates_of(row: dict) -> Candidates:
    return Candidates(
        _prompt_of(row), tuple(Completion(c["text"], c["finished"]) for c in row["completions"])
    )


def write_rankings(rankings: Sequence[Ranking], path: Path) -> None:
    """Write rankings as canonical rows: sorted, without ids and times, so that the same answers
    give the same bytes whichever server and export they came from. They name the labelers: only the
    owner may read the file."""
    rows = sorted(
        (
            {
                "task": r.task,
                "labeler": r.labeler,
                "tiers": [sorted(tier) for tier in r.tiers],
                "none_acceptable": r.none_acceptable,
                "bad_prompt": r.bad_prompt,
                "reason": r.reason,
            }
            for r in rankings
        ),
        key=lambda row: (row["task"], row["labeler"]),
    )
    write_table(pa.Table.from_pylist(rows, schema=_RANKINGS), path, is_private=True)


def read_rankings(path: Path) -> list[Ranking]:
    return [
        Ranking(
            task=row["task"],
            labeler=row["labeler"],
            tiers=tuple(tuple(tier) for tier in row["tiers"]),
            none_acceptable=row["none_acceptable"],
            bad_prompt=row["bad_prompt"],
            reason=row["reason"],
        )
        for row in pq.read_table(path).to_pylist()
    ]
