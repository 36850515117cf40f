import json

import pyarrow.parquet as pq
import pytest
import torch

from labeling.config import Pairs
from labeling.errors import InputError
from labeling.pair_table import read_pairs, write_pairs
from labeling.pairs import make_pairs
from labeling.records import (
    Candidates,
    Completion,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    read_candidates,
    write_candidates,
    write_rankings,
)
from reward.config import RewardTraining
from reward.model import Normalization, RewardModel, from_policy
from reward.train import split_by_prompt, train_reward_model
from tests import tiny

CPU = torch.device("cpu")
CONFIG = RewardTraining(epochs=16, learning_rate=5e-3, batch_size=16, held_out_fraction=0.2)


def preferences(chat=False, count=60):
    """`good` is preferred to `bad`, whatever stands around it."""
    pairs = []
    for i in range(count):
        text = f"{tiny.WORDS[i % 14]} {tiny.WORDS[i // 14]}"
        prompt = Prompt(messages=(Message("user", text),)) if chat else Prompt(text=text)
        filler = tiny.WORDS[(i * 5) % 12]
        pairs.append(
            PreferencePair(prompt, Completion(f"{filler} good"), Completion(f"{filler} bad"))
        )
    return pairs


def files(tmp_path, pairs):
    write_pairs(pairs, tmp_path / "pairs.parquet")
    candidates = [Candidates(p.prompt, (p.chosen, p.rejected)) for p in pairs]
    write_candidates(candidates, tmp_path / "completions.parquet")
    return tmp_path / "pairs.parquet", tmp_path / "completions.parquet"


@pytest.mark.parametrize(("pad", "chat"), [(True, False), (False, True)])
def test_it_learns_the_preference_and_is_normalised(tmp_path, pad, chat):
    policy = str(tiny.save(tmp_path / "model", pad=pad, chat=chat))
    pairs, completions = files(tmp_path, preferences(chat))
    metrics = train_reward_model(CONFIG, policy, pairs, tmp_path, completions)
    assert metrics.held_out_accuracy == 1.0
    assert (metrics.held_out_pairs, metrics.train_pairs) == (12, 48)
    model = RewardModel.load(tmp_path / "reward_model", CPU, torch.float32)
    assert model.tokenizer.pad_token_id != model.tokenizer.eos_token_id
    flat = [(c.prompt, a) for c in read_candidates(completions) for a in c.completions]
    scores = torch.tensor(model.scores([p for p, _ in flat], [a for _, a in flat]))
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)
    assert not list((tmp_path / "reward_model").glob("*.bin"))
    assert json.loads((tmp_path / "reward_model" / "normalization.json").read_text())["std"] > 0


