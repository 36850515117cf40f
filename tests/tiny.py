"""Tiny random models that tests make for themselves: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
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


# As published: a base model's tokenizer with ChatML (its end of turn is not EOS, its pad is), and
# Llama 3.2's, which writes BOS and the day itself, trims messages, and wants roles in turns.
CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}{% endmacro %}
{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- endif %}
{{- head('system') + 'Today Date: ' + day + '\n\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/...') }}
    {%- endif %}
    {{- head(m.role) + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- head('assistant') }}{%- endif %}"""
CHAT = {
    "chatml": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    "llama3": (
        LLAMA3,
        [
            *("<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>"),
        ],
    ),
}


def chat_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the special tokens and the template of `CHAT[kind]`."""
    template, special = CHAT[kind]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([" ".join([*WORDS, "system", "user", "assistant"])], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=special[0])
    if kind == "chatml":
        made.pad_token = special[0]
    else:
        made.bos_token = bos = special[1]
        raw = made.backend_tokenizer
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.bos_token_id)]
        )
    made.chat_template = template
    return made


def policy(
    tokens: PreTrainedTokenizerFast, seed: int = 0, std: float = 0.5, context: int = 64
) -> LlamaForCausalLM:
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
            max_position_embeddings=context,
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
