"""Texts to token ids, in one place: sampling, SFT, reward model, PPO and evaluation all build the
same tokens from a prompt, and the reward model is trained and asked with the same tokens of a
completion (its decoded text, encoded anew, and the closing token where it was finished)."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from labeling.errors import InputError
from labeling.hub import name_and_revision
from labeling.records import Completion, Message, Prompt
from reward.loading import or_complain

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
# Some templates (Llama 3.2, SmolLM3, gpt-oss) write today's date into the prompt, but a round may
# wait for its labelers for days. All are told the day that Llama's fall back to without a clock.
_DAY = datetime(2024, 7, 26)
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('%{c}', '{_DAY.strftime(f'%{c}')}')" for c in "aAbBdmyYHMSjpI")
    + " }}{% endmacro %}{{ '' }}"
)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or of a hub name (`name@commit`).

    Raises:
        InputError: there is none, or it has no end-of-sequence token.
    """
    name, revision = name_and_revision(model)
    tokenizer = or_complain(
        lambda: AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False),
        f"cannot load the tokenizer of {model}",
    )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {model} has no end-of-sequence token: give it one, e.g. "
            '"eos_token" in its tokenizer_config.json'
        )
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The tokens a policy continues: plain text with the tokenizer's own first token (BOS, where
    it has one), a conversation through the chat template with the generation prompt.

    Plain text means what it says: special tokens in it are special tokens. In a conversation only
    the template writes them; a message with the letters `<|im_end|>` ends no turn.

    Raises:
        InputError: a conversation, and the tokenizer has no chat template or it refuses it.
    """
    if prompt.messages is None:
        ids = list(tokenizer(prompt.text)["input_ids"])
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]  # the text came with its own
        # Some tokenizers close every text; a prompt is to be continued.
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    spelled = spells_special(tokenizer, *(message.content for message in prompt.messages))
    return apply_template(
        tokenizer,
        prompt.messages,
        add_generation_prompt=True,
        return_dict=False,
        sanitize_control_tokens=spelled,
    )


def spells_special(tokenizer: PreTrainedTokenizerBase, *texts: str) -> bool:
    """Whether a text holds letters that the tokenizer would take for a special token."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return any(token in text for text in texts for token in special)


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **settings: Any
) -> Any:
    """The conversation through the chat template, the same on every day; `settings` are those of
    `apply_chat_template`.

    Raises:
        InputError: there is no template, or it refuses the conversation (roles that do not
            alternate, a role it does not know).
    """
    if not tokenizer.chat_template:
        raise InputError(
            "the prompts are conversations, but the model's tokenizer has no chat template; "
            "use a chat model, or prompts of plain text"
        )
    rows = [{"role": m.role, "content": m.content} for m in messages]
    try:
        template = tokenizer.get_chat_template()  # of several with names, none may be the default
        if "strftime_now" in template:
            template = _FIXED_CLOCK + template
        return tokenizer.apply_chat_template(rows, chat_template=template, **settings)
    except Exception as error:  # a template is a program, and fails like one
        roles = ", ".join(m.role for m in messages)
        begin = textwrap.shorten(messages[-1].content, 60, placeholder=" …")
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the model's chat template refuses the conversation that ends with '{begin}' (roles: "
            f"{roles}): {reason}; change or remove that prompt"
        ) from error


def completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion
) -> list[int]:
    """The tokens of what a policy wrote, closed when it was finished. Its text holds no special
    tokens (decoding left them out), so letters that look like one are letters: a policy cannot
    spell its way into another turn."""
    ids = letter_ids(tokenizer, completion.text)
    return [*ids, closing_token(tokenizer, prompt)] if completion.finished else ids


def letter_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of what a text says: what looks like a special token in it is letters."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def closing_token(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    """What ends an answer to this prompt: EOS after plain text, in a conversation the template's
    own end of turn."""
    turn_end = None if prompt.messages is None else end_of_turn(tokenizer)
    return tokenizer.eos_token_id if turn_end is None else turn_end


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts after an assistant's message: often EOS, in
    base models with a template often not. None without a template, or when it puts none."""
    if not tokenizer.chat_template:
        return None
    said = "An answer."
    try:
        text = apply_template(
            tokenizer, (Message("user", "A question."), Message("assistant", said)), tokenize=False
        )
    except InputError:  # it takes no conversation as simple as this
        return None
    after = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    return next((i for i in after if i in added and added[i].special), None)


def give_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer whose pad token is missing, or ends answers too, one of its own, and tell
    the model.

    A spare token of the vocabulary is taken where there is one; else a token is added, and the
    embeddings grow by a row if the matrix has none left over (GPT-2, Llama 2). With pad = EOS the
    reward model would read its score from the token before EOS, without a word.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, end_of_turn(tokenizer)):
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
