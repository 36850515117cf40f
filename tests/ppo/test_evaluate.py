import json

import pyarrow.parquet as pq
import pytest

from labeling.errors import InputError
from ppo.config import Evaluation
from ppo.evaluate import evaluate_policy
from tests import tiny

CONFIG = Evaluation(max_new_tokens=6, examples=3)


@pytest.fixture
def judge(tmp_path):
    (tmp_path / "judge.py").write_text(
        "def score(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
        "def same(prompts, completions):\n    return [1.0] * len(completions)\n"
    )
    return f"{tmp_path}/judge.py"


def test_a_greedy_policy_against_itself_ties_and_has_no_kl(policy, prompts, folder, judge):
    greedy = CONFIG.model_copy(update={"temperature": 0.0})
    metrics = evaluate_policy(
        greedy, policy, policy, prompts, folder("out"), judge=f"{judge}:score"
    )
    assert metrics.win_rate == 0.5
    assert metrics.ties == metrics.prompts == 8
    assert abs(metrics.kl) < 1e-6
    assert metrics.judge == metrics.initial.judge


def test_the_higher_score_wins_and_everything_is_written(policy, prompts, folder, judge, tmp_path):
    other = str(tiny.save(tmp_path / "other", seed=5))
    out = folder("out")
    metrics = evaluate_policy(
        CONFIG,
        policy,
        other,
        prompts,
        out,
        judge=f"{judge}:score",
        guards={"same": f"{judge}:same"},
    )
    rows = pq.read_table(out / "comparisons.parquet").to_pylist()
    assert len(rows) == 8
    for row in rows:
        a, b = len(row["a"]), len(row["b"])
        assert row["verdict"] == (0.5 if a == b else float(a > b))
    assert metrics.win_rate == sum(r["verdict"] for r in rows) / 8
    low, high = metrics.win_rate_interval
    assert 0 <= low < metrics.win_rate < high <= 1
    assert metrics.guards == metrics.initial.guards == {"same": 1.0}
    assert metrics.kl > 0
    saved = json.loads((out / "evaluation.json").read_text())
    assert saved["win_rate"] == metrics.win_rate
    assert saved["initial"]["guards"] == {"same": 1.0}
    examples = json.loads((out / "examples.json").read_text())
    assert [e["before"] for e in examples] == [r["b"] for r in rows[:3]]


def test_without_judge_and_reward_model_it_is_refused(policy, prompts, folder):
    with pytest.raises(InputError, match="a judge function or a reward model"):
        evaluate_policy(CONFIG, policy, policy, prompts, folder("out"))


def test_the_incumbent_is_compared_apart_from_the_initial_policy(
    policy, prompts, folder, judge, tmp_path
):
    other, third = (str(tiny.save(tmp_path / f"model {seed}", seed=seed)) for seed in (5, 6))
    given = {"judge": f"{judge}:score", "guards": {"length": f"{judge}:score"}}
    alone = evaluate_policy(CONFIG, policy, other, prompts, folder("alone"), **given)
    assert alone.win_rate_vs_incumbent == alone.win_rate
    assert alone.win_rate_vs_incumbent_interval == alone.win_rate_interval
    assert (alone.kl_vs_incumbent, alone.incumbent) == (alone.kl, alone.initial)
    out = folder("out")
    metrics = evaluate_policy(CONFIG, policy, other, prompts, out, incumbent=third, **given)
    assert (metrics.win_rate, metrics.kl, metrics.initial) == (
        alone.win_rate,
        alone.kl,
        alone.initial,
    )
    rows = pq.read_table(out / "comparisons_vs_incumbent.parquet").to_pylist()
    assert metrics.win_rate_vs_incumbent == sum(row["verdict"] for row in rows) / 8
    assert metrics.incumbent.guards["length"] == sum(len(row["b"]) for row in rows) / 8
    assert metrics.incumbent != metrics.initial
    assert metrics.kl_vs_incumbent != metrics.kl
    against_itself = evaluate_policy(
        CONFIG, policy, other, prompts, folder("itself"), incumbent=other, **given
    )
    assert abs(against_itself.kl_vs_incumbent) < 1e-5
