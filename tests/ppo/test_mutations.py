"""Mistakes that PPO implementations really make: each must fail an oracle."""

import pytest
import torch

from ppo import advantages, decoding, rollout, sequences
from tests.ppo import test_optimum, test_update


def exact_optimum(world):
    test_optimum.test_ppo_reaches_the_exact_optimum(seed=1, beta=0.5)


def centred_advantages(world):
    _, whole, experience = test_update.rollout_of(world, test_update.config())
    mean = advantages.masked_mean(experience.advantages, whole.sequences.mask)
    assert mean.abs() < 1e-6


def flipped_kl_sign(patch):
    right = rollout.kl_shaped_rewards
    patch.setattr(rollout, "kl_shaped_rewards", lambda s, p, q, m, beta: right(s, p, q, m, -beta))


def dropped_terminal_reward(patch):
    right = rollout.kl_shaped_rewards
    patch.setattr(
        rollout, "kl_shaped_rewards", lambda s, p, q, m, beta: right(0 * s, p, q, m, beta)
    )


def uncentred_advantages(patch):
    patch.setattr(rollout, "whiten", lambda v, mask: advantages.whiten(v, mask, shift_mean=False))


def mutated_part(patch, change):
    right = sequences.Sequences.part
    patch.setattr(decoding.Decoder, "_check", lambda decoder: None)  # it would find it first
    patch.setattr(sequences.Sequences, "part", lambda self, rows: change(right(self, rows)))


def mask_shifted_by_one(patch):
    """Tokens are read at the state after the one that chose them."""
    mutated_part(patch, lambda p: sequences.Part(p.input_ids, p.states + 1, p.tokens, p.places))


def advantage_of_the_next_token(patch):
    mutated_part(
        patch, lambda p: sequences.Part(p.input_ids, p.states, p.tokens, p.places.roll(-1))
    )


def a_prompt_token_in_the_loss(patch):
    """The last prompt token of the first row is learned too."""

    def change(part):
        before = part.states[:1] - 1
        return sequences.Part(
            part.input_ids,
            torch.cat([before, part.states]),
            torch.cat([part.input_ids.flatten()[before + 1], part.tokens]),
            torch.cat([part.places[:1], part.places]),
        )

    mutated_part(patch, change)


REINFORCE = test_update.test_first_gradient_is_reinforce_on_response_tokens_alone
RATIO = test_update.test_ratio_is_one_on_the_first_minibatch
WHOLE = test_update.test_the_whole_loss_is_that_of_the_definitions
CAUGHT = [
    (flipped_kl_sign, exact_optimum),
    (dropped_terminal_reward, exact_optimum),
    (mask_shifted_by_one, RATIO),
    (mask_shifted_by_one, REINFORCE),
    (advantage_of_the_next_token, REINFORCE),
    (advantage_of_the_next_token, exact_optimum),
    (uncentred_advantages, centred_advantages),
    (a_prompt_token_in_the_loss, RATIO),
    (a_prompt_token_in_the_loss, WHOLE),
]
NAMES = [f"{mutation.__name__}-{oracle.__name__}" for mutation, oracle in CAUGHT]


@pytest.mark.parametrize(("mutation", "oracle"), CAUGHT, ids=NAMES)
def test_a_mutation_fails_its_oracle(mutation, oracle, world, monkeypatch):
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        oracle(world)


def test_without_a_mutation_the_oracles_hold(world):
    for oracle in {oracle for _, oracle in CAUGHT} - {exact_optimum}:  # that one is test_optimum's
        oracle(world)
