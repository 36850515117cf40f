"""PPO finds the optimum that enumeration gives: π* ∝ π_ref · exp(r/β)."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from labeling.records import Completion
from ppo.config import PPO
from ppo.generation import Response
from ppo.order import counter_seed
from ppo.policy import ActorCritic, assemble, response_logits
from ppo.rollout import experience_of, read_rollout
from ppo.train import learning_rate_at
from ppo.update import update

VOCABULARY, LENGTH, BETA = 8, 2, 0.5
PROMPTS = [[0, 1], [2, 3], [4, 5]]
RESPONSES = [[a, b] for a in range(VOCABULARY) for b in range(VOCABULARY)]


def tiny_policy(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
    ).eval()


@torch.no_grad()
def distribution(model):
    """log π of each of the 64 responses to each prompt, (3, 64), by enumeration."""
    rows = []
    for prompt in PROMPTS:
        sequences = assemble([prompt] * len(RESPONSES), RESPONSES, 0)
        logits, _ = response_logits(model, sequences, 1.0)
        log_p = logits.log_softmax(-1).gather(-1, sequences.responses.unsqueeze(-1)).squeeze(-1)
        rows.append(log_p.sum(-1))
    return torch.stack(rows)


def objective(log_p, log_ref, reward):
    return (log_p.exp() * (reward - BETA * (log_p - log_ref))).sum(-1).mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_reaches_the_exact_optimum(seed):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gap, variation = train(seed)
    finally:
        torch.set_num_threads(threads)
    assert gap <= 0.03
    assert variation <= 0.08


def train(seed, iterations=160, batch=192):
    config = PPO(
        iterations=iterations,
        rollout_batch_size=batch,
        epochs=1,
        minibatches=3,
        max_new_tokens=LENGTH,
        learning_rate=3e-3,
        lam=1.0,
        whiten_advantages=False,
        value_clip_range=None,
        value_coef=0.5,
        kl_coef=BETA,
        unfinished_penalty=None,
    )
    reference = tiny_policy(seed)
    actor = ActorCritic(copy.deepcopy(reference), "shared")
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(len(PROMPTS), len(RESPONSES), generator=generator)
    log_ref = distribution(reference)
    log_star = (log_ref + reward / BETA).log_softmax(-1)
    optimizer = torch.optim.Adam(
        nn.ParameterList(actor.parameters()), lr=config.learning_rate, eps=config.adam_epsilon
    )
    for iteration in range(iterations):
        generator = torch.Generator().manual_seed(counter_seed(seed, iteration))
        probabilities = distribution(actor.policy).exp()
        drawn = torch.multinomial(probabilities, batch // 3, True, generator=generator)
        places = [(p, int(r)) for p in range(3) for r in drawn[p]]
        rollout = read_rollout(
            actor,
            reference,
            [PROMPTS[p] for p, _ in places],
            [Response(RESPONSES[r], Completion("")) for _, r in places],
            torch.stack([reward[p, r] for p, r in places]),
            0,
            config,
            torch.float32,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(iteration, config)
        experience = experience_of(rollout, config, BETA)
        update(actor, optimizer, rollout, experience, config, iteration, torch.float32)
    log_p = distribution(actor.policy)
    best, start = objective(log_star, log_ref, reward), objective(log_ref, log_ref, reward)
    gap = (best - objective(log_p, log_ref, reward)) / (best - start)
    variation = 0.5 * (log_p.exp() - log_star.exp()).abs().sum(-1).mean().item()
    print(f"seed {seed}: gap {gap:.4f}, total variation {variation:.4f}")
    return gap, variation
