"""Oracles through the real rollout, advantage and update code."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from labeling.records import Completion
from ppo.config import PPO, Generation
from ppo.decoding import Decoder, Drawn
from ppo.losses import entropy, policy_loss, value_loss
from ppo.order import batch_at
from ppo.policy import ActorCritic, separate_critic
from ppo.rewards import RunningMoments, shape_scores
from ppo.rollout import Engine, experience_of, read_rollout
from ppo.update import Diverged, Statistics, backward, minibatches, update

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


def engine_of(reference, critic="shared"):
    torch.manual_seed(0)
    policy = copy.deepcopy(reference)
    actor = ActorCritic(policy, separate_critic(policy) if critic == "separate" else None)
    torch.nn.init.normal_(actor.value_head.weight)
    return Engine.of(actor, reference, FLOAT)


def rollout_of(world, cfg, critic="shared"):
    reference, prompts, responses, raw = world
    engine = engine_of(reference, critic)
    drawn = captured(engine, prompts, responses, cfg.temperature)
    completions = [Completion(str(i), finished=i % 2 == 0) for i in range(len(prompts))]
    scores = shape_scores(raw, [c.finished for c in completions], cfg, RunningMoments())
    rollout = read_rollout(engine, cfg, prompts, drawn, completions, scores)
    return engine, rollout, experience_of(rollout, cfg, 0.05)


def captured(engine, prompts, responses, temperature):
    """What the decoder captures, for responses that are given: one row at a time, no padding."""
    shape = len(prompts), max(map(len, responses))
    logprobs, entropies, values = torch.zeros(3, *shape)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with torch.no_grad():
            output = engine.actor.policy(
                torch.tensor([prompt + response]), output_hidden_states=True
            )
        states = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        log_p = (output.logits[0, states] / temperature).log_softmax(-1)
        logprobs[row, : len(response)] = log_p[range(len(response)), response]
        entropies[row, : len(response)] = -(log_p.exp() * log_p).sum(-1)
        hidden = output.hidden_states[-1][0, states]
        values[row, : len(response)] = engine.actor.value_of(hidden).detach()
    shared = engine.actor.critic is None
    return Drawn(responses, logprobs, entropies, values if shared else None)


def stepped(world, cfg, critic="shared"):
    engine, rollout, experience = rollout_of(world, cfg, critic)
    optimizer = torch.optim.SGD(engine.actor.parameters(), lr=1e-2)
    statistics = update(engine, optimizer, rollout, experience, cfg, 0)
    parameters = torch.cat([p.detach().flatten() for p in engine.actor.parameters()])
    return parameters, statistics


def test_kl_is_zero_before_the_first_update(world):
    _, rollout, _ = rollout_of(world, config())
    assert rollout.kl.abs().max() < 1e-5


def first_minibatch(world, cfg):
    engine, rollout, experience = rollout_of(world, cfg)
    statistics = Statistics()
    rows = range(12)
    for part in rollout.sequences.parts(64, rows):
        backward(
            engine, rollout, experience, part, rollout.sequences.valid(rows), cfg, 0, statistics
        )
    return engine, rollout, experience, statistics.take()


def test_ratio_is_one_on_the_first_minibatch(world):
    _, _, _, statistics = first_minibatch(world, config())
    assert statistics["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert statistics["policy/clipfrac"] == 0
    assert abs(statistics["policy/approxkl"]) < 1e-9


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("budget", [1, 13, 30, 100])
def test_micro_batches_change_nothing(world, critic, budget):
    whole, whole_statistics = stepped(world, config(micro_batch_tokens=10_000), critic)
    parts, part_statistics = stepped(world, config(micro_batch_tokens=budget), critic)
    assert torch.allclose(whole, parts, atol=1e-5)
    for name, value in whole_statistics.items():
        assert part_statistics[name] == pytest.approx(value, abs=1e-5), name


def test_first_gradient_is_reinforce_on_response_tokens_alone(world):
    cfg = config(value_coef=0, entropy_coef=0)
    engine, rollout, experience, _ = first_minibatch(world, cfg)
    ours = {n: p.grad for n, p in engine.actor.policy.named_parameters()}
    policy = copy.deepcopy(world[0])
    total = 0.0  # one sequence at a time, without padding, by the textbook
    for row, (prompt, response) in enumerate(zip(world[1], world[2], strict=True)):
        ids = torch.tensor([prompt + response])
        logprobs = policy(ids).logits[0].log_softmax(-1)
        for t, token in enumerate(response):
            total -= experience.advantages[row, t] * logprobs[len(prompt) + t - 1, token]
    (total / rollout.sequences.mask.sum()).backward()
    for name, parameter in policy.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-5), name


def test_the_whole_loss_is_that_of_the_definitions(world):
    """Losses, statistics and gradients of a later minibatch, against (B, T) tensors and autograd
    on whole logits."""
    cfg = config(entropy_coef=0.1, temperature=0.8)
    engine, rollout, experience = rollout_of(world, cfg)
    with torch.no_grad():
        for p in engine.actor.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    plain = copy.deepcopy(engine.actor)
    statistics = Statistics()
    for part in rollout.sequences.parts(40):
        valid = int(rollout.sequences.mask.sum())
        backward(engine, rollout, experience, part, valid, cfg, 0, statistics)
    ours = statistics.take()

    mask = rollout.sequences.mask
    output = plain.policy(rollout.sequences.input_ids, output_hidden_states=True)
    steps = torch.arange(mask.shape[1])
    starts = torch.tensor(rollout.sequences.prompt_lengths)[:, None] - 1
    at = (starts + steps).clamp(max=output.logits.shape[1] - 1)
    rows = torch.arange(len(at))[:, None]
    logits = output.logits[rows, at] / 0.8
    chosen = rollout.sequences.responses[..., None]
    logprobs = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
    policy = policy_loss(logprobs, rollout.logprobs, experience.advantages, mask, 0.2)
    values = plain.value_of(output.hidden_states[-1][rows, at])
    value = value_loss(values, rollout.values, experience.returns, mask, 0.2)
    bonus = entropy(logits, mask)
    (policy.loss + 0.5 * value.loss - 0.1 * bonus).backward()

    assert policy.clip_fraction > 0
    for name, expected in (
        ("loss/policy", policy.loss),
        ("loss/value", value.loss),
        ("loss/entropy", bonus),
        ("policy/clipfrac", policy.clip_fraction),
        ("policy/approxkl", policy.approx_kl),
        ("val/ratio", policy.ratio),
        ("val/clipfrac", value.clip_fraction),
    ):
        assert ours[name] == pytest.approx(expected.item(), abs=1e-5), name
    for (name, p), q in zip(engine.actor.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-5), name


def test_a_clipped_token_has_no_gradient(world):
    cfg = config(value_coef=0, entropy_coef=0, whiten_advantages=False)
    engine, rollout, experience = rollout_of(world, cfg)
    rollout.logprobs.sub_(1.0)  # the ratio is e: every token of advantage > 0 is clipped
    experience.advantages.fill_(1.0)
    statistics = Statistics()
    for part in rollout.sequences.parts(1000):
        backward(engine, rollout, experience, part, 1, cfg, 0, statistics)
    assert all(p.grad is None or not p.grad.any() for p in engine.actor.policy.parameters())


def test_one_temperature_everywhere(world):
    cfg = config(temperature=0.5)
    _, rollout, _, statistics = first_minibatch(world, cfg)
    assert rollout.kl.abs().max() < 1e-5  # the reference divides by it too
    assert statistics["val/ratio"] == pytest.approx(1, abs=1e-5)
    drawn = Decoder(world[0], frozenset(), Generation(max_new_tokens=9, temperature=0.5))
    logprobs = drawn.draw(world[1], 1, [len(r) for r in world[2]])
    again = captured(engine_of(world[0]), world[1], logprobs.tokens, 0.5)
    assert torch.allclose(again.logprobs, logprobs.logprobs, atol=1e-5)
    assert torch.allclose(again.entropies, logprobs.entropies, atol=1e-5)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_while_the_critic_warms_up_the_policy_stays(world, critic):
    cfg = config(critic_warmup=2, epochs=2)
    engine, rollout, experience = rollout_of(world, cfg, critic)
    before = {n: p.clone() for n, p in engine.actor.named_parameters()}
    optimizer = torch.optim.SGD(engine.actor.parameters(), lr=1e-2)
    update(engine, optimizer, rollout, experience, cfg, 1)
    moved = {n for n, p in engine.actor.named_parameters() if not torch.equal(p, before[n])}
    assert "value_head.weight" in moved
    assert not any(name.startswith("policy.") for name in moved)
    update(engine, optimizer, rollout, experience, cfg, 2)
    assert any(
        not torch.equal(p, before[n])
        for n, p in engine.actor.named_parameters()
        if n.startswith("policy.")
    )


def test_an_update_that_goes_too_far_stops_early(world):
    cfg = config(epochs=8, learning_rate=1.0)
    engine, rollout, experience = rollout_of(world, cfg)
    optimizer = torch.optim.SGD(engine.actor.parameters(), lr=2.0)
    cfg = cfg.model_copy(update={"kl_early_stop": 0.01})
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    statistics = update(engine, optimizer, rollout, experience, cfg, 0)
    assert 1 < statistics["policy/minibatches"] < 24
    assert len(steps) == statistics["policy/minibatches"] - 1, "the last one is not taken"


class Waits(TorchDispatchMode):
    """Counts how often a number of a tensor is asked for, for which a GPU would be waited."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_an_update_waits_for_no_number_but_its_minibatches_statistics(world, critic):
    cfg = config(micro_batch_tokens=30)
    engine, rollout, experience = rollout_of(world, cfg, critic)
    optimizer = torch.optim.SGD(engine.actor.parameters(), lr=1e-2)
    with Waits() as waits:
        update(engine, optimizer, rollout, experience, cfg, 0)
    assert waits.count == 0  # those come in one list, not number by number


