"""A critic that starts as the reward model."""

import pytest
import torch

from labeling.errors import InputError
from labeling.records import Completion, Prompt
from ppo.policy import ActorCritic, critic_from_reward_model, load_policy
from ppo.sequences import assemble
from reward.encoding import completion_ids, load_tokenizer, prompt_ids
from reward.model import Normalization, RewardModel, from_policy
from tests import tiny


def test_its_value_at_the_end_is_the_reward_models_score(tmp_path):
    folder = str(tiny.save(tmp_path / "policy"))
    model, tokenizer = from_policy(folder, 1)
    judge = RewardModel(model, tokenizer, Normalization(0.4, 1.7), torch.device("cpu"))
    policy = load_policy(folder)
    critic, head = critic_from_reward_model(judge, load_tokenizer(folder))
    actor = ActorCritic(policy, critic)
    actor.value_head = head
    prompt, completion = Prompt(text="hello desk"), Completion("order now", finished=True)
    read = prompt_ids(tokenizer, prompt), completion_ids(tokenizer, prompt, completion)
    # A value is of the state before a token: one more token reads the state after the last.
    part = assemble([read[0]], [[*read[1], 5]]).part([0])
    values = actor.values(part, None)
    (score,) = judge.scores([prompt], [completion])
    assert values[-1].item() == pytest.approx(score, abs=1e-5)
    assert all(p.requires_grad for p in actor.parameters())
    assert critic is not judge.model.base_model


def test_a_reward_model_of_another_tokenizer_is_refused(tmp_path):
    model, tokenizer = from_policy(str(tiny.save(tmp_path / "policy")), 1)
    judge = RewardModel(model, tokenizer, Normalization(), torch.device("cpu"))
    with pytest.raises(InputError, match="the policy's own tokenizer"):
        critic_from_reward_model(judge, tiny.chat_tokenizer("chatml"))
