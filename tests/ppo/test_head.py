"""The head in chunks gives what autograd gives on whole logits."""

import pytest
import torch
from torch import nn

from labeling.errors import InputError
from ppo import head as heads
from ppo.head import Head
from ppo.losses import entropy, token_entropy
from tests import tiny

N, D, V = 37, 16, 50


@pytest.fixture(params=["plain", "bias", "scaled", "capped"])
def head(request):
    torch.manual_seed(0)
    linear = nn.Linear(D, V, bias=request.param == "bias").double()
    nn.init.normal_(linear.weight)
    scale = 0.3 if request.param in ("scaled", "capped") else 1.0
    return Head(linear, torch.float64, scale, 2.0 if request.param == "capped" else None)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(heads.LOGITS_AT_ONCE, "cpu", 16 * V)  # three chunks, the last one short


def whole(head, hidden, temperature):
    logits = (hidden @ head.linear.weight.T) * head.scale
    if head.linear.bias is not None:
        logits = (hidden @ head.linear.weight.T + head.linear.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits / temperature


def given():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    tokens = torch.randint(V, (N,), generator=generator)
    weights = torch.randn(2, N, generator=generator, dtype=torch.float64)
    return hidden, tokens, weights


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropies_are_those_of_the_whole_logits(head, temperature):
    hidden, tokens, _ = given()
    logprobs, entropies = head.read(hidden, tokens, temperature)
    logits = whole(head, hidden, temperature)
    expected = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, expected.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(entropies, token_entropy(logits).detach(), atol=1e-12, rtol=0)
    mean = entropy(logits[None], torch.ones(1, N)).item()
    assert entropies.mean().item() == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_are_those_of_autograd(head, temperature, with_entropy):
    hidden, tokens, weights = given()

    def loss(logprobs, entropies, part):
        value = (weights[0, part] * logprobs.exp()).sum()
        return value + (weights[1, part] * entropies**2).sum() if with_entropy else value

    head.linear.zero_grad()
    ours = head.backward(hidden, tokens, temperature, loss)
    ours_head = [p.grad.clone() for p in head.linear.parameters()]
    head.linear.zero_grad()
    leaf = hidden.clone().requires_grad_()
    logits = whole(head, leaf, temperature)
    logprobs = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    loss(logprobs, token_entropy(logits), slice(None)).backward()
    torch.testing.assert_close(ours, leaf.grad, atol=1e-12, rtol=0)
    for gradient, parameter in zip(ours_head, head.linear.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=0)


def test_gradients_add_to_what_is_there(head):
    hidden, tokens, _ = given()
    head.linear.zero_grad()
    for _ in range(2):
        head.backward(hidden, tokens, 1.0, lambda logprobs, entropies, part: logprobs.sum())
    twice = head.linear.weight.grad.clone()
    head.linear.zero_grad()
    head.backward(hidden, tokens, 1.0, lambda logprobs, entropies, part: logprobs.sum())
    torch.testing.assert_close(twice, 2 * head.linear.weight.grad, atol=1e-12, rtol=0)


def test_a_head_that_is_not_understood_is_refused():
    model = tiny.policy(tiny.tokenizer())
    plain = model.forward

    def other(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    assert Head.of(model).linear is model.get_output_embeddings()
    model.forward = other
    with pytest.raises(InputError, match="LlamaForCausalLM makes its logits in a way"):
        Head.of(model)


def test_bfloat16_products_keep_close_to_float32():
    torch.manual_seed(0)
    linear = nn.Linear(D, V, bias=False)
    hidden, tokens = torch.randn(N, D), torch.randint(V, (N,))
    exact, _ = Head(linear).read(hidden, tokens, 1.0)
    rounded, _ = Head(linear, torch.bfloat16).read(hidden, tokens, 1.0)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)
