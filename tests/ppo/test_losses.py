import pytest
import torch

from ppo.kl import kl_estimate
from ppo.losses import entropy, policy_loss, value_loss

ONES = torch.ones(1, 4)


def test_a_clipped_token_gives_exactly_zero_gradient():
    # Ratios 1.5, 0.5, 1.5, 0.5 with a clip of 0.2: the first is clipped for a positive advantage,
    # the fourth for a negative one; the other two would make things worse and stay in.
    logprobs = torch.log(torch.tensor([[1.5, 0.5, 1.5, 0.5]])).requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    loss = policy_loss(logprobs, torch.zeros(1, 4), advantages, ONES, 0.2)
    loss.loss.backward()
    assert logprobs.grad[0, 0] == logprobs.grad[0, 3] == 0
    assert (logprobs.grad[0, 1:3] != 0).all()
    assert loss.clip_fraction.item() == 0.5


def test_first_gradient_is_reinforce_with_advantage():
    logprobs = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    advantages, mask = torch.randn(2, 3).double(), torch.tensor([[1, 1, 1], [1, 0, 0]])
    policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2).loss.backward()
    assert torch.allclose(logprobs.grad, -advantages * mask / mask.sum(), atol=1e-12)


def test_padding_never_reaches_a_loss():
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    bad = torch.tensor([[0.0, 0.0, 1e9]])
    zeros = torch.zeros(1, 3)
    assert torch.isfinite(policy_loss(bad, zeros, torch.ones(1, 3), mask, 0.2).loss)
    assert value_loss(bad, zeros, zeros, mask, None).loss == 0


def test_value_clip_takes_the_larger_error():
    values, old, returns = torch.tensor([[2.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]])
    loss = value_loss(values, old, returns, torch.ones(1, 1), 0.5)
    assert loss.loss.item() == pytest.approx(0.5 * 1.5**2)
    assert loss.clip_fraction.item() == 1
    assert value_loss(values, old, returns, torch.ones(1, 1), None).loss.item() == 0


def test_entropy_is_the_logarithm_of_equal_choices():
    logits = torch.zeros(1, 2, 8)
    assert entropy(logits, torch.ones(1, 2)).item() == pytest.approx(torch.tensor(8.0).log().item())


def test_kl_estimators_agree_with_the_true_divergence():
    torch.manual_seed(0)
    p, q = torch.randn(8).log_softmax(0), torch.randn(8).log_softmax(0)
    true = (p.exp() * (p - q)).sum().item()
    for kind in ("k1", "k3"):
        assert (p.exp() * kl_estimate(p, q, kind)).sum().item() == pytest.approx(true, abs=1e-6)
    assert (kl_estimate(p, q, "k3") >= 0).all()
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(p, q, "k4")
