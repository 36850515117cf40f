"""Texts to token ids, in one place: sampling, SFT, reward model, PPO and evaluation all build the
same tokens from a prompt, and the reward model is trained and asked with the same tokens of a
completion (its decoded text, encoded anew, and EOS where it was finished)."""

from __future__ import annotations

import logging

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from labeling.errors import InputError
from labeling.hub import name_and_revision
from labeling.records import Completion, Prompt

logger = logging.getLogger(__name__)

PAD_TOKEN = "<|pad|>"
# What published vocabularies call a token for padding, or one that is used for nothing.
SPARE_TOKENS = (
    PAD_TOKEN,
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
)


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


def give_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer whose pad token is missing, or is EOS, one of its own, and tell the model.

    A spare token of the vocabulary is taken where there is one; else a token is added, and the
    embeddings grow by a row if the matrix has none left over (GPT-2, Llama 2). With pad = EOS the
    reward model would read its score from the token before EOS, without a word.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        spare = next((token for token in SPARE_TOKENS if token in vocabulary), PAD_TOKEN)
        tokenizer.add_special_tokens({"pad_token": spare})
        rows = len(model.get_input_embeddings().get_parameter("weight"))
        if len(tokenizer) > rows:
            model.resize_token_embeddings(len(tokenizer))
        logger.info("the tokenizer has no pad token of its own: %s is it now", spare)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)  # a classifier has none
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id
