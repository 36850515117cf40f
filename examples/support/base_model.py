"""The demo's base model: a byte-level BPE tokenizer of the corpus, and a small Llama that has
learned nothing yet."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 900
CONTEXT = 256
EOS, PAD = "<|end|>", "<|pad|>"


def write_base_model(folder: Path, texts: list[str], seed: int) -> None:
    """Write a model folder that transformers loads: 4 layers × 128, some 1M parameters.

    Weights start with a standard deviation of 0.08 rather than the usual 0.02: at this width the
    usual start never learns to copy the product from the prompt.
    """
    tokenizer = train_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.json"):  # keys in one order, whatever the library's
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name != "tokenizer.json":
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written, and pad and EOS are tokens of their own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
