"""The SFT term of PPO's loss."""

import copy

import pytest
import torch

from labeling.errors import InputError
from labeling.records import Prompt, write_prompts
from ppo.config import PPO
from ppo.demonstrations import Encoded
from ppo.imitation import Imitation
from ppo.policy import ActorCritic
from ppo.rollout import Engine
from ppo.train import train_ppo
from ppo.update import update
from tests import tiny
from tests.ppo.test_update import config, rollout_of

EXAMPLES = [
    Encoded(prompt=[3 + i % 4] * (1 + i % 3), completion=[5, 6 + i % 2] * (1 + i % 2), cut=False)
    for i in range(6)
]


def gradient(policy, examples, **changes):
    cfg = PPO(sft_coef=0.5, sft_batch_size=len(examples), **changes)
    policy.zero_grad()
    engine = Engine.of(ActorCritic(policy), policy, torch.float32)
    loss = Imitation(examples, cfg).backward(engine, 0)
    return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_it_is_the_cross_entropy_of_completion_tokens_alone():
    policy = tiny.policy(tiny.tokenizer(), std=0.3)
    loss, found = gradient(policy, EXAMPLES)

    policy.zero_grad()
    losses = []
    for example in EXAMPLES:  # one by one: no padding at all
        ids = torch.tensor([example.prompt + example.completion])
        logprobs = policy(ids).logits[0, :-1].log_softmax(-1)
        start = len(example.prompt)
        losses += [-logprobs[i - 1, ids[0, i]] for i in range(start, ids.shape[1])]
    expected = torch.stack(losses).mean()
    (0.5 * expected).backward()

    assert loss == pytest.approx(expected.item(), rel=1e-5)
    direct = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(found, direct, rtol=1e-4, atol=1e-6)


def test_the_size_of_micro_batches_changes_nothing():
    policy = tiny.policy(tiny.tokenizer(), std=0.3)
    whole, split = gradient(policy, EXAMPLES), gradient(policy, EXAMPLES, micro_batch_tokens=9)
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(split[1], whole[1], rtol=1e-4, atol=1e-6)


def test_an_update_with_it_makes_demonstrations_likelier(world):
    cfg = config(sft_coef=1.0, sft_batch_size=6, epochs=4)
    engine, rollout, experience = rollout_of(world, cfg)
    imitation = Imitation(EXAMPLES, cfg)

    def after(term: Imitation | None) -> float:
        ours = Engine.of(copy.deepcopy(engine.actor), engine.reference, torch.float32)
        optimizer = torch.optim.SGD(ours.actor.parameters(), lr=1e-1)
        update(ours, optimizer, rollout, experience, cfg, 0, term)
        return imitation.backward(ours, 0).item()

    assert after(imitation) < after(None) - 0.01


@pytest.fixture
def train(tmp_path):
    """PPO of a tiny policy with this config, in `tmp_path`."""
    tiny.save(tmp_path / "policy")
    prompts, rewards = tmp_path / "prompts.parquet", tmp_path / "rewards.py"
    write_prompts([Prompt(text="hello")], prompts)
    rewards.write_text("def score(prompts, completions):\n    return [0.0] * len(prompts)\n")
    function = f"{rewards}:score"
    return lambda config, **given: train_ppo(
        config, str(tmp_path / "policy"), prompts, tmp_path, reward_function=function, **given
    )


def test_without_demonstrations_it_is_refused(train):
    with pytest.raises(InputError, match=r"sft\.data"):
        train(PPO(sft_coef=0.1))


def test_the_limit_that_leaves_no_demonstration_is_named(train, tmp_path):
    data = tmp_path / "sft.jsonl"
    data.write_text('{"prompt": "hello the desk", "completion": "thanks"}')
    with pytest.raises(InputError, match=r"3 tokens or more \(ppo\.sft_max_length and"):
        train(PPO(sft_coef=0.1, sft_max_length=3, max_new_tokens=8), demonstrations=str(data))
