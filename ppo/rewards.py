"""The score of a response: from the reward model, a user's function, or both in a weighted sum;
then normalised, clipped, and lowered where the response did not end by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labeling.errors import InputError
from labeling.records import Completion, Prompt
from labeling.scoring import load_score_function
from ppo.config import PPO
from reward.model import RewardModel

Score = Callable[[Sequence[Prompt], Sequence[Completion]], list[float]]


@dataclass(frozen=True)
class Scores:
    """Of a rollout's responses, float32 `(B,)` each."""

    raw: Tensor  # as the reward model or the function gave them
    shaped: Tensor  # what PPO optimises


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far (Chan, Golub & LeVeque 1983, the pairwise update)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations

    def add(self, values: Tensor) -> None:
        """Take in `(B,)` more."""
        wide = values.double()
        count, mean = len(wide), wide.mean().item()
        squares = ((wide - mean) ** 2).sum().item()
        total, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation (of the population); 1 where nothing varies."""
        variance = self.squares / self.count if self.count else 0.0
        return math.sqrt(variance) if variance > 1e-12 else 1.0


def shape_scores(
    raw: Tensor, finished: Sequence[bool], config: PPO, moments: RunningMoments
) -> Scores:
    """Raw scores `(B,)` → what PPO optimises: normalised by `moments` (which they join first, as
    the config asks), clipped, and with the penalty where a response has no stop token."""
    if config.normalize_scores == "running" or (
        config.normalize_scores == "initial" and not moments.count
    ):
        moments.add(raw)
    shaped = raw
    if config.normalize_scores is not None:
        shaped = (raw - moments.mean) / moments.std
    if config.score_clip is not None:
        shaped = shaped.clamp(-config.score_clip, config.score_clip)
    if config.unfinished_penalty is not None:
        unfinished = ~torch.tensor(list(finished), dtype=torch.bool)
        if config.unfinished == "replace":
            shaped = torch.where(unfinished, -config.unfinished_penalty, shaped)
        else:
            shaped = shaped - config.unfinished_penalty * unfinished
    return Scores(raw, shaped.float())


def load_score(
    reward_model: RewardModel | None, reward_function: str | None, weight: float | None
) -> Score:
    """What scores a completion: the reward model; the function in its place; or, with a `weight`,
    reward model + weight · function.

    Raises:
        InputError: there is neither, or the function cannot be loaded.
    """
    if reward_function is None:
        if reward_model is None:
            raise InputError("PPO needs a reward model or a reward function; neither was given")
        return reward_model.scores
    function = load_score_function(reward_function)

    def by_function(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return function([p.readable for p in prompts], [c.text for c in completions])

    if weight is None:
        return by_function
    if reward_model is None:
        raise InputError(
            "ppo.reward_function_weight adds the function to a reward model's score, and there is "
            "no reward model; leave the weight out"
        )
    model, share = reward_model, weight

    def by_both(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        scores = model.scores(prompts, completions)
        added = by_function(prompts, completions)
        return [s + share * a for s, a in zip(scores, added, strict=True)]

    return by_both