@pytest.mark.parametrize(("pieces", "tokens", "off"), [(1, None, 1e-5), (4, 40, 0.02)])
def test_in_bfloat16_the_ratio_is_one_too(world, pieces, tokens, off):
    """What was captured while drawing is rounded in another way (here: off by a tenth, as large
    models may be), and not taken. Micro-batches of other rows than the rollout's round a little
    differently too."""
    reference, prompts, _, raw = world
    cfg = config(minibatches=pieces, micro_batch_tokens=tokens, whiten_rewards=True)
    policy = copy.deepcopy(reference)
    engine = Engine.of(ActorCritic(policy), reference, torch.bfloat16)
    drawn = Decoder(
        policy, frozenset(), Generation(max_new_tokens=9), torch.bfloat16, engine.actor.value_of
    ).draw(prompts, 1)
    drawn = replace(drawn, logprobs=drawn.logprobs + 0.1)
    completions = [Completion("")] * len(prompts)
    scores = shape_scores(raw, [True] * len(prompts), cfg, RunningMoments())
    rollout = read_rollout(engine, cfg, prompts, drawn, completions, scores)
    experience = experience_of(rollout, cfg, 0.05)
    optimizer = torch.optim.SGD(engine.actor.parameters(), lr=0.0)  # every minibatch is the first
    statistics = update(engine, optimizer, rollout, experience, cfg, 0)
    assert statistics["val/ratio"] == pytest.approx(1, abs=off)
    assert statistics["policy/approxkl"] <= off**2 / 2
    assert rollout.kl.abs().max() < 1e-5


