"""The policy, its value function, and one forward pass for reference and update alike."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from labeling.durable import put_in_place
from labeling.errors import InputError
from ppo.cache import empty_cache
from ppo.sequences import Part
from reward.encoding import end_of_turn
from reward.loading import load_model
from reward.model import RewardModel


def load_policy(model: str) -> PreTrainedModel:
    """Load a causal language model in float32, in evaluation mode: dropout stays off in sampling
    and in PPO's update alike, or the ratio on the first minibatch would not be 1. (SFT's trainer
    switches it on for itself.)

    Args:
        model: a folder in transformers' format, or a hub name (`name@commit`).

    Raises:
        InputError: it cannot be loaded.
    """
    loaded = load_model(AutoModelForCausalLM, model, "a causal language model")
    return loaded.eval()


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write safetensors and tokenizer, as transformers, vLLM and PEFT load them; they then stop
    where our own sampling does."""
    stop = sorted(stop_tokens(model, tokenizer))
    if model.generation_config is not None:
        model.generation_config.eos_token_id = stop if len(stop) > 1 else stop[0]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_value(actor: ActorCritic, file: Path) -> None:
    """Write the value head, and the critic's trunk where it is not the policy's."""
    own = {n: p for n, p in actor.named_parameters() if not n.startswith("policy.")}
    partial = file.with_name(file.name + ".partial")
    save_file({n: p.detach().cpu().contiguous() for n, p in own.items()}, partial)
    put_in_place(partial, file)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a completion and belong to it: the tokenizer's EOS, the chat template's end
    of turn, and whatever the model's generation config adds."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    ids = [tokenizer.eos_token_id, end_of_turn(tokenizer), *ids]
    return frozenset(i for i in ids if i is not None)


class ActorCritic(nn.Module):
    """A policy with a value function: a head on the policy's own trunk, or on a trunk apart.

    A fresh value head starts at zero, so that the first advantages are the rewards' own.
    """

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel | None = None) -> None:
        """`critic` is the trunk apart: gives last hidden states of the policy's tokens."""
        super().__init__()
        self.policy = policy
        self.critic = critic
        # Not config.hidden_size, which some trunks project down at their end.
        self.value_head = nn.Linear(policy.get_output_embeddings().in_features, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.value_head.weight.device

    def states(self, part: Part) -> Tensor:
        """The policy's last hidden states where the response tokens are chosen, `(N, d)`."""
        return last_states(self.policy.base_model, part)

    def values(self, part: Part, states: Tensor | None) -> Tensor:
        """V of the states in which the response tokens are chosen, `(N,)`; `states` are the
        policy's, which a critic of its own does not need."""
        hidden = states if self.critic is None else last_states(self.critic, part)
        assert hidden is not None
        return self.value_of(hidden)

    def value_of(self, hidden: Tensor) -> Tensor:
        """Hidden states of the critic's trunk `(…, d)` → values `(…)`."""
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would round the values
            return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)


def last_states(trunk: nn.Module, part: Part) -> Tensor:
    """Last hidden states of a trunk where the response tokens are chosen, `(N, d)`."""
    hidden = trunk(
        input_ids=part.input_ids, past_key_values=empty_cache(trunk), use_cache=False
    ).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])[part.states]


def separate_critic(policy: PreTrainedModel) -> PreTrainedModel:
    """A critic's trunk that starts as the policy's."""
    return cast(PreTrainedModel, copy.deepcopy(policy.base_model))


def critic_from_reward_model(
    reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, nn.Linear]:
    """Trunk and value head that start as the reward model's: V is then its normalised score of the
    text so far (Stiennon et al. 2020).

    Raises:
        InputError: it reads other tokens than the policy, or has no linear score head.
    """
    theirs = reward_model.tokenizer.get_vocab()
    if any(theirs.get(token) != i for token, i in tokenizer.get_vocab().items()):
        raise InputError(
            "ppo.critic 'reward_model' needs a reward model with the policy's own tokenizer; "
            "use 'separate' with this one"
        )
    score = getattr(reward_model.model, "score", None)
    if not isinstance(score, nn.Linear):
        raise InputError(
            f"{type(reward_model.model).__name__} has no linear score head to start a critic from: "
            "use ppo.critic 'separate'"
        )
    head = nn.Linear(score.in_features, 1)
    normal = reward_model.normalization
    with torch.no_grad():
        head.weight.copy_(score.weight / normal.std)
        head.bias.copy_(((0.0 if score.bias is None else score.bias) - normal.mean) / normal.std)
    trunk = cast(PreTrainedModel, copy.deepcopy(reward_model.model.base_model))
    return trunk.requires_grad_(True), head
