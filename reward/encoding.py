"""Texts to token ids, in one place: sampling, SFT'd policy, reward model, PPO and evaluation all
build exactly the same tokens from a prompt and a completion."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from labeling.errors import InputError
from labeling.hub import name_and_revision
from labeling.records import Completion, Prompt


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or of a hub name (`name@commit`).

    Raises:
        InputError: there is none, or it has no end-of-sequence token.
    """
    name, revision = name_and_revision(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().splitlines()
        raise InputError(
            f"cannot load the tokenizer of {model}: {reason[0] if reason else error!r}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {model} has no end-of-sequence token; give it one")
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The tokens a policy continues: plain text with the tokenizer's own first token (BOS, where
    it has one), a conversation through the chat template with the generation prompt.

    Raises:
        InputError: a conversation, and the tokenizer has no chat template.
    """
    if prompt.messages is None:
        ids = list(tokenizer(prompt.text)["input_ids"])
        # Some tokenizers close every text; a prompt is to be continued.
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    if not tokenizer.chat_template:
        raise InputError(
            "the prompts are conversations, but the model's tokenizer has no chat template; "
            "use a chat model, or prompts of plain text"
        )
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def completion_ids(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> list[int]:
    """The tokens of a completion, closed by EOS when it was finished."""
    ids = list(tokenizer(completion.text, add_special_tokens=False)["input_ids"])
    return [*ids, tokenizer.eos_token_id] if completion.finished else ids
