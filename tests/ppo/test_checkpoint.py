"""A killed run goes on, and ends with the bytes of one that nobody touched."""

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from labeling.errors import InputError
from ppo import checkpoint, loop
from ppo.checkpoint import Checkpoints
from ppo.config import PPO
from ppo.train import train_ppo
from tests import tiny

REWARD = """
def score(prompts, completions):
    return [float(len(c) % 7) for c in completions]
"""
SAME = ("metrics.jsonl", "samples.jsonl", "policy/model.safetensors", "value.safetensors")
BASE = {
    "iterations": 30,
    "rollout_batch_size": 16,
    "epochs": 2,
    "minibatches": 2,
    "max_new_tokens": 6,
    "learning_rate": 3e-3,
    "checkpoint_every": 3,
    "samples_every": 2,
}
VARIANTS = {
    "shared": {"kl_target": 0.5, "kl_horizon": 100, "normalize_scores": "running"},
    "separate": {"critic": "separate", "critic_warmup": 5, "kl_budget": 50.0, "score_clip": 2.0},
}


@pytest.fixture
def reward(tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    return f"{tmp_path}/reward.py:score"


def begin(config, policy, prompts, out, reward):
    """A process of its own that makes the run."""
    # Forked: what takes seconds is imported already.
    process = multiprocessing.get_context("fork").Process(
        target=train_ppo, args=(config, policy, prompts, out), kwargs={"reward_function": reward}
    )
    process.start()
    return process


def contents(out):
    return {name: (out / name).read_bytes() for name in SAME}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_killed_at_any_moment_it_ends_with_the_same_bytes(variant, policy, prompts, folder, reward):
    config = PPO(**(BASE | VARIANTS[variant]))
    started = time.monotonic()
    train_ppo(config, policy, prompts, folder("whole"), reward_function=reward)
    whole, seconds = folder("x").parent / "whole", time.monotonic() - started

    chance = random.Random(variant)
    out = folder("killed")
    killed_at = []
    for _ in range(8):
        process = begin(config, policy, prompts, out, reward)
        time.sleep(chance.uniform(0.1, 0.6) * seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if (out / "value.safetensors").exists():
            break
        killed_at.append((out / "metrics.jsonl").read_text().count("\n"))
    else:
        last = begin(config, policy, prompts, out, reward)
        last.join()
        assert last.exitcode == 0
    print(f"iterations done at each kill: {killed_at}")
    assert any(config.checkpoint_every <= done < config.iterations for done in killed_at)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("written", ["policy", "everything"])
def test_killed_after_its_last_iteration_nothing_is_trained_again(
    written, policy, prompts, folder, reward, monkeypatch
):
    """Before somebody takes the files away, the checkpoints are all that tells that they are whole;
    here not one of them is where `checkpoint_every` would have it."""
    config = PPO(**(BASE | {"iterations": 4, "checkpoint_every": 3}))
    whole = folder("whole")
    metrics = train_ppo(config, policy, prompts, whole, reward_function=reward)
    out, right = folder("killed"), Checkpoints.complete

    def kill(*args):
        if written == "everything":
            right(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "complete", kill)
        process = begin(config, policy, prompts, out, reward)
        process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(loop, "_learn", lambda *args: pytest.fail("it learns again"))
    assert train_ppo(config, policy, prompts, out, reward_function=reward) == metrics
    assert contents(out) == contents(whole)


def stopped(config, policy, prompts, out, reward, monkeypatch):
    """A run that ended in its eighth iteration."""
    right = loop.update

    def breaks(*args, **kwargs):
        if args[5] == 7:
            raise KeyboardInterrupt
        return right(*args, **kwargs)

    monkeypatch.setattr(loop, "update", breaks)
    with pytest.raises(KeyboardInterrupt):
        train_ppo(config, policy, prompts, out, reward_function=reward)
    monkeypatch.setattr(loop, "update", right)


def stops(config, policy, prompts, out, reward, monkeypatch, at, **more):
    """A run that is interrupted before the rollout of this iteration, and then goes on."""
    right = loop._roll_out

    def breaks(*args, **kwargs):
        if args[3] == at:
            raise KeyboardInterrupt
        return right(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_roll_out", breaks)
        with pytest.raises(KeyboardInterrupt):
            train_ppo(config, policy, prompts, out, reward_function=reward, **more)
    train_ppo(config, policy, prompts, out, reward_function=reward, **more)


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


SETS = {
    "sft term, early stop": {"sft_coef": 0.3, "sft_batch_size": 4, "kl_early_stop": 0.003},
    "bfloat16, running scores": {
        **{"dtype": "bfloat16", "normalize_scores": "running", "whiten_rewards": True},
        **{"kl_target": 0.5, "kl_horizon": 100},
    },
    "critic, schedule, budget": {
        **{"critic": "separate", "critic_warmup": 2, "normalize_scores": "initial"},
        **{"learning_rate_schedule": "cosine", "warmup_iterations": 2, "iterations": 12},
        **{"kl_budget": 0.3, "learning_rate": 5e-4, "samples_every": 4},
    },
}


@pytest.mark.parametrize("which", sorted(SETS))
def test_every_kind_of_state_is_in_a_checkpoint(
    which, policy, prompts, folder, reward, monkeypatch, tmp_path, caplog
):
    config, more = PPO(**(BASE | {"iterations": 8} | SETS[which])), {}
    if "sft" in which:  # on a GPT-2, whose head is its embedding
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        tokens, policy = tiny.tokenizer(), str(tmp_path / "gpt2")
        torch.manual_seed(0)
        ends = {"bos_token_id": None, "eos_token_id": tokens.eos_token_id}
        tied = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokens), **sizes, **ends))
        tied.save_pretrained(policy)
        tokens.save_pretrained(policy)
        lines = [{"prompt": f"hello {w}", "completion": "good thanks"} for w in tiny.WORDS]
        (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, lines)))
        more = {"demonstrations": str(tmp_path / "sft.jsonl")}
    whole, out = folder("whole"), folder("out")
    train_ppo(config, policy, prompts, whole, reward_function=reward, **more)
    rows = rows_of(whole)
    if "early stop" in which:
        assert any(row["policy/minibatches"] < 4 for row in rows), "it really fires"
    last = len(rows)
    if "budget" in which:
        assert 3 < last < 12, [row["objective/kl"] for row in rows]
        assert "over ppo.kl_budget" in caplog.text
    stops(config, policy, prompts, out, reward, monkeypatch, at=min(last, 5), **more)
    assert contents(out) == contents(whole)


