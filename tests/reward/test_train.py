import json

import pytest
import torch

from labeling.errors import InputError
from labeling.pair_table import write_pairs
from labeling.records import (
    Candidates,
    Completion,
    Message,
    PreferencePair,
    Prompt,
    read_candidates,
    write_candidates,
)
from reward.config import RewardTraining
from reward.model import Normalization, RewardModel, from_policy
from reward.train import train_reward_model
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
    assert metrics.held_out_accuracy > 0.9
    assert metrics.held_out_pairs + metrics.train_pairs == 60
    assert 6 <= metrics.held_out_pairs <= 18
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


def test_a_later_round_goes_on_with_the_reward_model_and_all_pairs(tmp_path):
    policy = str(tiny.save(tmp_path / "model"))
    first, completions = files(tmp_path, preferences())
    learned = CONFIG.model_copy(update={"epochs": 8.0})
    train_reward_model(learned, policy, first, tmp_path, completions)
    start, out = tmp_path / "reward_model", tmp_path / "later"
    out.mkdir()
    new, completions = files(out, preferences()[:10])
    barely = CONFIG.model_copy(update={"epochs": 0.1, "learning_rate": 1e-9})
    metrics = train_reward_model(
        barely, policy, new, out, completions, earlier=[first], start=start
    )
    assert metrics.earlier_pairs > 0.6 * 60
    assert metrics.train_pairs + metrics.held_out_pairs == metrics.earlier_pairs + 10
    one, two = (RewardModel.load(f / "reward_model", CPU, torch.float32) for f in (tmp_path, out))
    prompts, answers = [Prompt(text="hello")] * 2, [Completion("good"), Completion("bad")]
    raw = one.raw_scores(prompts, answers)
    assert torch.allclose(raw, two.raw_scores(prompts, answers), atol=1e-4), "not from the start"
    assert one.normalization != two.normalization, "not centred on the new completions"
    assert metrics.accuracy_before == metrics.held_out_accuracy > 0.9
    assert metrics.earlier_accuracy is not None
    assert metrics.earlier_accuracy > 0.9


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
