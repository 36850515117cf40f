import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from labeling.errors import InputError
from labeling.records import read_prompts
from ppo.config import PPO, Generation
from ppo.generation import Sampler
from ppo.train import train_ppo
from reward.encoding import prompt_ids
from tests import tiny

REWARD = """
WORDS = set("hello the support desk answers your question about order now please thanks".split())

def score(prompts, completions):
    return [float(sum(w in WORDS for w in c.split())) for c in completions]
"""
CONFIG = PPO(
    iterations=12,
    rollout_batch_size=32,
    epochs=2,
    minibatches=2,
    max_new_tokens=6,
    learning_rate=1e-2,
    kl_coef=0.02,
    unfinished_penalty=None,
)


@pytest.fixture
def reward(tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    return f"{tmp_path}/reward.py:score"


def test_ppo_learns_what_the_reward_asks_for(policy, prompts, folder, reward):
    out = folder("ppo")
    metrics = train_ppo(CONFIG, policy, prompts, out, reward_function=reward)
    assert metrics.last_score > metrics.first_score + 1
    tokens = AutoTokenizer.from_pretrained(out / "policy")
    model = AutoModelForCausalLM.from_pretrained(out / "policy")
    ids = [prompt_ids(tokens, p) for p in read_prompts(prompts, "evaluation")] * 4
    drawn = Sampler.of(model.eval(), tokens, Generation(max_new_tokens=6)).draw(ids, 0)[1]
    words = sum(w in tiny.WORDS for c in drawn for w in c.text.split()) / len(drawn)
    assert words > metrics.first_score + 1
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_same_seed_gives_the_same_bytes(policy, prompts, folder, reward, critic):
    config = CONFIG.model_copy(update={"iterations": 2, "critic": critic})
    for name in ("one", "two"):
        torch.manual_seed(hash(name) % 1000)  # whatever the process did before
        train_ppo(config, policy, prompts, folder(name), reward_function=reward)
    one, two = folder("x").parent / "one", folder("y").parent / "two"
    for file in ("metrics.jsonl", "policy/model.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_the_adaptive_coefficient_moves_towards_its_target(policy, prompts, folder, reward):
    config = CONFIG.model_copy(
        update={"iterations": 4, "kl_coef": 0.5, "kl_target": 1e-3, "kl_horizon": 100}
    )
    out = folder("ppo")
    train_ppo(config, policy, prompts, out, reward_function=reward)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    coefficients = [row["objective/kl_coef"] for row in rows]
    assert coefficients[1] < coefficients[0]  # no drift yet: less pressure
    assert coefficients[3] > coefficients[2]  # too far: more


def test_the_kl_is_measured_from_the_reference_that_is_given(
    policy, prompts, folder, reward, tmp_path
):
    config = CONFIG.model_copy(update={"iterations": 1})
    other = str(tiny.save(tmp_path / "other", seed=3))

    def first_kl(name, **given):
        out = folder(name)
        train_ppo(config, policy, prompts, out, reward_function=reward, **given)
        row = json.loads((out / "metrics.jsonl").read_text())
        return row["objective/kl"], (out / "policy/model.safetensors").read_bytes()

    alone, itself = first_kl("alone"), first_kl("itself", reference=policy)
    assert itself == alone
    apart = first_kl("apart", reference=other)
    assert apart[0] > 1
    assert apart[1] != alone[1]


def test_a_reference_of_other_tokens_is_refused(policy, prompts, folder, reward, tmp_path):
    tokens = tiny.chat_tokenizer("chatml")
    for made in (tokens, tiny.policy(tokens)):
        made.save_pretrained(tmp_path / "other")
    given = {"reward_function": reward, "reference": str(tmp_path / "other")}
    with pytest.raises(InputError, match="another vocabulary"):
        train_ppo(CONFIG, policy, prompts, folder("ppo"), **given)


def test_ppo_without_a_reward_is_refused(policy, prompts, folder):
    with pytest.raises(InputError, match="reward model or a reward function"):
        train_ppo(CONFIG, policy, prompts, folder("ppo"))