def test_a_torn_checkpoint_is_passed_over_with_a_word(
    policy, prompts, folder, reward, monkeypatch, caplog
):
    config = PPO(**(BASE | VARIANTS["shared"] | {"iterations": 9}))
    train_ppo(config, policy, prompts, folder("whole"), reward_function=reward)
    out = folder("torn")
    stopped(config, policy, prompts, out, reward, monkeypatch)
    newest = out / "checkpoints" / "000006" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    caplog.clear()
    with caplog.at_level("INFO"):
        train_ppo(config, policy, prompts, out, reward_function=reward)
    assert "000006 cannot be used (tensors.safetensors is torn)" in caplog.text
    assert "going on after iteration 3 of 9" in caplog.text
    assert contents(out) == contents(folder("x").parent / "whole")
    assert len((out / "timings.jsonl").read_text().splitlines()) == config.iterations
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["complete.json"]


def test_a_checkpoint_of_another_run_is_refused(policy, prompts, folder, reward, monkeypatch):
    config = PPO(**(BASE | {"iterations": 9}))
    out = folder("one")
    stopped(config, policy, prompts, out, reward, monkeypatch)
    other = config.model_copy(update={"learning_rate": 1e-4})
    with pytest.raises(InputError, match=r"learning_rate is 0\.003, here it is 0\.0001"):
        train_ppo(other, policy, prompts, out, reward_function=reward)
    function = reward.rpartition(":")[0]
    text = Path(function).read_text()
    Path(function).write_text(text + "# another one\n")
    with pytest.raises(InputError, match="its data is"):
        train_ppo(config, policy, prompts, out, reward_function=reward)
    Path(function).write_text(text)
    # What changes no result may change.
    train_ppo(
        config.model_copy(update={"checkpoint_every": 2, "micro_batch_tokens": 64}),
        policy,
        prompts,
        out,
        reward_function=reward,
    )


