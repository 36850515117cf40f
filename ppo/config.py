"""What can be configured of everything that has a policy. No torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from labeling.config import UNKEYED
from reward.config import Compute

# Tokens in a forward and backward pass: where speed is flat and memory still small, measured on two
# cores; a GPU wants larger products.
MICRO_BATCH_TOKENS = {"cpu": 256, "cuda": 16_384}
# Tokens of prompts and responses that are drawn at once, padding included: the cache holds all of
# them. One batch is the fastest as long as it fits.
DRAWING_TOKENS = {"cpu": 32_768, "cuda": 262_144}
# Logits in memory at once, as numbers: 8 MB of float32 on a CPU, where caches are what counts, and
# 1 GB on a GPU, where every chunk reads and writes the head's whole gradient once.
LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**28}


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
    rollout_batch_size: int = Field(128, ge=2, description="Prompts in a rollout.")
    epochs: int = Field(4, ge=1, description="Passes over each rollout.")
    minibatches: int = Field(4, ge=1, description="Optimizer steps in one pass.")
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of prompts and responses in memory at once in the update; changes no "
        "result beyond rounding. Default: 256 on a CPU, 16,384 on a GPU.",
        json_schema_extra=UNKEYED,
    )
    max_new_tokens: int = Field(128, ge=1, description="Tokens after which a response is cut.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Of rollout, reference and update alike. Top-k and top-p do not "
        "exist here: they would bias the probability ratio.",
    )
    learning_rate: float = Field(1e-5, gt=0, description="Of policy and value, at its peak.")
    learning_rate_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate goes to its end."
    )
    learning_rate_end: float = Field(
        0.0, ge=0, le=1, description="Share of `learning_rate` that linear and cosine run to."
    )
    warmup_iterations: int = Field(
        0, ge=0, description="Iterations in which the learning rate rises to `learning_rate`."
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
    critic_warmup: int = Field(
        0,
        ge=0,
        description="Iterations in which the value alone is learned and the policy stays.",
    )
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
    kl_early_stop: float | None = Field(
        None,
        gt=0,
        description="Approximate KL (`policy/approxkl`) of a minibatch above which the rest of "
        "its update is left out, its own step included.",
    )
    kl_budget: float | None = Field(
        None,
        gt=0,
        description="KL in nats a response that the policy may not pass: PPO then ends with the "
        "last policy that was measured within it.",
    )
    normalize_scores: Literal["initial", "running"] | None = Field(
        None,
        description="Scores to mean 0 and variance 1: by those of the first rollout, which the "
        "initial policy draws, or by all so far. (The reward model's are normalised already.)",
    )
    score_clip: float | None = Field(
        None, gt=0, description="Scores are cut to ± this, after they are normalised."
    )
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
    critic: Literal["shared", "separate", "reward_model"] = Field(
        "shared",
        description="`shared`: a value head on the policy's trunk. `separate`: a network of its "
        "own, started from the initial policy; `reward_model`: one started from the reward model.",
    )
    unfinished_penalty: float | None = Field(
        1.0, ge=0, description="What a response without a stop token pays; nothing without it."
    )
    unfinished: Literal["subtract", "replace"] = Field(
        "subtract",
        description="Whether the penalty is subtracted from its score, or its negative replaces "
        "the score.",
    )
    reward_function: str | None = Field(
        None,
        description="A user's function in place of the reward model, as `module_or_file:function` "
        "with the form score(prompts, completions) -> list of floats.",
        json_schema_extra=UNKEYED,
    )
    reward_function_weight: float | None = Field(
        None,
        description="With it the function joins the reward model in place of replacing it: "
        "score = reward model + weight · function.",
    )
    checkpoint_every: int = Field(
        5,
        ge=1,
        description="Iterations between checkpoints, from which a killed run goes on.",
        json_schema_extra=UNKEYED,
    )
    samples_every: int = Field(
        5,
        ge=1,
        description="Iterations between tables of sample completions.",
        json_schema_extra=UNKEYED,
    )

    @property
    def needs_reward_model(self) -> bool:
        """Whether a reward model scores, alone or beside the function."""
        return self.reward_function is None or self.reward_function_weight is not None

    @model_validator(mode="before")
    @classmethod
    def _no_truncated_sampling(cls, given: Any) -> Any:
        for name in ("top_k", "top_p"):
            if isinstance(given, dict) and given.get(name) is not None:
                raise ValueError(
                    f"{name}: PPO has none, because responses drawn from a truncated distribution "
                    "bias the probability ratio; set it in `sampling` or `evaluation`"
                )
        return given

    @model_validator(mode="after")
    def _consistent(self) -> PPO:
        for name in ("critic_warmup", "warmup_iterations"):
            if 0 < self.iterations <= getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)} of {self.iterations} iterations: nothing "
                    "would be left to learn; lower it"
                )
        if self.minibatches > self.rollout_batch_size:
            raise ValueError(
                f"minibatches is {self.minibatches}, and a rollout has {self.rollout_batch_size} "
                "responses (rollout_batch_size): lower it"
            )
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError("kl_target steers kl_coef, which is 0 and stays so: raise kl_coef")
        if self.kl_target is not None and self.kl_horizon < self.rollout_batch_size:
            raise ValueError(
                f"kl_horizon is {self.kl_horizon}, less than one rollout of "
                f"{self.rollout_batch_size} responses: raise it, or the coefficient jumps"
            )
        if self.critic == "reward_model" and not self.needs_reward_model:
            raise ValueError(
                "critic 'reward_model' needs the reward model that reward_function replaces: give "
                "reward_function_weight, or use critic 'separate'"
            )
        return self


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
