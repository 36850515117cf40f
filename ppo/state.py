"""All that an iteration of PPO changes, as tensors and numbers for a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppo.config import PPO
from ppo.kl import AdaptiveKL, FixedKL
from ppo.policy import ActorCritic
from ppo.rewards import RunningMoments

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW


@dataclass
class State:
    """Actor, optimizer, KL controller and score statistics.

    `within` is the last actor whose policy was measured within the KL budget, where there is one.
    """

    actor: ActorCritic
    optimizer: torch.optim.Optimizer
    kl: FixedKL | AdaptiveKL
    moments: RunningMoments = field(default_factory=RunningMoments)
    within: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def fresh(cls, actor: ActorCritic, config: PPO) -> State:
        """Before the first iteration."""
        optimizer = torch.optim.AdamW(
            [p for p in actor.parameters() if p.requires_grad],
            lr=config.learning_rate,
            eps=config.adam_epsilon,
            weight_decay=0.0,
            fused=True,
        )
        kl = (
            FixedKL(config.kl_coef)
            if config.kl_target is None
            else AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
        )
        return cls(actor, optimizer, kl)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and optimizer state by name; tied parameters once."""
        found = {}
        for name, parameter in self.actor.named_parameters():
            found[f"actor.{name}"] = parameter.detach()
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{moment}.{name}"] = value
        return found | {f"within.{name}": value for name, value in self.within.items()}

    def numbers(self) -> dict[str, Any]:
        """The rest."""
        return {"kl_coef": self.kl.coefficient, "moments": asdict(self.moments)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Become what `tensors` and `numbers` gave.

        Raises:
            KeyError: they are not of such an actor.
        """
        for name, parameter in self.actor.named_parameters():
            parameter.copy_(tensors[f"actor.{name}"])
            names = {m: f"optimizer.{m}.{name}" for m in _MOMENTS}
            if names["step"] in tensors:  # else it has not learned yet
                self.optimizer.state[parameter] = {
                    m: tensors[key].to(parameter.device) for m, key in names.items()
                }
        self.within = {
            name.removeprefix("within."): value
            for name, value in tensors.items()
            if name.startswith("within.")
        }
        self.kl.coefficient = numbers["kl_coef"]
        self.moments = RunningMoments(**numbers["moments"])

    def remember_actor(self) -> None:
        """Keep a copy of the actor as it is."""
        self.within = {n: p.detach().cpu().clone() for n, p in self.actor.named_parameters()}

    @torch.no_grad()
    def recall_actor(self) -> None:
        """Make the actor what was kept."""
        for name, parameter in self.actor.named_parameters():
            parameter.copy_(self.within[name])
