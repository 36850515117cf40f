"""Prompts: load, validate, drop duplicates, choose, and split by prompt."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from labeling.config import Prompts
from labeling.errors import InputError
from labeling.hub import name_and_revision
from labeling.records import Message, Prompt, write_prompts
from labeling.wording import counted

logger = logging.getLogger(__name__)

_EXAMPLE = '{"prompt": "…"}'


@dataclass(frozen=True)
class PromptMetrics:
    """What came out: prompts by split, and why others did not."""

    train: int
    evaluation: int
    duplicates: int
    left_out_by_limit: int


def prepare_prompts(
    config: Prompts, source: str, out: Path, evaluation: str | None = None
) -> PromptMetrics:
    """Write `out/prompts.parquet`: every distinct prompt once, marked train or evaluation.

    Args:
        source: a JSONL or Parquet file, or a data set's name on the hub.
        evaluation: the same, for evaluation only. A prompt in both is kept for evaluation alone,
            so that nothing is measured on what was trained.

    Raises:
        InputError: a file is missing, empty or malformed (naming the line), or holds too few
            prompts to split.
    """
    prompts, metrics = split_prompts(config, source, evaluation)
    write_prompts(prompts, out / "prompts.parquet")
    if metrics.duplicates:
        logger.warning("%d prompts are there more than once: each is used once", metrics.duplicates)
    logger.info(
        "%s to train on, %d to evaluate", counted(metrics.train, "prompt"), metrics.evaluation
    )
    return metrics


def split_prompts(
    config: Prompts, source: str, evaluation: str | None = None
) -> tuple[list[Prompt], PromptMetrics]:
    """Every distinct prompt once, marked train or evaluation; as `prepare_prompts`, and it raises
    the same."""
    prompts, duplicates = _distinct(load_prompts(source, config.column))
    rng = random.Random(f"prompts-{config.seed}")
    rng.shuffle(prompts)
    left_out = max(0, len(prompts) - config.limit) if config.limit else 0
    del prompts[len(prompts) - left_out :]
    if evaluation is None:
        if len(prompts) < 2:
            raise InputError(
                f"{source} holds {len(prompts)} distinct prompt; at least 2 are needed, one to "
                "train on and one to evaluate: add prompts"
            )
        count = min(max(1, round(len(prompts) * config.evaluation_fraction)), len(prompts) - 1)
        held_out, train = prompts[:count], prompts[count:]
    else:
        held_out, more = _distinct(load_prompts(evaluation, config.column))
        held_out_keys = {p.key for p in held_out}
        train = [p for p in prompts if p.key not in held_out_keys]
        duplicates += more + len(prompts) - len(train)
        if not train:
            raise InputError(
                f"every prompt of {source} is in {evaluation} too, and what evaluates is not "
                "trained on: give prompts.evaluation_path other prompts, or leave it out"
            )
    _refuse_mixed_forms(train + held_out)
    marked = train + [replace(p, split="evaluation") for p in held_out]
    return marked, PromptMetrics(
        train=len(train),
        evaluation=len(held_out),
        duplicates=duplicates,
        left_out_by_limit=left_out,
    )


def _refuse_mixed_forms(prompts: list[Prompt]) -> None:
    """Preference data is of one form in TRL, and a chat template changes every token."""
    chat = [p for p in prompts if p.messages is not None]
    if chat and len(chat) < len(prompts):
        raise InputError(
            f"{len(chat)} prompts are conversations and {len(prompts) - len(chat)} are plain text; "
            "write all of them, evaluation included, in one form"
        )


def _distinct(prompts: list[Prompt]) -> tuple[list[Prompt], int]:
    unique = list({p.key: p for p in prompts}.values())
    return unique, len(prompts) - len(unique)


def load_prompts(source: str, column: str = "prompt") -> list[Prompt]:
    """Read the prompts of a JSONL or Parquet file, or of the `train` split of a hub data set.

    Raises:
        InputError: naming the file and the line or row that is wrong.
    """
    prompts = []
    for where, row in read_rows(source):
        if column not in row:
            found = ", ".join(map(repr, row)) or "none"
            raise InputError(
                f"{where}: '{column}' is missing; the columns are {_cut(found)} (prompts.column "
                "names the one to read)"
            )
        prompts.append(parse_prompt(row[column], where, column))
    if not prompts:
        raise InputError(f"{source} holds no prompts: write one on each line, as {_EXAMPLE}")
    return prompts


def parse_prompt(value: Any, where: str, column: str) -> Prompt:
    """A row's value → Prompt; a text, or a list of messages with `role` and `content`."""
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{where}: '{column}' is empty; write a prompt, or remove the row")
        refuse_half_characters(value, where, column)
        return Prompt(text=value)
    if isinstance(value, list) and value:
        messages = []
        for message in value:
            if not isinstance(message, dict) or not all(
                isinstance(message.get(name), str) for name in ("role", "content")
            ):
                raise InputError(
                    f"{where}: a message in '{column}' needs 'role' and 'content', both text"
                )
            for text in (message["role"], message["content"]):
                refuse_half_characters(text, where, column)
            messages.append(Message(message["role"], message["content"]))
        if messages[-1].role == "assistant":
            raise InputError(
                f"{where}: the last message in '{column}' is the assistant's; a prompt ends where "
                "the assistant is to answer"
            )
        return Prompt(messages=tuple(messages))
    found = (
        "null"
        if value is None
        else f"{type(value).__name__} {_cut(json.dumps(value, default=str))}"
    )
    raise InputError(f"{where}: '{column}' is {found}; it must be a text or a list of messages")


