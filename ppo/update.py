"""The update: epochs of clipped minibatch steps over one rollout (Schulman et al. 2017, alg. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from labeling.errors import InputError
from ppo.config import PPO
from ppo.imitation import Imitation
from ppo.losses import entropy, policy_loss, value_loss
from ppo.order import counter_seed
from ppo.policy import ActorCritic, token_logprobs
from ppo.rollout import Experience, Rollout, micro_batch_size
from reward.compute import autocast


def update(
    actor: ActorCritic,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    experience: Experience,
    config: PPO,
    iteration: int,
    dtype: torch.dtype,
    imitation: Imitation | None = None,
) -> dict[str, float]:
    """Epochs over the rollout in fresh permutations, one optimizer step a minibatch:

        L = L_policy + c_value · L_value − c_entropy · H  [+ c_sft · L_SFT, with `imitation`]

    Micro-batches are summed and divided by the *minibatch's* valid tokens, so that their size
    changes nothing. Returns the means of the statistics over all minibatches.

    Raises:
        InputError: the loss diverged: its gradient is not finite.
    """
    device = actor.value_head.weight.device
    parameters = [p for p in actor.parameters() if p.requires_grad]
    collected: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        seed = counter_seed(config.seed, iteration, "permutation", epoch)
        permutation = torch.randperm(
            len(rollout.scores), generator=torch.Generator().manual_seed(seed)
        )
        for minibatch in permutation.to(device).chunk(config.minibatches):
            valid = rollout.sequences.mask[minibatch].sum()
            statistics: dict[str, float] = {}
            optimizer.zero_grad(set_to_none=True)
            for rows in minibatch.split(micro_batch_size(config)):
                share = rollout.sequences.mask[rows].sum() / valid
                loss, parts = minibatch_loss(actor, rollout, experience, rows, config, dtype)
                (loss * share).backward()
                for name, value in parts.items():
                    statistics[name] = statistics.get(name, 0.0) + (value * share).item()
            if imitation is not None:
                step = iteration * config.epochs * config.minibatches + len(collected)
                statistics["loss/sft"] = imitation.backward(actor.policy, step, dtype)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            if not torch.isfinite(norm):
                raise InputError(
                    f"PPO's gradient is {norm.item()} in iteration {iteration + 1}, epoch "
                    f"{epoch + 1} ({statistics}); lower ppo.learning_rate or raise ppo.kl_coef"
                )
            optimizer.step()
            collected.append(statistics | {"policy/grad_norm": norm.item()})
    return {name: sum(s[name] for s in collected) / len(collected) for name in collected[0]}


def minibatch_loss(
    actor: ActorCritic,
    rollout: Rollout,
    experience: Experience,
    rows: Tensor,
    config: PPO,
    dtype: torch.dtype,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of some rows of a rollout, a scalar, and its statistics by metric name."""
    part = rollout.sequences.rows(rows)
    mask, width = part.mask, part.mask.shape[1]
    with autocast(part.input_ids.device, dtype):
        logits, values = actor(part, config.temperature)
    logprobs = token_logprobs(logits, part.responses)
    policy = policy_loss(
        logprobs,
        rollout.logprobs[rows, :width],
        experience.advantages[rows, :width],
        mask,
        config.clip_range,
    )
    value = value_loss(
        values,
        rollout.values[rows, :width],
        experience.returns[rows, :width],
        mask,
        config.value_clip_range,
    )
    bonus = entropy(logits, mask)
    loss = policy.loss + config.value_coef * value.loss - config.entropy_coef * bonus
    statistics = {
        "loss/policy": policy.loss,
        "loss/value": value.loss,
        "loss/entropy": bonus,
        "policy/approxkl": policy.approx_kl,
        "policy/clipfrac": policy.clip_fraction,
        "val/ratio": policy.ratio,
        "val/clipfrac": value.clip_fraction,
    }
    return loss, {name: s.detach() for name, s in statistics.items()}
