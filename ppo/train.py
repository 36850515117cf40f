"""PPO: rollout, advantages, clipped updates, round and round (Schulman et al. 2017; for language
models Ziegler et al. 2019)."""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labeling.errors import InputError
from labeling.records import Completion, Prompt, read_prompts
from labeling.scoring import load_score_function
from ppo.advantages import masked_mean
from ppo.config import PPO, Generation
from ppo.demonstrations import load_demonstrations
from ppo.generation import Generator, encode_prompts
from ppo.imitation import Imitation
from ppo.kl import AdaptiveKL, FixedKL
from ppo.order import batch_at, counter_seed
from ppo.policy import ActorCritic, load_policy, save_policy
from ppo.rollout import Experience, Rollout, Score, collect, experience_of
from ppo.update import update
from reward.compute import place
from reward.encoding import load_tokenizer
from reward.model import RewardModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PPOMetrics:
    """The last iteration, where the first one began, and how much was drawn."""

    iterations: int
    episodes: int
    response_tokens: int
    first_score: float
    last_score: float
    kl: float
    entropy: float
    kl_coef: float
    clip_fraction: float
    explained_variance: float


def train_ppo(
    config: PPO,
    policy: str,
    prompts: Path,
    out: Path,
    reward_model: Path | None = None,
    reward_function: str | None = None,
    demonstrations: str | None = None,
) -> PPOMetrics:
    """Optimise the policy against the reward model, or a user's function, with a KL penalty to
    where it started. Writes `out/policy/`; the value function is not kept, since it is of this
    policy and reward only. `out/metrics.jsonl` has a row an iteration in TRL's names,
    `out/timings.jsonl` the seconds.

    Args:
        policy: the initial policy, which is the reference too; a folder or `name@commit`.
        prompts: `prompts.parquet`; its training split is used.
        reward_model: what reward.train wrote.
        reward_function: `module_or_file:function` in its place.
        demonstrations: what SFT learned from; needed when `config.sft_coef` > 0.

    Raises:
        InputError: neither reward is given, the SFT term has no demonstrations, something cannot
            be loaded, or the loss diverged.
    """
    device, dtype = place(config)
    score = _score(reward_model, reward_function, device, dtype)
    tokenizer = load_tokenizer(policy)
    model = load_policy(policy)
    imitation = _imitation(config, demonstrations, model, tokenizer)
    texts, tokens = encode_prompts(
        tokenizer, read_prompts(prompts, "train"), model, config.max_new_tokens
    )
    reference = copy.deepcopy(model).to(device).requires_grad_(False)  # type: ignore[arg-type]
    actor = ActorCritic(model, config.critic).to(device)
    generator = Generator(
        model,
        tokenizer,
        Generation(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        dtype,
    )
    optimizer = torch.optim.Adam(
        [p for p in actor.parameters() if p.requires_grad],
        lr=config.learning_rate,
        eps=config.adam_epsilon,
    )
    kl = (
        FixedKL(config.kl_coef)
        if config.kl_target is None
        else AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    )
    rows: list[dict[str, float]] = []
    with (out / "metrics.jsonl").open("w") as metrics, (out / "timings.jsonl").open("w") as times:
        for iteration in range(config.iterations):
            started = time.perf_counter()
            chosen = batch_at(
                iteration, config.rollout_batch_size, len(texts), config.seed, "prompts"
            )
            rollout = collect(
                actor,
                reference,
                generator,
                score,
                [texts[i] for i in chosen],
                [tokens[i] for i in chosen],
                config,
                counter_seed(config.seed, iteration, "rollout"),
                dtype,
            )
            rolled = time.perf_counter()
            experience = experience_of(rollout, config, kl.coefficient)
            learning_rate = learning_rate_at(iteration, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            updated = update(
                actor, optimizer, rollout, experience, config, iteration, dtype, imitation
            )
            row = describe(rollout, experience, kl.coefficient) | updated
            row |= {"lr": learning_rate, "episode": (iteration + 1) * config.rollout_batch_size}
            kl.update(row["objective/kl"], config.rollout_batch_size)
            rows.append(row)
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            ended = time.perf_counter()
            times.write(json.dumps({"rollout": rolled - started, "update": ended - rolled}) + "\n")
            logger.info(
                "iteration %d/%d: score %.3f, KL %.2f, entropy %.3f",
                iteration + 1,
                config.iterations,
                row["objective/scores"],
                row["objective/kl"],
                row["objective/entropy"],
                extra={"progress": (iteration + 1, config.iterations), "metrics": row},
            )
    folder = out / "policy.partial"
    save_policy(model, tokenizer, folder)
    os.replace(folder, out / "policy")
    last = rows[-1]
    return PPOMetrics(
        iterations=config.iterations,
        episodes=config.iterations * config.rollout_batch_size,
        response_tokens=int(sum(r["response/tokens"] for r in rows)),
        first_score=rows[0]["objective/scores"],
        last_score=last["objective/scores"],
        kl=last["objective/kl"],
        entropy=last["objective/entropy"],
        kl_coef=last["objective/kl_coef"],
        clip_fraction=last["policy/clipfrac"],
        explained_variance=last["val/explained_variance"],
    )


def describe(rollout: Rollout, experience: Experience, kl_coef: float) -> dict[str, float]:
    """One row of metrics about a rollout, in TRL's names. Every mean is over valid tokens."""
    mask = rollout.sequences.mask
    lengths = mask.sum(dim=1).float()
    returns_variance = masked_variance(experience.returns, mask)
    residual_variance = masked_variance(experience.returns - rollout.values, mask)
    finished = [float(c.finished) for c in rollout.completions]
    return {
        "objective/scores": rollout.raw_scores.mean().item(),
        "objective/scores_std": rollout.raw_scores.std(correction=0).item(),
        "objective/kl": rollout.kl.mean().item(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": rollout.entropy,
        "objective/non_score_reward": (-kl_coef * rollout.kl).mean().item(),
        "objective/rlhf_reward": (rollout.scores - kl_coef * rollout.kl).mean().item(),
        "val/explained_variance": (
            1 - residual_variance / returns_variance if returns_variance > 0 else 0.0
        ),
        "response/length": lengths.mean().item(),
        "response/tokens": lengths.sum().item(),
        "response/finished": sum(finished) / len(finished),
        "response/distinct": len({c.text for c in rollout.completions}) / len(finished),
    }


def masked_variance(values: Tensor, mask: Tensor) -> float:
    """Variance of the valid entries."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask).item()


def learning_rate_at(iteration: int, config: PPO) -> float:
    """Linear from `learning_rate` towards its share `learning_rate_end`, which it would reach after
    the last iteration; so none is spent on a rate of 0."""
    done = iteration / config.iterations
    return config.learning_rate * (1 - done * (1 - config.learning_rate_end))


def _score(
    reward_model: Path | None, reward_function: str | None, device: torch.device, dtype: torch.dtype
) -> Score:
    if reward_function is not None:
        function = load_score_function(reward_function)

        def by_function(
            prompts: Sequence[Prompt], completions: Sequence[Completion]
        ) -> list[float]:
            return function([p.readable for p in prompts], [c.text for c in completions])

        return by_function
    if reward_model is None:
        raise InputError("PPO needs a reward model or a reward function; neither was given")
    return RewardModel.load(reward_model, device, dtype).scores


def _imitation(
    config: PPO,
    demonstrations: str | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Imitation | None:
    if not config.sft_coef:
        return None
    if demonstrations is None:
        raise InputError("ppo.sft_coef needs demonstrations: give sft.data, or set it to 0")
    examples, _ = load_demonstrations(
        demonstrations, model, tokenizer, config.sft_max_length, "ppo.sft_max_length"
    )
    # Padding is told by the masks, so any id will do.
    return Imitation(examples, tokenizer.pad_token_id or 0, config)
