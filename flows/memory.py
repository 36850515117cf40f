"""How much memory each stage takes, part by part, with the arithmetic written out: pure functions
of the model's shape and the config, which follow what the stages' code holds at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flows.model_shape import ModelShape
from ppo.config import (
    DRAWING_TOKENS,
    LOGITS_AT_ONCE,
    MICRO_BATCH_TOKENS,
    PPO,
    SFT,
    Evaluation,
    Sampling,
)
from reward.config import SCORING_TOKENS, RewardTraining

Precision = Literal["float32", "bfloat16"]
Phase = Literal["always", "generating", "scoring", "training"]
GB = 1e9
SFT_TILE = (4096, 8192)  # tokens × vocabulary that TRL's fused head holds at once


@dataclass(frozen=True)
class Part:
    """Some bytes, and how they come about. Parts of different phases are never there together."""

    name: str
    bytes: int
    arithmetic: str
    phase: Phase = "always"


@dataclass(frozen=True)
class StageMemory:
    """A stage's parts. `bytes` is its peak: what is always there, and the largest phase."""

    stage: str
    parts: tuple[Part, ...]

    @property
    def peak_phase(self) -> str:
        phases = {p.phase for p in self.parts if p.phase != "always"}
        return max(sorted(phases), key=self._sum, default="always")

    @property
    def bytes(self) -> int:
        phase = self.peak_phase
        return self._sum("always") + (self._sum(phase) if phase != "always" else 0)

    def _sum(self, phase: str) -> int:
        return sum(part.bytes for part in self.parts if part.phase == phase)


# --- the stages -----------------------------------------------------------------------------------


def of_sft(shape: ModelShape, config: SFT, tokens: int, precision: Precision) -> StageMemory:
    """`tokens`: of the longest example."""
    rows = min(config.micro_batch_size or config.batch_size, config.batch_size)
    tile = min(rows * tokens, SFT_TILE[0]), min(shape.vocabulary, SFT_TILE[1])
    return StageMemory(
        "sft",
        (
            *_trained("policy", shape.parameters, precision),
            _activations(shape, rows, tokens, precision),
            Part(
                "logits",
                tile[0] * tile[1] * 4 * 3,
                f"{tile[0]:,} tokens × {tile[1]:,} of the vocabulary × 4 bytes × 3 (a tile at a "
                "time)",
                "training",
            ),
        ),
    )


def of_sampling(
    shape: ModelShape,
    config: Sampling,
    prompt_tokens: int,
    precision: Precision,
    device: str = "cpu",
) -> StageMemory:
    """`prompt_tokens`: of the longest prompt."""
    size, new = config.batch_size, config.max_new_tokens
    return StageMemory(
        "completions",
        (
            _weights("policy", shape.parameters),
            *_generating(shape, size, prompt_tokens, new, precision, device),
        ),
    )


def of_reward(
    shape: ModelShape,
    config: RewardTraining,
    tokens: int,
    precision: Precision,
    device: str = "cpu",
) -> StageMemory:
    """`tokens`: of the longest prompt with its completion."""
    pairs = min(config.micro_batch_size or config.batch_size, config.batch_size)
    return StageMemory(
        "reward",
        (
            *_trained("reward model", shape.trunk, precision),
            _activations(shape, 2 * pairs, tokens, precision),
            _forward(shape, 1, max(tokens, SCORING_TOKENS[device]), precision, "scoring"),
        ),
    )