def refuse_half_characters(text: str, where: str, column: str) -> None:
    """JSON can write half of a surrogate pair, which no encoding of Unicode can.

    Raises:
        InputError: the text holds one; `where` and `column` say which text it is.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(
            f"{where}: '{column}' holds {half}, half a character; write the whole one"
        ) from None


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"


def read_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(where, row)` of a JSONL or Parquet file, or of a hub data set's `train` split;
    `where` names file and line (or row) for error messages.

    Raises:
        InputError: the source is missing, not UTF-8, or not what its name says.
    """
    path = Path(source)
    kind = source_kind(source)
    if kind == "hub":
        yield from _hub_rows(source)
    elif kind == "parquet":
        try:
            table = pq.read_table(path)
        except Exception as error:  # pyarrow's errors are many and unrelated
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{path} cannot be read as Parquet, which its name says it is ({reason})"
            ) from None
        for number, row in enumerate(table.to_pylist(), start=1):
            yield f"{path}, row {number}", row
    else:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8"
                    ) from None
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"{where}: not JSON ({error.msg}); each line is an object, as {_EXAMPLE}"
                    ) from None
                except (ValueError, RecursionError) as error:  # numbers or depth beyond all use
                    raise InputError(f"{where}: cannot be read ({_cut(str(error))})") from None
                if not isinstance(row, dict):
                    raise InputError(f"{where}: a row must be an object, as {_EXAMPLE}")
                yield where, row


def source_kind(source: str) -> Literal["jsonl", "parquet", "hub"]:
    """What a source is: a file that exists, by its ending, or else a hub name.

    Raises:
        InputError: a path that does not exist, or an ending that is not read.
    """
    path = Path(source)
    if path.is_file():
        if path.suffix in (".jsonl", ".json", ".ndjson"):
            return "jsonl"
        if path.suffix == ".parquet":
            return "parquet"
        raise InputError(
            f"{path}: only .jsonl and .parquet files are read; convert it, or correct its ending"
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a .jsonl or .parquet file in it")
    name, _ = name_and_revision(source)
    if path.suffix or path.is_absolute() or name.count("/") > 1:
        raise InputError(f"{source} does not exist; correct the path")
    return "hub"


def _hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset  # noqa: PLC0415 - slow to import, and only hub names need it

    name, revision = name_and_revision(source)
    try:
        rows = load_dataset(name, split="train", revision=revision)
    except Exception as error:  # the hub's errors are many and unrelated
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{source} is no file here, and no data set on the hub that can be read: {reason}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source}, row {number}", dict(row)
