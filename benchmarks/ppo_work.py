"""The work that both sides of `ppo_vs_trl.py` do: models, prompts, forced response lengths; and how
a step's CPU seconds and memory are read. Imported by the measuring child processes only."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl.trainer.utils import compute_flops_per_token

EOS, PAD, PLAIN = 0, 1, 2  # token ids; PLAIN is one that means nothing
PROMPTS = 64
PROMPT_LENGTHS = (32, 64)
MAX_NEW_TOKENS = 64
EOS_RATE = 1 / 40  # chance that a response ends after a token
EPOCHS = 4
MINIBATCHES = 4
LEARNING_RATE = 1e-5
KL_COEF = 0.05
LAMBDA = 0.95


@dataclass(frozen=True)
class Shape:
    """A Llama: vocabulary, width, feed-forward width, layers, heads. Embeddings are not tied."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int | None = None  # default: as many

    def config(self, **extra: Any) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
            **extra,
        )


SHAPES = {
    "XS": Shape(vocabulary=512, width=32, feed_forward=64, layers=2, heads=2),  # to try things out
    "S": Shape(vocabulary=2_048, width=128, feed_forward=384, layers=4, heads=4),
    "M": Shape(vocabulary=4_096, width=320, feed_forward=864, layers=7, heads=5),
    "L": Shape(vocabulary=8_192, width=640, feed_forward=1_728, layers=9, heads=10),
    "V": Shape(vocabulary=50_257, width=128, feed_forward=384, layers=4, heads=4),
    # Of the sizes of Qwen2.5 0.5B and 1.5B, for a GPU.
    "0.5B": Shape(150_000, width=896, feed_forward=4_864, layers=24, heads=14, kv_heads=2),
    "1.5B": Shape(150_000, width=1_536, feed_forward=8_960, layers=28, heads=12, kv_heads=2),
}


