"""The update: epochs of clipped minibatch steps over one rollout (Schulman et al. 2017, alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ppo.config import PPO
from ppo.imitation import Imitation
from ppo.losses import policy_loss, value_loss
from ppo.order import counter_seed
from ppo.rollout import Engine, Experience, Rollout, micro_batch_tokens
from ppo.sequences import Part
from reward.compute import autocast

ADVICE = "lower ppo.learning_rate or raise ppo.kl_coef"


class Diverged(ArithmeticError):
    """Something that is not finite; `rows` are the responses of its minibatch, or those that have
    it."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = list(rows)


class Statistics:
    """Weighted sums of scalars, kept on the device: a GPU is waited for once, at the end."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor], weight: float) -> None:
        """Each value counts with `weight`."""
        for name, value in values.items():
            added = value.detach() * weight
            self.sums[name] = self.sums[name] + added if name in self.sums else added

    def take(self) -> dict[str, float]:
        """The sums as numbers."""
        if not self.sums:
            return {}
        return dict(zip(self.sums, torch.stack(list(self.sums.values())).tolist(), strict=True))


def update(
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    experience: Experience,
    config: PPO,
    iteration: int,
    imitation: Imitation | None = None,
) -> dict[str, float]:
    """Epochs over the rollout in fresh permutations, one optimizer step a minibatch:

        L = L_policy + c_value · L_value − c_entropy · H  [+ c_sft · L_SFT, with `imitation`]

    Each micro-batch adds its tokens' sum over the *minibatch's* valid tokens, so that neither its
    size nor its padding changes anything. While the critic warms up, L_value alone is learned, and
    of a shared trunk only the value head. Where `kl_early_stop` is passed, the rest is left out.

    Returns the means of the statistics over all minibatches.

    Raises:
        Diverged: a gradient is not finite; the step is not taken.
    """
    actor, device = engine.actor, engine.actor.device
    parameters = [p for p in actor.parameters() if p.requires_grad]
    collected: list[dict[str, float]] = []
    planned = config.epochs * config.minibatches
    for minibatch in minibatches(len(rollout.completions), config, iteration):
        valid = rollout.sequences.valid(minibatch)
        statistics = Statistics()
        optimizer.zero_grad(set_to_none=True)
        for part in rollout.sequences.parts(micro_batch_tokens(config, device), minibatch):
            backward(engine, rollout, experience, part, valid, config, iteration, statistics)
        if imitation is not None and iteration >= config.critic_warmup:
            step = iteration * planned + len(collected)
            statistics.add({"loss/sft": imitation.backward(engine, step)}, 1.0)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        statistics.add({"policy/grad_norm": norm}, 1.0)
        taken = statistics.take()
        if not math.isfinite(taken["policy/grad_norm"]):
            raise Diverged(
                f"PPO's gradient is {taken['policy/grad_norm']} in iteration {iteration + 1}, "
                f"epoch {len(collected) // config.minibatches + 1} ({taken}); {ADVICE}",
                minibatch,
            )
        collected.append(taken)
        if config.kl_early_stop and taken.get("policy/approxkl", 0.0) > config.kl_early_stop:
            break  # this step is not taken either: its gradient is what went too far
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # not to be held through the next rollout
    means = {name: sum(s[name] for s in collected) / len(collected) for name in collected[0]}
    return means | {"policy/minibatches": float(len(collected))}


def minibatches(rows: int, config: PPO, iteration: int) -> list[list[int]]:
    """The rows of each optimizer step: every epoch is a permutation of its own, cut in pieces that
    differ by a row at most."""
    chosen = []
    for epoch in range(config.epochs):
        seed = counter_seed(config.seed, iteration, "permutation", epoch)
        permutation = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        chosen += [piece.tolist() for piece in permutation.tensor_split(config.minibatches)]
    return chosen


def backward(
    engine: Engine,
    rollout: Rollout,
    experience: Experience,
    part: Part,
    valid: int,
    config: PPO,
    iteration: int,
    statistics: Statistics,
) -> None:
    """Add the gradient of some rows' loss, as their share of a minibatch of `valid` tokens."""
    actor, device = engine.actor, engine.actor.device
    count = len(part.tokens)
    ones = torch.ones(count, device=device)

    def packed(values: Tensor) -> Tensor:
        return values.reshape(-1)[part.places]

    warming = iteration < config.critic_warmup
    states = None
    if actor.critic is None:
        with autocast(device, engine.dtype), torch.set_grad_enabled(not warming):
            states = actor.states(part)
    with autocast(device, engine.dtype):
        values = actor.values(part, states)
    value = value_loss(
        values,
        packed(rollout.values),
        packed(experience.returns),
        ones,
        config.value_clip_range,
    )
    share = count / valid
    statistics.add({"loss/value": value.loss, "val/clipfrac": value.clip_fraction}, share)
    loss: Tensor | None = config.value_coef * share * value.loss
    if warming or states is None:
        assert loss is not None
        loss.backward()  # before the policy's pass: two trunks are not to be in memory at once
        loss = None
    if warming:
        return
    if states is None:
        with autocast(device, engine.dtype):
            states = actor.states(part)
    logprobs, advantages = packed(rollout.logprobs), packed(experience.advantages)

    def surrogate(new: Tensor, entropies: Tensor, chunk: slice) -> Tensor:
        policy = policy_loss(
            new, logprobs[chunk], advantages[chunk], ones[chunk], config.clip_range
        )
        bonus, share = entropies.mean(), len(new) / valid
        statistics.add(
            {
                "loss/policy": policy.loss,
                "loss/entropy": bonus,
                "policy/approxkl": policy.approx_kl,
                "policy/clipfrac": policy.clip_fraction,
                "val/ratio": policy.ratio,
            },
            share,
        )
        if not config.entropy_coef:
            return policy.loss * share
        return (policy.loss - config.entropy_coef * bonus) * share

    gradient = engine.head.backward(states.detach(), part.tokens, config.temperature, surrogate)
    if loss is None:
        states.backward(gradient)
    else:  # both meet in the trunk: one pass through it
        torch.autograd.backward((states, loss), (gradient, None))
