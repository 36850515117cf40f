"""Oracles through the real rollout, advantage and update code."""

import copy

import pytest
import torch

from labeling.errors import InputError
from labeling.records import Completion, Prompt
from ppo.config import PPO, Generation
from ppo.generation import Generator, Response
from ppo.order import batch_at
from ppo.policy import ActorCritic, assemble, response_logits, token_logprobs
from ppo.rollout import experience_of, read_rollout
from ppo.train import learning_rate_at
from ppo.update import minibatch_loss, update
from reward.encoding import prompt_ids
from tests import tiny

TEXTS = ["hello desk", "order", "please the support desk answers", "now thanks"] * 3
FLOAT = torch.float32


def config(**changes):
    given = {
        "rollout_batch_size": 12,
        "minibatches": 3,
        "epochs": 1,
        "max_new_tokens": 9,
        "learning_rate": 1e-2,
        "value_coef": 0.5,
        "entropy_coef": 0.01,
    } | changes
    return PPO(**given)


@pytest.fixture
def world():
    tokens = tiny.tokenizer()
    reference = tiny.policy(tokens, std=0.3)
    prompts = [prompt_ids(tokens, Prompt(text=t)) for t in TEXTS]
    generator = Generator(reference, tokens, Generation(max_new_tokens=9))
    drawn = generator.draw(prompts, seed=1)
    # Responses of unequal lengths, some of a single token.
    responses = [
        Response(r.tokens[: 1 + i % 9], Completion(str(i), finished=i % 2 == 0))
        for i, r in enumerate(drawn)
    ]
    scores = torch.linspace(-1, 1, len(TEXTS))
    return reference, prompts, responses, scores


def rollout_of(world, cfg, pad=1, critic="shared"):
    reference, prompts, responses, scores = world
    torch.manual_seed(0)
    actor = ActorCritic(copy.deepcopy(reference), critic)
    torch.nn.init.normal_(actor.value_head.weight)
    rollout = read_rollout(actor, reference, prompts, responses, scores, pad, cfg, FLOAT)
    return actor, rollout, experience_of(rollout, cfg, 0.05)


def stepped(world, cfg, pad=1, critic="shared"):
    actor, rollout, experience = rollout_of(world, cfg, pad, critic)
    optimizer = torch.optim.SGD(actor.parameters(), lr=1e-2)
    statistics = update(actor, optimizer, rollout, experience, cfg, 0, FLOAT)
    return torch.cat([p.detach().flatten() for p in actor.parameters()]), statistics


def test_kl_is_zero_before_the_first_update(world):
    _, rollout, _ = rollout_of(world, config())
    assert rollout.kl.abs().max() < 1e-5


def test_ratio_is_one_on_the_first_minibatch(world):
    cfg = config()
    actor, rollout, experience = rollout_of(world, cfg)
    _, statistics = minibatch_loss(actor, rollout, experience, torch.arange(12), cfg, FLOAT)
    assert statistics["val/ratio"].item() == pytest.approx(1, abs=1e-5)
    assert statistics["policy/clipfrac"] == 0


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_micro_batches_change_nothing(world, critic):
    whole, whole_statistics = stepped(world, config(), critic=critic)
    parts, part_statistics = stepped(world, config(micro_batch_size=1), critic=critic)
    assert torch.allclose(whole, parts, atol=1e-5)
    for name, value in whole_statistics.items():
        assert part_statistics[name] == pytest.approx(value, abs=1e-4), name


def test_padding_changes_nothing(world):
    one, _ = stepped(world, config(), pad=1)
    other, _ = stepped(world, config(), pad=7)
    assert torch.allclose(one, other, atol=1e-6)


def test_first_gradient_is_reinforce_on_response_tokens_alone(world):
    cfg = config(value_coef=0, entropy_coef=0)
    actor, rollout, experience = rollout_of(world, cfg)
    loss, _ = minibatch_loss(actor, rollout, experience, torch.arange(12), cfg, FLOAT)
    loss.backward()
    ours = {n: p.grad for n, p in actor.policy.named_parameters()}
    policy = copy.deepcopy(world[0])
    total = 0.0  # one sequence at a time, without padding, by the textbook
    for row, (prompt, response) in enumerate(zip(world[1], world[2], strict=True)):
        ids = torch.tensor([prompt + response.tokens])
        logprobs = policy(ids).logits[0].log_softmax(-1)
        for t, token in enumerate(response.tokens):
            total -= experience.advantages[row, t] * logprobs[len(prompt) + t - 1, token]
    (total / rollout.sequences.mask.sum()).backward()
    for name, parameter in policy.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-5), name


def test_one_temperature_everywhere(world):
    reference, prompts, responses, _ = world
    sequences = assemble(prompts, [r.tokens for r in responses], 1)
    logits, _ = response_logits(reference, sequences, 1.0)
    cool, _ = response_logits(reference, sequences, 0.5)
    assert torch.allclose(cool, logits / 0.5, atol=1e-5)
    _, rollout, _ = rollout_of(world, config(temperature=0.5))
    expected = token_logprobs(cool, sequences.responses) * sequences.mask
    assert torch.allclose(rollout.logprobs, expected, atol=1e-5)


def test_an_unfinished_response_pays_its_penalty(world):
    _, rollout, _ = rollout_of(world, config(unfinished_penalty=2.0))
    paid = rollout.raw_scores - rollout.scores
    assert paid.tolist() == [0.0, 2.0] * 6


def test_a_loss_that_is_not_finite_stops(world):
    cfg = config()
    actor, rollout, experience = rollout_of(world, cfg)
    torch.nn.init.constant_(actor.value_head.weight, float("nan"))
    optimizer = torch.optim.SGD(actor.parameters(), lr=1e-2)
    with pytest.raises(InputError, match="iteration 1, epoch 1"):
        update(actor, optimizer, rollout, experience, cfg, 0, FLOAT)


def test_every_prompt_is_used_once_in_a_pass():
    seen = [i for iteration in range(5) for i in batch_at(iteration, 8, 20, 3, "prompts")]
    assert sorted(seen[:20]) == sorted(seen[20:40]) == list(range(20))
    assert seen[:20] != seen[20:40]
    assert batch_at(2, 8, 20, 3, "prompts") == seen[16:24]


def test_learning_rate_falls_linearly_to_its_end():
    cfg = config(iterations=5, learning_rate=1.0, learning_rate_end=0.2)
    rates = [learning_rate_at(i, cfg) for i in range(5)]
    assert rates == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36])
