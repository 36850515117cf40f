"""What can be configured of everything that has a policy. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from labeling.config import UNKEYED
from reward.config import Compute


class SFT(Compute, frozen=True, extra="forbid"):
    """Supervised fine-tuning of the base model with TRL's SFTTrainer: makes the initial policy."""

    data: str = Field(
        description="JSONL or Parquet file, or a data set's name on the hub, with columns `prompt` "
        "and `completion` (text or messages), or `messages`.",
        json_schema_extra=UNKEYED,
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the data.")
    learning_rate: float = Field(2e-5, gt=0, description="Peak of the cosine schedule.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps with warm-up.")
    batch_size: int = Field(32, ge=1, description="Examples in an optimizer step.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Examples in memory at once; default: the whole batch."
    )
    max_length: int = Field(1024, ge=2, description="Tokens after which an example is cut.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which it is clipped.")
    completion_only: bool = Field(
        True,
        description="Loss on the completion only; of `messages`, the last one is the completion.",
    )


class Generation(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How a completion is drawn."""

    max_new_tokens: int = Field(128, ge=1, description="Tokens after which a completion is cut.")
    temperature: float = Field(
        1.0, ge=0, description="Divides the logits; 0 takes the likeliest token each time (greedy)."
    )
    top_k: int | None = Field(None, ge=1, description="Draw from the k likeliest tokens only.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens that hold this probability."
    )


class Sampling(Compute, Generation, frozen=True, extra="forbid"):
    """The K completions of each training prompt that labelers rank."""

    completions_per_prompt: int = Field(
        4, ge=2, le=9, description="K: how many answers of a prompt people rank."
    )
    prompts: int | None = Field(
        None,
        ge=1,
        description="Sample for so many training prompts, chosen by the seed; all "
        "without it. This is the number of ranking tasks.",
    )
    distinct_tries: int = Field(
        4,
        ge=0,
        description="How often completions that equal another of the same prompt are drawn again. "
        "Prompts that still have fewer than two distinct ones are left out and counted.",
    )
    batch_size: int = Field(
        128, ge=1, description="Completions drawn at once; another size draws other completions."
    )


class PPO(Compute, frozen=True, extra="forbid"):
    """Proximal policy optimization against the reward model (Schulman et al. 2017, Ziegler et al.
    2019)."""

    iterations: int = Field(100, ge=1, description="Rollout-and-update cycles.")
    rollout_batch_size: int = Field(128, ge=1, description="Prompts in a rollout.")
    epochs: int = Field(4, ge=1, description="Passes over each rollout.")
    minibatches: int = Field(4, ge=1, description="Optimizer steps in one pass.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Responses in memory at once; default: the whole minibatch."
    )
    max_new_tokens: int = Field(128, ge=1, description="Tokens after which a response is cut.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Of rollout, reference and update alike. Top-k and top-p do not "
        "exist here: they would bias the probability ratio.",
    )
    learning_rate: float = Field(1e-5, gt=0, description="Of policy and value, at the start.")
    learning_rate_end: float = Field(
        0.0, ge=0, description="Share of `learning_rate` that the linear decay runs to."
    )
    adam_epsilon: float = Field(1e-5, gt=0, description="Adam's epsilon.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which it is clipped.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda.")
    clip_range: float = Field(0.2, gt=0, description="Clip of the probability ratio.")
    value_clip_range: float | None = Field(
        0.2, gt=0, description="Clip of the value's change in a rollout; none without it."
    )
    value_coef: float = Field(0.1, ge=0, description="Weight of the value loss.")
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    kl_coef: float = Field(
        0.05,
        ge=0,
        description="Weight of the per-token KL to the reference in the reward; where "
        "the adaptive controller starts when `kl_target` is set.",
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="KL in nats a response that the adaptive controller steers to; "
        "without it the coefficient stays fixed.",
    )
    kl_horizon: int = Field(10_000, ge=1, description="Responses over which it steers.")
    whiten_advantages: bool = Field(True, description="Advantages to mean 0 and variance 1.")
    whiten_rewards: bool = Field(False, description="Rewards to variance 1, keeping their mean.")
    sft_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of the SFT loss on the demonstrations of `sft.data` (PPO-ptx, Ouyang "
        "et al. 2022): keeps the policy's language where the reward says nothing about it.",
    )
    sft_batch_size: int = Field(
        32, ge=1, description="Demonstrations in an optimizer step, when `sft_coef` is set."
    )
    sft_max_length: int = Field(
        1024, ge=2, description="Tokens after which such a demonstration is cut."
    )
    critic: Literal["shared", "separate"] = Field(
        "shared",
        description="`shared`: a value head on the policy's trunk. `separate`: a network of its "
        "own, started from the initial policy.",
    )
    unfinished_penalty: float | None = Field(
        1.0, ge=0, description="Subtracted from the score of a response without a stop token."
    )
    reward_function: str | None = Field(
        None,
        description="A user's function in place of the reward model, as `module_or_file:function` "
        "with the form score(prompts, completions) -> list of floats.",
        json_schema_extra=UNKEYED,
    )


class Evaluation(Compute, Generation, frozen=True, extra="forbid"):
    """The candidate against the initial policy on the evaluation prompts."""

    prompts: int | None = Field(
        None, ge=1, description="Use at most so many evaluation prompts, chosen by the seed."
    )
    judge: str | None = Field(
        None,
        description="The function that says which completion wins, as `module_or_file:function` "
        "with the form score(prompts, completions) -> list of floats; the higher score wins, a "
        "tie counts one half. Its file is part of the step's key; what that file reads or imports "
        "is not. Without a judge the reward model judges, which flatters the candidate.",
        json_schema_extra=UNKEYED,
    )
    guards: dict[str, str] = Field(
        {},
        description="Functions of the same form, by name, whose mean is reported for both "
        "policies, e.g. the share of valid sentences.",
        json_schema_extra=UNKEYED,
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="Of the win rate's interval.")
    batch_size: int = Field(
        128, ge=1, description="Completions drawn at once; another size draws other completions."
    )
    examples: int = Field(12, ge=0, description="Completions shown before and after.")
