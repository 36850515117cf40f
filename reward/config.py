"""What can be configured of the reward model, and what every step on a device shares. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from labeling.config import UNKEYED

# Tokens, padding included, that a reward model reads at once: more is slower on a CPU, whose caches
# are what counts, and a GPU wants larger products. (A pass without gradients holds one layer.)
SCORING_TOKENS = {"cpu": 2_048, "cuda": 32_768}


class Compute(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Seed and place of a computation."""

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random in this step.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`auto` takes CUDA where it is there, else the CPU.",
        json_schema_extra=UNKEYED,
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; torch's own choice without it. One is the fastest for tiny "
        "models, and sums in the same order on every machine.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the arithmetic; `auto` is bfloat16 on CUDA and float32 on the "
        "CPU. Weights under training stay in float32.",
    )


class RewardTraining(Compute, frozen=True, extra="forbid"):
    """Training of the reward model with TRL's RewardTrainer."""

    epochs: float = Field(2.0, gt=0, description="Passes over the training pairs.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak of the linear schedule.")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps with warm-up.")
    batch_size: int = Field(64, ge=1, description="Pairs in an optimizer step.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Pairs in memory at once; default: the whole batch."
    )
    max_length: int = Field(
        1024,
        ge=2,
        description="Longest prompt plus completion in tokens; longer pairs are left "
        "out and counted.",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which it is clipped.")
    center_coefficient: float = Field(
        0.01, ge=0, description="Weight of (r_chosen + r_rejected)², which keeps rewards near 0."
    )
    held_out_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the prompts whose pairs only measure accuracy, in every round.",
    )
    earlier_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="In later rounds: the largest share of the training pairs that are of earlier "
        "rounds, chosen by the seed. Without it all of them are learned again with the new ones.",
    )