def test_whitened_rewards_have_variance_one_and_keep_their_mean(world):
    _, rollout, plain = rollout_of(world, config())
    _, _, whitened = rollout_of(world, config(whiten_rewards=True))
    valid = rollout.sequences.mask.bool()
    before, after = plain.rewards[valid], whitened.rewards[valid]
    assert after.std().item() == pytest.approx(1, abs=1e-4)
    assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-5)
    assert before.std().item() != pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("rows", "pieces"), [(12, 5), (10, 4), (16, 12), (128, 48)])
def test_every_epoch_has_as_many_minibatches_as_asked(rows, pieces):
    cfg = PPO(rollout_batch_size=rows, minibatches=pieces, epochs=2)
    chosen = minibatches(rows, cfg, iteration=3)
    sizes = [len(piece) for piece in chosen]
    assert len(chosen) == 2 * pieces
    assert max(sizes) - min(sizes) <= 1
    assert sorted(row for piece in chosen[:pieces] for row in piece) == list(range(rows))
    assert chosen[:pieces] != chosen[pieces:]


def test_an_unfinished_response_pays_its_penalty(world):
    _, rollout, _ = rollout_of(world, config(unfinished_penalty=2.0))
    paid = rollout.raw_scores - rollout.scores
    assert paid.tolist() == [0.0, 2.0] * 6


def test_a_gradient_that_is_not_finite_stops_before_its_step(world):
    cfg = config()
    engine, rollout, experience = rollout_of(world, cfg)
    experience.returns[3, 0] = float("nan")
    before = {n: p.clone() for n, p in engine.actor.named_parameters()}
    optimizer = torch.optim.SGD(engine.actor.parameters(), lr=0.0)
    with pytest.raises(Diverged, match="iteration 1, epoch 1") as caught:
        update(engine, optimizer, rollout, experience, cfg, 0)
    assert 3 in caught.value.rows
    assert all(torch.equal(p, before[n]) for n, p in engine.actor.named_parameters())


def test_every_prompt_is_used_once_in_a_pass():
    seen = [i for iteration in range(5) for i in batch_at(iteration, 8, 20, 3, "prompts")]
    assert sorted(seen[:20]) == sorted(seen[20:40]) == list(range(20))
    assert seen[:20] != seen[20:40]
    assert batch_at(2, 8, 20, 3, "prompts") == seen[16:24]
