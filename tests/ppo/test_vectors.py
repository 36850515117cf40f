"""Our formulas agree with reference values on which independent implementations agree."""

import json
from pathlib import Path

import pytest
import torch

from ppo.advantages import generalized_advantages, kl_shaped_rewards, masked_mean, whiten
from ppo.head import Head, statistics
from ppo.kl import AdaptiveKL, kl_estimate
from ppo.losses import entropy, policy_loss, value_loss

CASES = json.loads((Path(__file__).parent / "vectors.json").read_text())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(ours, theirs, mask=None):
    theirs = tensor(theirs)
    if mask is not None:
        ours, theirs = ours * mask, theirs * mask
    return torch.allclose(ours, theirs, atol=1e-6, rtol=0)


@pytest.fixture(params=CASES, ids=lambda case: f"seed{case['seed']}")
def case(request):
    return request.param


def test_generalized_advantages_agree(case):
    mask, gae = tensor(case["mask"]), case["gae"]
    advantages, returns = generalized_advantages(
        tensor(gae["rewards"]), tensor(gae["values"]), mask, gae["gamma"], gae["lam"]
    )
    assert close(advantages, gae["advantages"], mask)
    assert close(returns, gae["returns"], mask)


def test_whitening_agrees(case):
    mask, reference = tensor(case["mask"]), case["whiten"]
    values = tensor(reference["values"])
    assert close(whiten(values, mask), reference["whitened"], mask)
    assert close(whiten(values, mask, shift_mean=False), reference["whitened_keep_mean"], mask)


def test_policy_and_value_losses_agree(case):
    mask, p, v = tensor(case["mask"]), case["policy_loss"], case["value_loss"]
    ours = policy_loss(
        tensor(p["logprobs"]),
        tensor(p["old_logprobs"]),
        tensor(p["advantages"]),
        mask,
        p["cliprange"],
    )
    assert ours.loss.item() == pytest.approx(p["loss"], abs=1e-6)
    value = value_loss(
        tensor(v["values"]), tensor(v["old_values"]), tensor(v["returns"]), mask, v["cliprange"]
    )
    assert value.loss.item() == pytest.approx(v["loss"], abs=1e-6)


def test_kl_estimators_agree(case):
    mask, kl = tensor(case["mask"]), case["kl"]
    for kind in ("k1", "k2", "k3"):
        ours = kl_estimate(tensor(kl["logprobs"]), tensor(kl["ref_logprobs"]), kind)
        assert close(ours, kl[kind], mask)


def test_entropy_and_token_logprobs_agree(case):
    mask, e = tensor(case["mask"]), case["entropy"]
    logits = tensor(e["logits"])
    assert entropy(logits, mask).item() == pytest.approx(e["masked_mean_entropy"], abs=1e-6)
    labels = torch.tensor(e["labels"])
    ours, _, _, _ = statistics(logits.flatten(0, 1), labels.flatten())
    assert close(ours.view(labels.shape), e["label_logprobs"], mask)


def test_the_chunked_head_agrees(case):
    """With hidden states that are the logits and a head that is the identity."""
    mask, e = tensor(case["mask"]), case["entropy"]
    logits, labels = tensor(e["logits"]), torch.tensor(e["labels"])
    identity = torch.nn.Linear(logits.shape[-1], logits.shape[-1], bias=False).double()
    torch.nn.init.eye_(identity.weight)
    head = Head(identity, torch.float64)
    logprobs, entropies = head.read(logits.flatten(0, 1), labels.flatten(), 1.0)
    assert close(logprobs.view(labels.shape), e["label_logprobs"], mask)
    mean = masked_mean(entropies.view(labels.shape), mask).item()
    assert mean == pytest.approx(e["masked_mean_entropy"], abs=1e-6)


def test_kl_shaped_rewards_agree(case):
    mask, r = tensor(case["mask"]), case["kl_shaped_rewards"]
    ours = kl_shaped_rewards(
        tensor(r["scores"]), tensor(r["logprobs"]), tensor(r["ref_logprobs"]), mask, r["kl_coef"]
    )
    assert close(ours, r["rewards"], mask)


def test_adaptive_kl_agrees(case):
    a = case["adaptive_kl"]
    kl = AdaptiveKL(a["initial"], a["target"], a["horizon"])
    for step in a["updates"]:
        kl.update(step["kl"], step["steps"])
        assert kl.coefficient == pytest.approx(step["coefficient"], abs=1e-6)
