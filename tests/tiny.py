"""Tiny random models that tests make for themselves: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)  # threads only get into each other's way on models this small

WORDS = [
    *("hello", "the", "support", "desk", "answers", "your", "question"),
    *("about", "order", "now", "please", "thanks", "bad", "good"),
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer(pad: bool = True, chat: bool = False) -> PreTrainedTokenizerFast:
    """Words, single characters for everything else, and `<eos>` (and `<pad>`) as special tokens."""
    special = ["<eos>", "<pad>", "<unk>", "<user>", "<assistant>"]
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys([*special, *WORDS, *letters]))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<eos>",
        pad_token="<pad>" if pad else None,
        unk_token="<unk>",
    )
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


def policy(tokens: PreTrainedTokenizerFast, seed: int = 0, std: float = 0.5) -> LlamaForCausalLM:
    """A Llama of two layers × 16."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=std,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            bos_token_id=None,
        )
    ).eval()


def save(folder: Path, *, pad: bool = True, chat: bool = False, seed: int = 0) -> Path:
    """A tiny policy with its tokenizer as a model folder."""
    tokens = tokenizer(pad, chat)
    policy(tokens, seed).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
