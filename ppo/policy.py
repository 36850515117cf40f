"""The policy, its value function, and one forward pass for rollout, reference and update alike."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from reward.encoding import end_of_turn
from reward.loading import load_model


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


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a completion and belong to it: the tokenizer's EOS, the chat template's end
    of turn, and whatever the model's generation config adds."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    ids = [tokenizer.eos_token_id, end_of_turn(tokenizer), *ids]
    return frozenset(i for i in ids if i is not None)


@dataclass(frozen=True)
class Sequences:
    """Prompts and responses side by side: prompts left-padded, responses right-padded, so that
    response token t sits in column P + t of every row."""

    input_ids: Tensor  # (B, P + T)
    attention_mask: Tensor  # (B, P + T), 1 = valid
    responses: Tensor  # (B, T)
    mask: Tensor  # (B, T), 1 = valid response token

    def to(self, device: torch.device) -> Sequences:
        """All tensors on `device`."""
        return Sequences(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.responses.to(device),
            self.mask.to(device),
        )

    def rows(self, index: Tensor) -> Sequences:
        """The given rows, without the columns that are padding in all of them."""
        attention = self.attention_mask[index]
        width = self.mask.shape[1]
        prompt_width = attention.shape[1] - width
        first = int((attention.sum(dim=0) > 0).int().argmax())
        first = min(first, prompt_width - 1)
        length = int(self.mask[index].sum(dim=1).max())
        end = prompt_width + length
        return Sequences(
            self.input_ids[index, first:end],
            attention[:, first:end],
            self.responses[index, :length],
            self.mask[index, :length],
        )


def assemble(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int
) -> Sequences:
    """Token lists → `Sequences`. Padding is told by the masks alone, so `pad` may be any id.

    Raises:
        ValueError: an empty prompt or response; there would be no state or no action.
    """
    if not all(prompts) or not all(responses):
        raise ValueError("every prompt and every response needs at least one token")
    width, length = max(map(len, prompts)), max(map(len, responses))
    ids = torch.full((len(prompts), width + length), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = width - len(prompt), width + len(response)
        ids[row, start:end] = torch.tensor([*prompt, *response])
        attention[row, start:end] = 1
    return Sequences(ids, attention, ids[:, width:].clone(), attention[:, width:].clone())


class ActorCritic(nn.Module):
    """A policy with a value function: a head on the policy's own trunk, or on a trunk apart.

    The head starts at zero, so that the first advantages are the rewards' own.
    """

    def __init__(self, policy: PreTrainedModel, critic: Literal["shared", "separate"]) -> None:
        super().__init__()
        self.policy = policy
        self.critic = copy.deepcopy(policy) if critic == "separate" else None
        width = policy.config.get_text_config().hidden_size
        self.value_head = nn.Linear(width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, sequences: Sequences, temperature: float) -> tuple[Tensor, Tensor]:
        """Logits `(B, T, V)` divided by the temperature, and values `(B, T)`, float32: entry t is
        of the state in which response token t is chosen."""
        logits, hidden = response_logits(self.policy, sequences, temperature)
        if self.critic is not None:
            _, hidden = response_logits(self.critic, sequences, temperature)
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would round the values
            return logits, self.value_head(hidden.float()).squeeze(-1)


def response_logits(
    model: PreTrainedModel, sequences: Sequences, temperature: float
) -> tuple[Tensor, Tensor]:
    """Logits `(B, T, V)` over the temperature (float32) and last hidden states `(B, T, d)` at the
    positions that predict the response tokens."""
    length = sequences.responses.shape[1]
    extra = {}
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" in parameters:
        positions = (sequences.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        extra["position_ids"] = positions
    if "logits_to_keep" in parameters:
        extra["logits_to_keep"] = length + 1  # type: ignore[assignment]
    output = model(
        input_ids=sequences.input_ids,
        attention_mask=sequences.attention_mask,
        output_hidden_states=True,
        use_cache=False,
        **extra,
    )
    logits = output.logits[:, -length - 1 : -1].float() / temperature
    return logits, output.hidden_states[-1][:, -length - 1 : -1]


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each chosen token: logits `(B, T, V)`, tokens `(B, T)` → `(B, T)`."""
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)