def of_ppo(
    shape: ModelShape,
    config: PPO,
    prompt_tokens: int,
    precision: Precision,
    device: str = "cpu",
    demonstration_tokens: int = 0,
) -> StageMemory:
    """Policy and value are trained; reference and reward model only read. `prompt_tokens`: of the
    longest prompt; `demonstration_tokens`: of the longest demonstration of the SFT term."""
    minibatch = -(-config.rollout_batch_size // config.minibatches)
    new = config.max_new_tokens
    tokens = prompt_tokens + new
    longest = [(minibatch, tokens)]
    if config.sft_coef:
        longest.append(
            (config.sft_batch_size, min(demonstration_tokens, config.sft_max_length) or tokens)
        )
    budget = config.micro_batch_tokens or MICRO_BATCH_TOKENS[device]
    # The largest micro-batch: as much as the budget holds, or one row that is longer.
    at_once = max(max(each, min(budget, rows * each)) for rows, each in longest)
    parts = [*_trained("policy", shape.parameters, precision)]
    if config.critic != "shared":
        parts += _trained("critic", shape.trunk, precision)
    parts.append(_weights("reference", shape.parameters))
    if config.needs_reward_model:
        parts.append(_weights("reward model", shape.trunk))
        scored = max(tokens, min(SCORING_TOKENS[device], config.rollout_batch_size * tokens))
        parts.append(_forward(shape, 1, scored, precision, "scoring"))
    if config.kl_budget is not None:
        parts.append(_weights("policy within the budget", shape.parameters))
    parts += _generating(shape, config.rollout_batch_size, prompt_tokens, new, precision, device)
    parts.append(_activations(shape, 1, at_once, precision))
    parts.append(_chunk(shape, at_once, device, precision, "training"))
    return StageMemory("ppo", tuple(parts))


def of_evaluation(
    shape: ModelShape,
    config: Evaluation,
    prompt_tokens: int,
    precision: Precision,
    device: str = "cpu",
    has_reward_model: bool = True,
) -> StageMemory:
    """Both policies, drawn from in turn and then read side by side for the KL."""
    size, new = config.batch_size, config.max_new_tokens
    at_once = max(MICRO_BATCH_TOKENS[device], prompt_tokens + new)
    read = max(at_once, SCORING_TOKENS[device]) if has_reward_model else at_once
    parts = [
        _weights("initial policy", shape.parameters),
        _weights("candidate", shape.parameters),
        *_generating(shape, size, prompt_tokens, new, precision, device),
        _forward(shape, 1, read, precision, "scoring"),
        _chunk(shape, at_once, device, precision, "scoring"),
    ]
    if has_reward_model:
        parts.append(_weights("reward model", shape.trunk))
    return StageMemory("evaluate", tuple(parts))


# --- their parts ----------------------------------------------------------------------------------


def _weights(name: str, parameters: int) -> Part:
    return Part(f"{name}: parameters", 4 * parameters, f"{parameters:,} × 4 bytes (float32)")


def _trained(name: str, parameters: int, precision: Precision) -> list[Part]:
    parts = [
        _weights(name, parameters),
        Part(f"{name}: gradients", 4 * parameters, f"{parameters:,} × 4 bytes"),
        Part(f"{name}: optimizer", 8 * parameters, f"{parameters:,} × 8 bytes (two moments)"),
    ]
    if precision == "bfloat16":
        parts.append(
            Part(
                f"{name}: bfloat16 copy",
                2 * parameters,
                f"{parameters:,} × 2 bytes (autocast)",
                "training",
            )
        )
    return parts


def activation_bytes(shape: ModelShape, precision: Precision) -> int:
    """What one layer keeps of one token for the backward pass, in bytes.

    Both norms keep their input, the normalised input and their output (6 · hidden); attention its
    queries, keys, values and output, twice (3 · heads and 2 · kv_heads, × head_dim; SDPA keeps no
    scores); the MLP 4 values a unit where it is gated (gate, its activation, up, their product),
    else 2. Under autocast the residual stream and the norms stay in float32.
    """
    attention = 3 * shape.heads * shape.head_dim + 2 * shape.kv_heads * shape.head_dim
    mlp = (4 if shape.gated else 2) * shape.mlp
    if precision == "float32":
        return 4 * (6 * shape.hidden + attention + mlp)
    return 4 * 4 * shape.hidden + 2 * (2 * shape.hidden + attention + mlp)


def _activations(shape: ModelShape, rows: int, tokens: int, precision: Precision) -> Part:
    each = activation_bytes(shape, precision)
    layers = shape.layers + 1  # one more for the gradients of the layer that backward is at
    return Part(
        "activations",
        rows * tokens * layers * each,
        f"{rows} sequences × {tokens} tokens × ({shape.layers} + 1) layers × {each:,} bytes",
        "training",
    )


def _forward(shape: ModelShape, rows: int, tokens: int, precision: Precision, phase: Phase) -> Part:
    """A pass without gradients holds one layer at a time: its stream and its MLP."""
    size = 4 if precision == "float32" else 2
    each = 4 * 2 * shape.hidden + size * (3 if shape.gated else 2) * shape.mlp
    return Part(
        "one layer's pass",
        rows * tokens * each,
        f"{rows} sequences × {tokens} tokens × {each:,} bytes",
        phase,
    )


def _generating(
    shape: ModelShape, rows: int, prompt: int, new: int, precision: Precision, device: str
) -> list[Part]:
    rows = min(rows, max(1, DRAWING_TOKENS[device] // (prompt + new)))  # more come in turns
    size = 4 if precision == "float32" else 2
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    return [
        Part(
            "KV cache",
            rows * (prompt + new) * cache,
            f"{rows} sequences × {prompt + new} tokens × {cache:,} bytes "
            f"(2 × {shape.layers} layers × {shape.kv_heads} heads × {shape.head_dim} × {size})",
            "generating",
        ),
        _forward(shape, rows, prompt, precision, "generating"),
        _logits(shape, rows, 1, 4, "generating"),
    ]


def _logits(shape: ModelShape, rows: int, tokens: int, copies: int, phase: Phase) -> Part:
    return Part(
        "logits",
        rows * tokens * shape.vocabulary * 4 * copies,
        f"{rows} sequences × {tokens} tokens × {shape.vocabulary:,} of the vocabulary × 4 bytes × "
        f"{copies} copies",
        phase,
    )


def _chunk(shape: ModelShape, tokens: int, device: str, precision: Precision, phase: Phase) -> Part:
    """What the head holds of a chunk of tokens: the logits, then log p and p, in two buffers; in
    bfloat16 a third one for the product, and the gradient's rounded copy."""
    each = 8 if precision == "float32" else 14
    chunk = min(tokens, max(16, LOGITS_AT_ONCE[device] // shape.vocabulary))
    return Part(
        "logits",
        chunk * shape.vocabulary * each,
        f"{chunk:,} tokens × {shape.vocabulary:,} of the vocabulary × {each} bytes (a chunk at a "
        "time)",
        phase,
    )
