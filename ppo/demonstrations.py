"""Demonstrations: prompts with the completions that supervised fine-tuning imitates, as text and
as tokens."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labeling.errors import InputError
from labeling.prompts import parse_prompt, read_rows, refuse_half_characters
from labeling.records import Message, Prompt
from labeling.wording import counted
from ppo.policy import stop_tokens
from reward.encoding import (
    apply_template,
    closing_token,
    letter_ids,
    prompt_ids,
    spells_special,
)

logger = logging.getLogger(__name__)

_HARMLESS = "An answer."


@dataclass(frozen=True)
class Demonstration:
    """One prompt and how it was answered."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class Encoded:
    """A demonstration's tokens. `completion` ends with a stop token unless it was cut."""

    prompt: list[int]
    completion: list[int]
    cut: bool


def load_demonstrations(
    data: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    field: str = "sft.max_length",
) -> tuple[list[Encoded], int]:
    """The tokens of all demonstrations in `data` (a file or a hub data set), and how many were
    left out: those whose prompt alone fills `max_length` or the model's context. `field` is where
    the config says `max_length`.

    Raises:
        InputError: the data cannot be read, or none is left.
    """
    stop = stop_tokens(model, tokenizer)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(max_length, context or max_length)
    examples: list[Encoded] = []
    left_out = 0
    for where, row in read_rows(data):
        demonstration = parse_demonstration(row, where)
        try:
            encoded = encode_demonstration(tokenizer, demonstration, stop, limit)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if encoded is None:
            left_out += 1
        else:
            examples.append(encoded)
    if not examples:
        raise InputError(
            f"{data} holds no example that fits: {left_out} have prompts of {limit} tokens or more "
            f"({field} and the model's context)"
        )
    cut = sum(e.cut for e in examples)
    if cut or left_out:
        logger.warning("%s cut at %d tokens, %d left out", counted(cut, "example"), limit, left_out)
    return examples, left_out


def parse_demonstration(row: dict[str, Any], where: str) -> Demonstration:
    """A row with `prompt` and `completion`, each text or messages, or with `messages`, of which
    the last is the completion.

    Raises:
        InputError: a column is missing or has another form; `where` names file and line.
    """
    if row.get("prompt") is None and row.get("messages") is not None:
        messages = row["messages"]
        if not isinstance(messages, list) or len(messages) < 2:
            raise InputError(f"{where}: 'messages' needs a question and its answer at least")
        answer = _answer(messages[-1], where, "messages")
        return Demonstration(parse_prompt(messages[:-1], where, "messages"), answer)
    for column in ("prompt", "completion"):
        if row.get(column) is None:
            raise InputError(
                f"{where}: no '{column}'; each row needs 'prompt' and 'completion', or 'messages'"
            )
    prompt = parse_prompt(row["prompt"], where, "prompt")
    completion = row["completion"]
    if isinstance(completion, str):
        if not completion.strip():
            raise InputError(f"{where}: 'completion' is empty")
        refuse_half_characters(completion, where, "completion")
        return Demonstration(prompt, completion)
    if not isinstance(completion, list) or len(completion) != 1:
        raise InputError(f"{where}: 'completion' must be a text or a list of one message")
    if prompt.messages is None:
        raise InputError(
            f"{where}: 'completion' is a message but 'prompt' is text; give both the same form"
        )
    return Demonstration(prompt, _answer(completion[0], where, "completion"))


def _answer(message: Any, where: str, column: str) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not content.strip() or message.get("role") != "assistant":
        raise InputError(
            f"{where}: the last message of '{column}' must have the role 'assistant' and a text "
            "as 'content'"
        )
    refuse_half_characters(content, where, column)
    return content


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase,
    demonstration: Demonstration,
    stop: Collection[int],
    max_length: int,
) -> Encoded | None:
    """Tokens as sampling will see them: prompt and completion apart, so that no token spans both.
    What exceeds `max_length` is cut at the end; None when nothing of the completion is left.

    Raises:
        InputError: a conversation, and the tokenizer has no chat template or it refuses it.
    """
    prompt = prompt_ids(tokenizer, demonstration.prompt)
    completion = _completion_ids(tokenizer, demonstration, stop)
    if len(prompt) >= max_length or not prompt:
        return None
    kept = completion[: max_length - len(prompt)]
    return Encoded(prompt, kept, cut=len(kept) < len(completion))


def _completion_ids(
    tokenizer: PreTrainedTokenizerBase, demonstration: Demonstration, stop: Collection[int]
) -> list[int]:
    """The answer, closed once: plain text by EOS, a chat answer as the template writes it, by the
    template's own end of turn. Special tokens that the answer itself spells are letters, as for the
    reward model; but where it ends with the one that closes it, it is closed already."""
    prompt, answer = demonstration.prompt, demonstration.completion
    closing = closing_token(tokenizer, prompt)
    for end in (tokenizer.eos_token_id, closing):
        answer = answer.removesuffix(str(tokenizer.convert_ids_to_tokens(end)))
    if prompt.messages is None:
        ids = letter_ids(tokenizer, answer)
        return ids if ids and ids[-1] in stop else [*ids, closing]
    text = _written(tokenizer, prompt.messages, answer)
    if spells_special(tokenizer, answer):
        head, _, tail = _written(tokenizer, prompt.messages, _HARMLESS).rpartition(_HARMLESS)
        said = text.removeprefix(head).removesuffix(tail)
        ids = [*_ids(tokenizer, head), *letter_ids(tokenizer, said), *_ids(tokenizer, tail)]
    else:
        ids = _ids(tokenizer, text)
    end = next((i for i, token in enumerate(ids) if token in stop), None)
    return [*ids, closing] if end is None else ids[: end + 1]


def _written(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str) -> str:
    """What the template adds to the conversation with this answer, after its generation prompt."""
    before = apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=True)
    turns = (*messages, Message("assistant", answer))
    whole = apply_template(tokenizer, turns, tokenize=False)
    # Some templates rewrite history, which sampling never sees.
    return str(whole[len(before) :] if whole.startswith(before) else answer)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