def test_training_and_scoring_see_the_same_tokens(tmp_path):
    policy = str(tiny.save(tmp_path / "model"))
    pairs, completions = files(tmp_path, preferences())
    train_reward_model(CONFIG, policy, pairs, tmp_path, completions)
    model = RewardModel.load(tmp_path / "reward_model", CPU, torch.float32)
    prompts = [Prompt(text="hello"), Prompt(text="the support desk answers now")]
    answers = [Completion("good thanks"), Completion("bad", finished=False)]
    together = model.raw_scores(prompts, answers)
    alone = torch.cat([model.raw_scores([p], [a]) for p, a in zip(prompts, answers, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    eos = model.tokenizer.eos_token
    by_hand = model.tokenizer(f"hello good thanks {eos}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model.model(by_hand).logits[0, 0].item() == pytest.approx(alone[0].item(), abs=1e-5)


def test_bfloat16_does_not_round_the_scores(tmp_path):
    model, tokens = from_policy(str(tiny.save(tmp_path / "model")), seed=0)
    with torch.autocast("cpu", torch.bfloat16):  # as the trainer does
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype == torch.float32
    RewardModel(model, tokens, Normalization(), CPU).save(tmp_path)
    loaded = RewardModel.load(tmp_path, CPU, torch.bfloat16)
    prompts = [Prompt(text=word) for word in tiny.WORDS]
    scores = loaded.raw_scores(prompts, [Completion("good")] * len(prompts))
    assert (scores != scores.bfloat16().float()).any()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    policy = str(tiny.save(tmp_path / "model"))
    pairs, completions = files(tmp_path, preferences())
    config = CONFIG.model_copy(update={"epochs": 1.0})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train_reward_model(config, policy, pairs, tmp_path / name, completions)
    one, two = (
        (tmp_path / n / "reward_model/model.safetensors").read_bytes() for n in ("one", "two")
    )
    assert one == two


def test_no_prompt_is_on_both_sides_of_the_split():
    pairs = preferences() * 3
    train, held_out = split_by_prompt(pairs, 0.3, seed=1)
    assert not {p.prompt.key for p in train} & {p.prompt.key for p in held_out}
    assert len(train) + len(held_out) == len(pairs)
    with pytest.raises(InputError, match="at least 2 are needed"):
        split_by_prompt(pairs[:1], 0.3, seed=1)


def test_a_prompt_of_several_tasks_is_in_one_split(tmp_path):
    """From rankings to the split, with the prompt's key in the file as its witness."""
    tasks = [
        Candidates(prompt.prompt, (Completion(f"{word} good"), Completion(f"{word} bad")))
        for prompt in preferences(count=8)
        for word in ("hello", "thanks")
    ]
    write_candidates(tasks, tmp_path / "completions.parquet")
    write_rankings([Ranking(t.key, "ann", ((0,), (1,))) for t in tasks], tmp_path / "l.parquet")
    make_pairs(Pairs(), tmp_path / "completions.parquet", tmp_path / "l.parquet", tmp_path)
    pairs = read_pairs(tmp_path / "pairs.parquet")
    keys = pq.read_table(tmp_path / "pairs.parquet")["prompt_key"].to_pylist()
    assert keys == [p.prompt.key for p in pairs]
    for seed in range(5):
        train, held_out = split_by_prompt(pairs, 0.3, seed)
        assert (len(train), len(held_out)) == (12, 4)
        assert not {p.prompt.text for p in train} & {p.prompt.text for p in held_out}


def test_ties_are_trained_on_and_measure_nothing():
    pairs = preferences(count=10)
    ties = [
        PreferencePair(p.prompt, Completion(a), Completion(b), tie=True)
        for p in preferences(count=20)
        for a, b in (("x", "y"), ("y", "x"))
    ]
    train, held_out = split_by_prompt(pairs + ties, 0.3, seed=1)
    assert len(held_out) == 3
    assert not any(p.tie for p in held_out)
    kept = [p for p in train if p.tie]
    assert len(kept) == len(ties) - 2 * 3  # those of held-out prompts are nowhere
    with pytest.raises(InputError, match="at least 2 are needed"):
        split_by_prompt(pairs[:1] + ties, 0.3, seed=1)


def test_pairs_that_are_too_long_are_counted_and_left_out(tmp_path):
    policy = str(tiny.save(tmp_path / "model"))
    long = PreferencePair(Prompt(text="hello"), Completion("good " * 30), Completion("bad"))
    pairs, completions = files(tmp_path, [*preferences(), long, long])
    config = CONFIG.model_copy(update={"epochs": 1.0, "max_length": 10})
    metrics = train_reward_model(config, policy, pairs, tmp_path, completions)
    assert metrics.too_long == 2
    assert metrics.too_long + metrics.train_pairs + metrics.held_out_pairs == 62
    nothing = CONFIG.model_copy(update={"max_length": 2})
    with pytest.raises(InputError, match="all 62 pairs are longer than 2 tokens"):
        train_reward_model(nothing, policy, pairs, tmp_path, completions)


def test_a_diverged_reward_model_is_refused_not_stored(tmp_path):
    policy = str(tiny.save(tmp_path / "model"))
    pairs, completions = files(tmp_path, preferences())
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "epochs": 3.0})
    with pytest.raises(InputError, match=r"lower reward\.learning_rate"):
        train_reward_model(config, policy, pairs, tmp_path, completions)
    assert not (tmp_path / "reward_model").exists()
