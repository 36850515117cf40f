"""What a whole run of PPO promises beside learning: budget, divergence, warnings, samples."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from labeling.errors import InputError
from labeling.records import Completion, Prompt, read_prompts
from ppo import loop
from ppo.config import PPO, Generation
from ppo.evaluate import mean_kl
from ppo.generation import Response, Sampler, encode_prompts
from ppo.health import warnings_of
from ppo.order import batch_at, counter_seed
from ppo.policy import load_policy
from ppo.train import train_ppo
from reward.encoding import load_tokenizer
from reward.model import Normalization, RewardModel, from_policy

REWARD = """
def score(prompts, completions):
    return [float(c.count("o")) for c in completions]
"""
CPU, FLOAT = torch.device("cpu"), torch.float32


def config(**changes):
    given = {
        "iterations": 4,
        "rollout_batch_size": 16,
        "epochs": 2,
        "minibatches": 2,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "learning_rate_schedule": "constant",
        "unfinished_penalty": None,
    }
    return PPO(**given | changes)


@pytest.fixture
def train(tmp_path, policy, prompts, folder):
    """Runs PPO in a new folder, by name; returns the folder."""
    (tmp_path / "reward.py").write_text(REWARD)

    def run(name, cfg, **rewards):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        rewards = rewards or {"reward_function": f"{tmp_path}/reward.py:score"}
        train_ppo(cfg, policy, prompts, out, **rewards)
        return out

    return run


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def kl_of_saved(out, policy, prompts, cfg, updates):
    """KL of `out/policy` to the initial policy, on the rollout that follows so many updates."""
    initial, saved = load_policy(policy), load_policy(str(out / "policy"))
    tokenizer = load_tokenizer(policy)
    _, tokens = encode_prompts(
        tokenizer, read_prompts(prompts, "train"), initial, cfg.max_new_tokens
    )
    chosen = batch_at(updates, cfg.rollout_batch_size, len(tokens), cfg.seed, "prompts")
    asked = [tokens[i] for i in chosen]
    sampler = Sampler.of(saved, tokenizer, Generation(max_new_tokens=cfg.max_new_tokens))
    drawn, completions = sampler.draw(asked, counter_seed(cfg.seed, updates, "rollout"))
    responses = [Response(t, c) for t, c in zip(drawn.tokens, completions, strict=True)]
    return mean_kl(saved, initial, asked, responses, FLOAT)


@pytest.mark.parametrize("iterations", [3, 6])  # passed by the last update, or on the way
def test_a_kl_budget_ends_with_the_last_policy_within_it(
    train, policy, prompts, caplog, iterations
):
    free = [row["objective/kl"] for row in rows_of(train("free", config()) / "metrics.jsonl")]
    assert free[0] < free[1] < free[2] < free[3]
    cfg = config(iterations=iterations, kl_budget=(free[2] + free[3]) / 2)
    caplog.clear()
    out = train("budget", cfg)
    said = [r.message for r in caplog.records if "ppo.kl_budget" in r.message]
    assert said == [
        f"the KL reached {free[3]:.2f} nats after iteration 3, over ppo.kl_budget "
        f"{cfg.kl_budget:.2f}: PPO ends with the policy of one iteration before"
    ]
    kl = [row["objective/kl"] for row in rows_of(out / "metrics.jsonl")]
    assert kl == free[:3]
    # The policy that drew the last row's rollout is the one that is left, measured by other code.
    measured = kl_of_saved(out, policy, prompts, cfg, 2)
    assert measured == pytest.approx(free[2], abs=1e-3)
    assert measured <= cfg.kl_budget


def test_the_last_iterations_samples_are_there_when_the_budget_ends_the_run(train):
    free = rows_of(train("free", config(samples_every=1)) / "samples.jsonl")
    kl = [row["objective/kl"] for row in rows_of(train("free", config()) / "metrics.jsonl")]
    out = train("budget", config(kl_budget=(kl[2] + kl[3]) / 2, samples_every=5, iterations=6))
    rows = rows_of(out / "samples.jsonl")
    assert [row["iteration"] for row in rows] == [1] * 4 + [3] * 4
    assert rows == [row for row in free if row["iteration"] in (1, 3)]


def test_a_run_within_its_kl_budget_keeps_its_last_update(train, caplog):
    out = train("budget", config(kl_budget=1e6))
    free = train("free", config())
    assert not [r for r in caplog.records if "ppo.kl_budget" in r.message]
    saved = [(f / "policy" / "model.safetensors").read_bytes() for f in (out, free)]
    assert saved[0] == saved[1]


def test_a_run_that_diverges_says_so_in_one_line_and_keeps_the_batch(train, tmp_path):
    with pytest.raises(InputError, match=r"ppo\.learning_rate") as caught:
        train("out", config(learning_rate=1e30))
    folder = tmp_path / "out" / "diverged"
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder) in said
    error = json.loads((folder / "error.json").read_text())
    batch = load_file(folder / "batch.safetensors")
    assert said.startswith(error["error"])
    assert len(error["responses"]) == len(error["prompt_lengths"]) == 16
    assert 0 < len(error["rows"]) <= 8
    assert set(error["rows"]) <= set(range(16))
    assert set(batch) == {
        *("input_ids", "mask", "logprobs", "ref_logprobs", "values"),
        *("raw_scores", "scores", "rewards", "advantages", "returns"),
    }
    assert batch["mask"].shape == batch["logprobs"].shape == batch["advantages"].shape
    assert batch["raw_scores"].shape == (16,)
    longest = max(
        n + int(m) for n, m in zip(error["prompt_lengths"], batch["mask"].sum(1), strict=True)
    )
    assert batch["input_ids"].shape == (16, longest)
    assert not (tmp_path / "out" / "policy").exists()


@pytest.mark.parametrize(
    ("broken_in", "said"),
    [
        (2, "the KL of 16 of 16 responses is no finite number in iteration 3"),
        (4, "PPO's last step left a policy or value that is not finite"),
    ],
)
def test_a_kl_budget_hides_no_divergence(train, tmp_path, monkeypatch, broken_in, said):
    right = loop.update

    def breaks(engine, *args):
        row = right(engine, *args)
        if args[4] + 1 == broken_in:
            with torch.no_grad():
                engine.actor.policy.lm_head.weight[3] = float("nan")
        return row

    monkeypatch.setattr(loop, "update", breaks)
    with pytest.raises(InputError, match=said):
        train("out", config(kl_budget=1e6))
    assert load_file(tmp_path / "out" / "diverged" / "batch.safetensors")
    assert not (tmp_path / "out" / "policy").exists()


def test_what_the_very_last_step_broke_is_not_saved(train, tmp_path):
    with pytest.raises(InputError, match=r"last step left.*lower ppo\.learning_rate.*diverged"):
        train("out", config(iterations=1, epochs=1, minibatches=1, learning_rate=1e30))
    assert json.loads((tmp_path / "out" / "diverged" / "error.json").read_text())["rows"]
    assert not (tmp_path / "out" / "policy").exists()
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_reward_model_that_gives_no_numbers_leaves_its_batch(train, tmp_path, policy):
    model, tokenizer = from_policy(policy, 1)
    torch.nn.init.constant_(model.score.weight, 3e38)  # finite, unlike what it gives
    (tmp_path / "reward_model").mkdir()
    RewardModel(model, tokenizer, Normalization(), CPU).save(tmp_path / "reward_model")
    with pytest.raises(InputError, match="the reward model is broken; train it anew") as caught:
        train("out", config(), reward_model=tmp_path / "reward_model")
    folder = tmp_path / "out" / "diverged"
    assert str(folder) in str(caught.value)
    broken = ~load_file(folder / "batch.safetensors")["raw_scores"].isfinite()
    rows = json.loads((folder / "error.json").read_text())["rows"]
    assert broken.nonzero().flatten().tolist() == rows != []


def test_the_kl_controller_waits_for_the_critic(train):
    cfg = config(iterations=5, critic_warmup=3, kl_coef=0.1, kl_target=1.0, kl_horizon=100)
    coefficients = [r["objective/kl_coef"] for r in rows_of(train("out", cfg) / "metrics.jsonl")]
    assert coefficients[:4] == [0.1] * 4
    assert coefficients[4] < 0.1, "no drift yet: less pressure"


def test_a_nan_is_found_in_the_batch_by_the_code_of_the_docs(train, tmp_path, monkeypatch, capsys):
    right = loop.experience_of

    def broken(*args):
        experience = right(*args)
        experience.advantages[5, 0] = float("nan")
        return experience

    monkeypatch.setattr(loop, "experience_of", broken)
    with pytest.raises(InputError, match="gradient is nan in iteration 1, epoch 1"):
        train("out", config())
    page = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    *tensors, minibatch = capsys.readouterr().out.splitlines()
    assert [line for line in tensors if not line.endswith("[]")] == [
        "advantages rows that are not finite: [5]"
    ]
    assert 5 in json.loads(minibatch.removeprefix("rows of the minibatch: "))


def test_a_collapse_is_warned_of_once(train, caplog):
    cfg = config(iterations=16, learning_rate=5e-2, kl_coef=0.0)
    rows = rows_of(train("out", cfg) / "metrics.jsonl")
    signs = [set(warnings_of(rows[: i + 1], cfg)) for i in range(len(rows))]
    assert sum("entropy" in found for found in signs) > 1
    warned = [
        r.message for r in caplog.records if r.name == "ppo.loop" and r.levelname == "WARNING"
    ]
    assert sum("the entropy fell from" in line for line in warned) == 1
    assert len(warned) == len(set().union(*signs))


def test_samples_are_written_every_so_often_and_at_the_end(train):
    rows = rows_of(train("out", config(iterations=6, samples_every=3)) / "samples.jsonl")
    assert [row["iteration"] for row in rows] == [1] * 4 + [4] * 4 + [6] * 4
    assert all(row["score"] == row["response"].count("o") for row in rows)


def test_tensorboard_has_the_rows_of_metrics_under_names_that_the_docs_explain(train):
    out = train("out", config(iterations=3))
    rows = rows_of(out / "metrics.jsonl")
    board = EventAccumulator(str(out / "tensorboard"), {"scalars": 0})
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {
        *("objective/kl", "objective/entropy", "objective/scores", "objective/rlhf_reward"),
        *("policy/approxkl", "policy/clipfrac", "loss/policy", "loss/value"),
        *("val/clipfrac", "val/ratio", "val/explained_variance", "lr", "episode"),
    } <= tags
    for tag in (tag for tag in tags if tag in rows[0]):
        shown = [(e.step, e.value) for e in board.Scalars(tag)]
        assert [step for step, _ in shown] == [1, 2, 3]
        assert [value for _, value in shown] == pytest.approx([r[tag] for r in rows], rel=1e-5)
    page = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()
    assert all(f"`{name}`" in page for name in rows[0] if name != "iteration")


def test_a_run_that_goes_on_shows_each_step_once(train, tmp_path, monkeypatch):
    cfg, right = config(iterations=5, checkpoint_every=2), loop.update

    def breaks(*args):
        if args[5] == 3:
            raise KeyboardInterrupt
        return right(*args)

    monkeypatch.setattr(loop, "update", breaks)
    with pytest.raises(KeyboardInterrupt):
        train("out", cfg)
    assert [r["iteration"] for r in rows_of(tmp_path / "out" / "metrics.jsonl")] == [1, 2, 3]
    monkeypatch.setattr(loop, "update", right)
    out = train("out", cfg)
    for file in ("metrics.jsonl", "timings.jsonl"):
        assert [r["iteration"] for r in rows_of(out / file)] == [1, 2, 3, 4, 5]
    board = EventAccumulator(str(out / "tensorboard"), {"scalars": 0})
    board.Reload()
    assert [e.step for e in board.Scalars("objective/kl")] == [1, 2, 3, 4, 5]


def test_reward_model_and_function_are_a_weighted_sum(train, tmp_path, policy):
    model, tokenizer = from_policy(policy, 1)
    folder = tmp_path / "reward_model"
    folder.mkdir()
    RewardModel(model, tokenizer, Normalization(0.3, 2.0), CPU).save(folder)
    out = train(
        "out",
        config(iterations=2, samples_every=1, reward_function_weight=-0.5),
        reward_model=folder,
        reward_function=f"{tmp_path}/reward.py:score",
    )
    judge = RewardModel.load(folder, CPU, FLOAT)
    rows = rows_of(out / "samples.jsonl")
    by_model = judge.scores(
        [Prompt(text=row["prompt"]) for row in rows],
        [Completion(row["response"], finished=row["finished"]) for row in rows],
    )
    by_function = [row["response"].count("o") for row in rows]
    assert any(by_function)
    expected = [m - 0.5 * f for m, f in zip(by_model, by_function, strict=True)]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
