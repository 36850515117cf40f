"""PPO finds the optimum that enumeration gives: π* ∝ π_ref · exp(r/β)."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from labeling.records import Completion
from ppo.config import PPO, Generation
from ppo.decoding import Decoder
from ppo.head import Head
from ppo.order import counter_seed
from ppo.policy import ActorCritic, last_states
from ppo.rewards import RunningMoments, shape_scores
from ppo.rollout import Engine, experience_of, read_rollout
from ppo.schedule import learning_rate_at
from ppo.sequences import assemble
from ppo.state import State
from ppo.update import update

VOCABULARY, LENGTH = 8, 2
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
        part = assemble([prompt] * len(RESPONSES), RESPONSES).part(range(len(RESPONSES)))
        logprobs, _ = Head.of(model).read(last_states(model.base_model, part), part.tokens, 1.0)
        rows.append(logprobs.view(len(RESPONSES), LENGTH).sum(-1))
    return torch.stack(rows)


def objective(log_p, log_ref, reward, beta):
    return (log_p.exp() * (reward - beta * (log_p - log_ref))).sum(-1).mean().item()


@pytest.mark.parametrize("beta", [0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_reaches_the_exact_optimum(seed, beta):
    gap, variation = train(seed, beta)
    assert gap <= 0.03
    assert variation <= 0.08


def train(seed, beta, iterations=160, batch=288):
    """(J* − J) / (J* − J_ref), and the mean total variation to π*."""
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
        kl_coef=beta,
        unfinished_penalty=None,
        micro_batch_tokens=4096,
        seed=seed,
    )
    reference = tiny_policy(seed)
    actor = ActorCritic(copy.deepcopy(reference))
    engine, state = Engine.of(actor, reference, torch.float32), State.fresh(actor, config)
    decoder = Decoder(
        actor.policy, frozenset(), Generation(max_new_tokens=LENGTH), value_of=actor.value_of
    )
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(len(PROMPTS), len(RESPONSES), generator=generator)
    log_ref = distribution(reference)
    log_star = (log_ref + reward / beta).log_softmax(-1)
    asked = [p for p in range(len(PROMPTS)) for _ in range(batch // len(PROMPTS))]
    prompts, completions = [PROMPTS[p] for p in asked], [Completion("")] * batch
    for iteration in range(iterations):
        drawn = decoder.draw(prompts, counter_seed(seed, iteration))
        raw = torch.stack(
            [reward[p, VOCABULARY * r[0] + r[1]] for p, r in zip(asked, drawn.tokens, strict=True)]
        )
        scores = shape_scores(raw, [True] * batch, config, RunningMoments())
        rollout = read_rollout(engine, config, prompts, drawn, completions, scores)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(iteration, config)
        experience = experience_of(rollout, config, beta)
        update(engine, state.optimizer, rollout, experience, config, iteration)
    log_p = distribution(actor.policy)
    best = objective(log_star, log_ref, reward, beta)
    start = objective(log_ref, log_ref, reward, beta)
    gap = (best - objective(log_p, log_ref, reward, beta)) / (best - start)
    variation = 0.5 * (log_p.exp() - log_star.exp()).abs().sum(-1).mean().item()
    print(f"seed {seed}, beta {beta}: gap {gap:.4f}, total variation {variation:.4f}")
    return gap, variation