@dataclass(frozen=True)
class Work:
    """Prompts as token ids, and how many tokens each one's response has, EOS included."""

    prompts: list[list[int]]
    lengths: list[int]

    def lengths_of(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """The forced lengths of prompts that come in another order."""
        lengths = {tuple(p): n for p, n in zip(self.prompts, self.lengths, strict=True)}
        return [lengths[tuple(p)] for p in prompts]


def make_work(shape: Shape, seed: int = 8) -> Work:
    """Random prompts of 32 to 64 tokens; lengths geometric with EOS about once in 40 tokens, cut
    at 64. With seed 8 they sum to 2,052, where 2,053 are expected; the prompts to 3,140."""
    draw = torch.Generator().manual_seed(seed)
    low, high = PROMPT_LENGTHS
    sizes = torch.randint(low, high + 1, (PROMPTS,), generator=draw).tolist()
    lengths = torch.empty(PROMPTS).geometric_(EOS_RATE, generator=draw)
    prompts = [torch.randint(PLAIN, shape.vocabulary, (n,), generator=draw).tolist() for n in sizes]
    return Work(prompts, lengths.clamp(max=MAX_NEW_TOKENS).long().tolist())


def make_policy(shape: Shape) -> Any:
    """A Llama as policy, the same at every call, in float32."""
    torch.manual_seed(1)
    return LlamaForCausalLM(shape.config()).eval()


def make_scorer(shape: Shape) -> Any:
    """A reward model (for TRL a critic too) of the policy's size, in float32."""
    torch.manual_seed(2)
    return LlamaForSequenceClassification(shape.config(num_labels=1)).eval()


def warm_up() -> None:
    """What is imported and started only when it is first used, so that it is in memory before the
    meter takes its base: a pass forward and backward of the smallest models."""
    ids = torch.arange(8)[None]
    make_scorer(SHAPES["XS"])(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum()
    policy = make_policy(SHAPES["XS"])
    policy(input_ids=ids).logits.sum().backward()
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    policy.generate(input_ids=ids, max_new_tokens=2, do_sample=True)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """It knows EOS and PAD, which is all that is asked of it: the work is in token ids."""
    raw = Tokenizer(WordLevel({"<eos>": EOS, "<pad>": PAD, "<plain>": PLAIN}, unk_token="<plain>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


def force_lengths(policy: PreTrainedModel, work: Work) -> None:
    """From now on `policy.generate` ends each response with EOS exactly at its forced length.

    Drawn tokens are replaced, scores are not: the log-probabilities stay the policy's own.
    """
    generate: Any = policy.generate

    def forced(*, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Any:
        kept = attention_mask.bool()
        rows = [ids[mask].tolist() for ids, mask in zip(input_ids, kept, strict=True)]
        lengths = torch.tensor(work.lengths_of(rows))
        with _forced_draws(lengths):
            output = generate(input_ids=input_ids, attention_mask=attention_mask, **settings)
        sequences = output if isinstance(output, Tensor) else output.sequences
        assert_lengths(sequences[:, input_ids.shape[1] :], lengths)
        return output

    policy.generate = forced  # type: ignore[assignment]


@contextlib.contextmanager
def _forced_draws(lengths: Tensor) -> Iterator[None]:
    """transformers draws with `torch.multinomial`, one token a row; its outcome is replaced where
    a response has to end, and where it would end too early."""
    multinomial: Any = torch.multinomial
    drawn = 0

    def forced(probabilities: Tensor, num_samples: int, **settings: Any) -> Tensor:
        nonlocal drawn
        drawn += 1
        tokens = multinomial(probabilities, num_samples, **settings)
        tokens = tokens.masked_fill((tokens == EOS) | (tokens == PAD), PLAIN)
        return tokens.masked_fill((lengths == drawn)[:, None], EOS)

    torch.multinomial = forced  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.multinomial = multinomial


def assert_lengths(responses: Tensor, lengths: Tensor) -> None:
    """Right-padded responses `(B, T)` have exactly these lengths and end with their only EOS."""
    assert torch.equal((responses != PAD).sum(dim=1), lengths), "a length was not kept"
    last = responses[torch.arange(len(lengths)), lengths - 1]
    assert bool((last == EOS).all()), "a response does not end with EOS"
    assert int((responses == EOS).sum()) == len(lengths), "a response ends too early"


class Meter:
    """CPU seconds of each step's sections, and how far resident memory rose in them over what it
    was when the meter was made (before any model). Reads Linux' /proc: the kernel keeps the peak,
    so that no sampling disturbs the measurement. On a GPU it is seconds of the clock, once all work
    is done, and the peak of what torch allocated.

    Before each step it waits for a line on stdin, since the sides take turns; waiting costs no CPU
    seconds. Each step, and the peak in the end, is a line of JSON on stdout.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        warm_up()
        gc.collect()
        self.base = _status("VmRSS")
        self.sections: dict[str, float] = {}
        self.last = 0.0

    def start(self) -> None:
        """The first step begins."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):  # else what came before counts too
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self._wait()

    def lap(self, section: str) -> None:
        """What was done since the last call was this section."""
        now = self._now()
        self.sections[section] = self.sections.get(section, 0.0) + now - self.last
        self.last = now

    def end_step(self) -> None:
        """A step is done, and the next one begins when its turn comes."""
        _tell(self.sections)
        self.sections = {}
        self._wait()

    def report(self, work: Work, model: PreTrainedModel, critic: bool) -> None:
        """All steps are done; `critic`: of a network of its own."""
        _tell(
            {
                "peak_bytes": (
                    torch.cuda.max_memory_allocated()
                    if self.on_gpu
                    else _status("VmHWM") - self.base
                ),
                "flops": update_flops(work, model, critic),
                "parameters": sum(p.numel() for p in model.parameters()),
                "response_tokens": sum(work.lengths),
            }
        )

    def _wait(self) -> None:
        sys.stdin.readline()  # at its end, as with < /dev/null, nothing is waited for
        self.last = self._now()

    def _now(self) -> float:
        if not self.on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def update_flops(work: Work, model: PreTrainedModel, critic: bool) -> float:
    """Floating-point operations that an update needs, after TRL's `compute_flops_per_token`:
    forward and backward of prompts and responses, the head at response positions only, epoch by
    epoch; with a `critic` of its own, that of its trunk too, which is as large. Padding and
    recomputation do not count."""
    prompts, responses = sum(map(len, work.prompts)), sum(work.lengths)
    tokens, config = prompts + responses, model.config
    each = compute_flops_per_token(config, tokens // len(work.prompts))
    head = 3 * 2 * config.hidden_size * config.vocab_size
    policy = tokens * each - prompts * head
    return EPOCHS * (policy + (tokens * (each - head) if critic else 0))


def _tell(figures: dict[str, float]) -> None:
    print(json.dumps(figures), flush=True)


def _status(field: str) -> int:
    """A size of this process in bytes, by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