def test_a_project_that_moved_goes_on(policy, prompts, folder, reward, monkeypatch, caplog):
    caplog.set_level("INFO")

    def asks(reference):
        return PPO(**(BASE | {"iterations": 9, "reward_function": reference}))

    out = folder("out")
    stopped(asks(reward), policy, prompts, out, reward, monkeypatch)
    elsewhere = folder("elsewhere") / "judge.py"
    elsewhere.write_text(Path(reward.rpartition(":")[0]).read_text() + "other = score\n")
    with pytest.raises(InputError, match="its data is"):  # another content
        train_ppo(asks(reward), policy, prompts, out, reward_function=f"{elsewhere}:score")
    Path(reward.rpartition(":")[0]).rename(elsewhere)
    moved = f"{elsewhere}:score"
    train_ppo(asks(moved), policy, prompts, out, reward_function=moved)
    assert "going on after iteration 6 of 9" in caplog.text


def test_a_checkpoint_whose_metrics_are_gone_is_passed_over(
    policy, prompts, folder, reward, monkeypatch, caplog
):
    caplog.set_level("INFO")
    config = PPO(**(BASE | {"iterations": 9}))
    train_ppo(config, policy, prompts, folder("whole"), reward_function=reward)
    out = folder("out")
    stopped(config, policy, prompts, out, reward, monkeypatch)
    rows = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(rows[:4]))
    train_ppo(config, policy, prompts, out, reward_function=reward)
    assert "metrics.jsonl has 4 rows, and it is of 6" in caplog.text
    assert "going on after iteration 3 of 9" in caplog.text
    assert contents(out) == contents(folder("x").parent / "whole")


def test_a_checkpoint_that_the_disk_does_not_give_is_not_thrown_away(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, {"seed": 1})
    checkpoints.save(3, {"w": torch.ones(2)}, {})

    def fails(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digest", fails)
        with pytest.raises(InputError, match=r"000003 cannot be read \(Input/output error\)"):
            checkpoints.newest()
    assert checkpoints.newest().iterations == 3
    (tmp_path / "000003" / "state.json").unlink()
    assert checkpoints.newest() is None


def test_the_newest_few_are_kept_and_partial_ones_never_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 1})
    for done in (1, 2, 3):
        checkpoints.save(done, {"w": torch.full((2,), float(done))}, {"kl_coef": 0.1})
    (tmp_path / "000004.partial").mkdir()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".partial") == [
        "000002",
        "000003",
    ]
    found = checkpoints.newest()
    assert found.iterations == 3
    assert asdict(found)["numbers"] == {"kl_coef": 0.1}
    assert torch.equal(found.tensors["w"], torch.full((2,), 3.0))
    state = json.loads((tmp_path / "000003" / "state.json").read_text())
    assert state["run"] == {"seed": 1}
    checkpoints.complete({"kl": 0.5})
    assert checkpoints.newest() is None
    assert [path.name for path in tmp_path.iterdir()] == ["complete.json"]
    assert checkpoints.completed() == {"kl": 0.5}
    assert Checkpoints(tmp_path, {"seed": 2}).completed() is None
    assert checkpoints.completed() is None, "that of another run is removed"


def test_a_damaged_newer_one_does_not_push_out_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 1})
    for done in (6, 9):
        checkpoints.save(done, {"w": torch.zeros(2)}, {})
        (tmp_path / f"{done:06d}" / "state.json").write_text('{"run": 3}')
    assert checkpoints.newest() is None
    checkpoints.save(3, {"w": torch.ones(2)}, {})
    assert checkpoints.newest().iterations == 3
