"""How long texts are in tokens, read from the files that the config names, without transformers."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config import RoundConfig
from labeling.prompts import read_rows

_LOOKED_AT = 16  # the longest texts in characters, which are then counted in tokens
_UNKNOWN = 512  # tokens of a prompt where its file is not here


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt, demonstration and pair; `how` says what was assumed."""

    prompt: int
    demonstration: int
    pair: int
    how: str = ""


def measure(config: RoundConfig, context: int | None) -> Lengths:
    """The longest texts of the config's files, within its limits and the model's context.

    Raises:
        InputError: a file cannot be read.
    """
    tokens, how = _counter(Path(config.model) / "tokenizer.json")
    room = context or 10**9
    sources = []
    if config.prompts:
        sources = [config.prompts.path, config.prompts.evaluation_path]
    files = [source for source in sources if source and Path(source).is_file()]
    column = config.prompts.column if config.prompts else "prompt"
    if files:
        prompt = max(_longest((row.get(column) for _, row in read_rows(f)), tokens) for f in files)
    else:
        prompt, how = _UNKNOWN, " (assumed)"
    drawn = config.sampling.max_new_tokens
    ranked = max(1, min(prompt, room - drawn)) + drawn
    prompt = max(1, min(prompt, room - config.ppo.max_new_tokens))
    demonstration = 0
    if config.sft:
        demonstration = min(config.sft.max_length, room)
        if Path(config.sft.data).is_file():
            rows = (_text(row) for _, row in read_rows(config.sft.data))
            demonstration = min(demonstration, _longest(rows, tokens) + 1)  # EOS
    pair = min(config.reward.max_length, room)
    if not config.preferences:
        pair = min(pair, ranked)
    elif Path(config.preferences.data).is_file():
        rows = (
            _text(row, ("prompt", side))
            for _, row in read_rows(config.preferences.data)
            for side in ("chosen", "rejected")
        )
        pair = min(pair, _longest(rows, tokens) + 1)
    return Lengths(prompt, demonstration, pair, how)


def _counter(tokenizer: Path) -> tuple[Callable[[str], int], str]:
    if not tokenizer.is_file():
        return (lambda text: -(-len(text) // 3)), " (a token every three characters)"
    from tokenizers import Tokenizer  # noqa: PLC0415

    encode = Tokenizer.from_file(str(tokenizer)).encode
    return (lambda text: len(encode(text).ids)), ""


def _longest(values: Iterable[Any], tokens: Callable[[str], int]) -> int:
    longest = heapq.nlargest(_LOOKED_AT, (_plain(value) for value in values), key=len)
    return max((tokens(text) for text in longest), default=1)


def _text(
    row: dict[str, Any], columns: Iterable[str] = ("prompt", "completion", "messages")
) -> str:
    return "".join(_plain(row.get(column)) for column in columns)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "".join(
            f"{m.get('role')} {m.get('content')}\n" for m in value if isinstance(m, dict)
        )
    return value if isinstance(value, str) else ""
