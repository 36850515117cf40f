import pytest
import torch

from ppo.advantages import generalized_advantages, kl_shaped_rewards, masked_mean, whiten

torch.manual_seed(0)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def garbage(shape=(3, 5)):
    """Random values, huge behind the end of each row."""
    return torch.where(MASK.bool(), torch.randn(shape), torch.full(shape, 1e6)).double()


def test_advantages_equal_their_quadratic_definition():
    rewards, values, gamma, lam = garbage(), garbage(), 0.97, 0.9
    ours, returns = generalized_advantages(rewards, values, MASK, gamma, lam)
    for row in range(3):
        n = int(MASK[row].sum())
        for t in range(n):
            total = 0.0
            for k in range(t, n):
                following = values[row, k + 1] if k + 1 < n else 0.0
                delta = rewards[row, k] + gamma * following - values[row, k]
                total += (gamma * lam) ** (k - t) * delta
            assert ours[row, t] == pytest.approx(float(total), abs=1e-9)
            assert returns[row, t] == pytest.approx(float(total + values[row, t]), abs=1e-9)
    assert (ours[MASK == 0] == 0).all()


def test_what_stands_behind_the_end_changes_nothing():
    rewards, values = garbage(), garbage()
    clean, _ = generalized_advantages(rewards * MASK, values * MASK, MASK, 1.0, 0.95)
    dirty, _ = generalized_advantages(rewards, values, MASK, 1.0, 0.95)
    assert torch.equal(clean, dirty)


def test_whitened_advantages_have_zero_mean_and_unit_variance():
    whitened = whiten(garbage(), MASK)
    assert abs(masked_mean(whitened, MASK)) < 1e-6
    assert whitened[MASK == 1].var().item() == pytest.approx(1, abs=1e-5)


def test_whitened_rewards_keep_their_mean():
    values = garbage()
    whitened = whiten(values, MASK, shift_mean=False)
    assert masked_mean(whitened, MASK).item() == pytest.approx(masked_mean(values, MASK).item())
    assert whitened[MASK == 1].var().item() == pytest.approx(1, abs=1e-5)


def test_whitening_one_token_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        whiten(torch.ones(1, 1), torch.ones(1, 1))


def test_the_score_sits_on_the_last_valid_token():
    zeros = torch.zeros(3, 5)
    rewards = kl_shaped_rewards(torch.tensor([1.0, 2.0, 3.0]), zeros, zeros, MASK, 0.1)
    expected = torch.zeros(3, 5)
    expected[0, 4], expected[1, 2], expected[2, 0] = 1, 2, 3
    assert torch.equal(rewards, expected)


def test_drifting_from_the_reference_costs():
    higher = torch.full((3, 5), 0.5)
    rewards = kl_shaped_rewards(torch.zeros(3), higher, torch.zeros(3, 5), MASK, 0.2)
    assert torch.allclose(rewards[MASK == 1], torch.tensor(-0.1))
    assert (rewards[MASK == 0] == 0).all()
