"""The language-model head in chunks of tokens: log-probabilities, entropies and the gradient of a
loss on them, without ever holding logits of shape (B, T, V).

A chunk's logits are needed three times: for its log-probabilities, for the loss on them, and for
the gradient of that loss. Doing all three before the next chunk saves both the memory of keeping
them and the matrix product of making them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labeling.errors import InputError
from ppo.config import LOGITS_AT_ONCE

# (log-probabilities (n,), entropies (n,), which of the N tokens) → the chunk's share of the loss
ChunkLoss = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True)
class Head:
    """logits = cap(scale · (W h + b)), with cap(x) = c · tanh(x / c) where the model caps them.

    `dtype` is the precision of its matrix products; whatever comes out of them is float32.
    """

    linear: nn.Linear
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Head:
        """The head of a causal language model.

        Raises:
            InputError: its logits are not what this head makes of its last hidden states.
        """
        config: Any = model.config.get_text_config()
        linear = model.get_output_embeddings()
        if not isinstance(linear, nn.Linear):
            raise InputError(f"{type(model).__name__} has no linear language-model head")
        names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
        scales = [getattr(config, name, None) for name in names]
        scale = next((s for s in scales if s is not None), 1.0)
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            scale /= divisor
        softcap = getattr(config, "final_logit_softcapping", None)
        cls(linear, torch.float32, scale, softcap)._check(model)
        return cls(linear, dtype, scale, softcap)

    @torch.no_grad()
    def _check(self, model: PreTrainedModel) -> None:
        """On a few tokens, against the model's own logits."""
        ids = torch.arange(min(4, self.linear.out_features), device=model.device)[None]
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        made = self.logits(hidden)
        if not torch.allclose(made, expected, atol=1e-3, rtol=1e-3):
            off = (made - expected).abs().max().item()
            raise InputError(
                f"{type(model).__name__} makes its logits in a way that PPO does not know (they "
                f"differ by up to {off:.2g}): use a model with a plain language-model head"
            )

    def logits(
        self, hidden: Tensor, temperature: float = 1.0, weight: Tensor | None = None
    ) -> Tensor:
        """Hidden states `(n, d)` → logits `(n, V)` over the temperature, float32. `weight` is the
        head's in its `dtype`, for who asks often."""
        weight = self.linear.weight.to(self.dtype) if weight is None else weight
        return self._logits(hidden, weight, temperature, self._buffer(len(hidden), hidden.device))

    @torch.no_grad()
    def read(self, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of each token and entropy of its distribution, in nats; no gradient.

        Args:
            hidden: `(N, d)`, the states that predict the tokens.
            tokens: `(N,)`.
            temperature: divides the logits.

        Returns:
            `(N,)` each, float32.
        """
        logprobs, entropies = hidden.new_empty(2, len(tokens), dtype=self._wide)
        for part, _, logits, other in self._chunks(hidden, temperature):
            logprobs[part], entropies[part], _, _ = statistics(logits, tokens[part], other)
        return logprobs, entropies

    @torch.no_grad()
    def backward(
        self, hidden: Tensor, tokens: Tensor, temperature: float, loss: ChunkLoss
    ) -> Tensor:
        """Gradient of Σ_chunks `loss`; the head's own is added to its parameters' `.grad`.

        With p the softmax of the logits z, H its entropy and y the token (of one position):

            ∂ log p_y / ∂z_v = [v = y] − p_v,      ∂H / ∂z_v = −p_v (log p_v + H)

        Args:
            hidden: `(N, d)`, detached.
            tokens: `(N,)`.
            temperature: divides the logits.
            loss: called once a chunk, with leaves that ask for their gradient.

        Returns:
            the gradient with respect to `hidden`, `(N, d)`.
        """
        weight = self.linear.weight.to(self.dtype)
        gradient = torch.empty_like(hidden)
        for part, states, logits, other in self._chunks(hidden, temperature):
            chosen = tokens[part]
            slope = self._slope(logits, temperature)
            logprobs, entropies, log_p, p = statistics(logits, chosen, other)
            by_logprob, by_entropy = _gradients(loss, logprobs, entropies, part)
            # In place, because at these sizes memory traffic is what costs.
            if by_entropy is None:
                by_logits = p.mul_(-by_logprob[:, None])
            else:
                log_p.add_(entropies[:, None]).mul_(by_entropy[:, None])
                by_logits = p.mul_(log_p.add_(by_logprob[:, None])).neg_()
            by_logits.scatter_add_(1, chosen[:, None], by_logprob[:, None])
            if not isinstance(slope, float) or slope != 1:
                by_logits.mul_(slope)
            if self.linear.bias is not None:
                _add_gradient(self.linear.bias, by_logits.sum(dim=0))
            by_logits = by_logits.to(self.dtype)
            gradient[part] = _product(by_logits, weight).to(gradient.dtype)
            _add_product_gradient(self.linear.weight, by_logits.T, states)
        return gradient

    def _chunks(
        self, hidden: Tensor, temperature: float
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Chunk by chunk of `(N, d)`: which tokens, their states in the head's precision, their
        logits, and a second buffer of that shape. The buffers are made once: to allocate them
        anew for each chunk leaves the memory of a CPU in pieces, several times their size."""
        size = max(16, LOGITS_AT_ONCE[hidden.device.type] // self.linear.out_features)
        weight = self.linear.weight.to(self.dtype)
        logits, other = (self._buffer(min(size, len(hidden)), hidden.device) for _ in range(2))
        for start in range(0, len(hidden), size):
            part = slice(start, min(start + size, len(hidden)))
            states = hidden[part].to(self.dtype)
            count = len(states)
            made = self._logits(states, weight, temperature, logits[:count])
            yield part, states, made, other[:count]

    def _logits(self, states: Tensor, weight: Tensor, temperature: float, out: Tensor) -> Tensor:
        if self.dtype == out.dtype:
            torch.mm(states, weight.T, out=out)
        else:
            out.copy_(_product(states.to(self.dtype), weight.T))
        if self.linear.bias is not None:
            out += self.linear.bias
        if self.softcap is not None:
            return out.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / temperature)
        factor = self.scale / temperature
        return out if factor == 1 else out.mul_(factor)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def _buffer(self, tokens: int, device: torch.device) -> Tensor:
        return torch.empty(tokens, self.linear.out_features, dtype=self._wide, device=device)

    def _slope(self, logits: Tensor, temperature: float) -> Tensor | float:
        """∂ logits / ∂ (W h + b), element by element."""
        if self.softcap is None:
            return self.scale / temperature
        capped = logits * (temperature / self.softcap)
        return (1 - capped**2) * (self.scale / temperature)


def statistics(
    logits: Tensor, tokens: Tensor, buffer: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of logits `(n, V)` and tokens `(n,)`: log-probability of each token `(n,)`, entropy `(n,)`,
    and the whole distribution, log p and p `(n, V)`. With a `buffer` `(n, V)` nothing of that size
    is allocated: log p is written there, and p in place of the logits."""
    log_p = torch.log_softmax(logits, dim=-1, out=buffer)
    p = torch.exp(log_p, out=None if buffer is None else logits)
    logprobs = log_p.gather(-1, tokens[:, None]).squeeze(-1)
    return logprobs, -torch.linalg.vecdot(p, log_p), log_p, p


def _gradients(
    loss: ChunkLoss, logprobs: Tensor, entropies: Tensor, part: slice
) -> tuple[Tensor, Tensor | None]:
    """∂ loss / ∂ log p and ∂ loss / ∂ H, `(n,)` each; None where the loss has no entropy."""
    with torch.enable_grad():
        leaves = (logprobs.detach().requires_grad_(), entropies.detach().requires_grad_())
        total = loss(*leaves, part)
    by_logprob, by_entropy = torch.autograd.grad(total, leaves, allow_unused=True)
    return torch.zeros_like(logprobs) if by_logprob is None else by_logprob, by_entropy


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, in float32 at least; CUDA does not round low-precision products on the way."""
    if a.dtype not in (torch.bfloat16, torch.float16):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()


def _add_product_gradient(parameter: Tensor, a: Tensor, b: Tensor) -> None:
    """parameter.grad += a @ b."""
    if not parameter.requires_grad:
        return
    if parameter.grad is not None and a.dtype == parameter.grad.dtype:
        parameter.grad.addmm_(a, b)  # no temporary of the head's size
    elif parameter.grad is not None and a.is_cuda:
        torch.addmm(parameter.grad, a, b, out_dtype=torch.float32, out=parameter.grad)
    else:
        _add_gradient(parameter, _product(a, b))


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient
