"""The candidate against the initial policy on the evaluation prompts, which PPO never sees."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from labeling.comparison import Comparison, verdict, wilson_interval, win_rate
from labeling.errors import InputError
from labeling.records import Prompt, read_prompts, write_table
from labeling.scoring import ScoreFunction, load_score_function
from ppo.config import MICRO_BATCH_TOKENS, Evaluation
from ppo.generation import Response, Sampler, choose, encode_prompts
from ppo.head import Head
from ppo.policy import last_states, load_policy
from ppo.sequences import assemble
from reward.compute import autocast, place
from reward.encoding import load_tokenizer
from reward.model import RewardModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyFigures:
    """One policy on the evaluation prompts."""

    judge: float
    reward: float | None
    tokens: float
    finished: float
    distinct: float
    guards: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationMetrics:
    """The candidate's figures at the top, the initial policy's under `initial`."""

    win_rate: float
    win_rate_interval: tuple[float, float]
    wins: int
    ties: int
    losses: int
    prompts: int
    kl: float
    judged_by: str
    judge: float
    reward: float | None
    tokens: float
    finished: float
    distinct: float
    guards: dict[str, float]
    initial: PolicyFigures


def evaluate_policy(
    config: Evaluation,
    initial: str,
    candidate: str,
    prompts: Path,
    out: Path,
    reward_model: Path | None = None,
    judge: str | None = None,
    guards: Mapping[str, str] | None = None,
) -> EvaluationMetrics:
    """One completion a prompt from each policy, compared by the judge.

    Writes `out/evaluation.json`, `out/comparisons.parquet` (a = candidate, b = initial policy) and
    `out/examples.json`.

    Args:
        initial, candidate: policies; folders or `name@commit`. They share a tokenizer.
        prompts: `prompts.parquet`; its evaluation split is used.
        reward_model: judges when `judge` is not given; else only reported.
        judge: `module_or_file:function`.
        guards: functions of the same form whose mean is reported for both, by name.

    Raises:
        InputError: there is no judge, a policy cannot be loaded, or a function misbehaves.
    """
    if judge is None and reward_model is None:
        raise InputError("evaluation needs a judge function or a reward model; neither was given")
    device, dtype = place(config)
    # Before hours of sampling: is there such a function?
    judging = None if judge is None else load_score_function(judge)
    guarding = {name: load_score_function(ref) for name, ref in (guards or {}).items()}
    tokenizer = load_tokenizer(initial)
    model = load_policy(initial).to(device)  # type: ignore[arg-type]
    chosen = choose(read_prompts(prompts, "evaluation"), config.prompts, config.seed)
    chosen, ids = encode_prompts(tokenizer, chosen, model, config.max_new_tokens)
    before = Sampler.of(model, tokenizer, config, dtype).draw_all(
        ids, config.seed, config.batch_size, "initial policy"
    )
    after_model = load_policy(candidate).to(device)  # type: ignore[arg-type]
    after = Sampler.of(after_model, tokenizer, config, dtype).draw_all(
        ids, config.seed, config.batch_size, "candidate"
    )
    kl = mean_kl(after_model, model, ids, after, dtype)
    rewards: tuple[list[float], list[float]] | None = None
    if reward_model is not None:
        scorer = RewardModel.load(reward_model, device, dtype)
        rewards = (
            scorer.scores(chosen, [r.completion for r in before]),
            scorer.scores(chosen, [r.completion for r in after]),
        )
    judged = (
        (_apply(judging, chosen, before), _apply(judging, chosen, after))
        if judging is not None
        else rewards
    )
    assert judged is not None  # one of judge and reward_model is there
    figures = [
        PolicyFigures(
            judge=_mean(judged[side]),
            reward=None if rewards is None else _mean(rewards[side]),
            tokens=_mean([len(r.tokens) for r in drawn]),
            finished=_mean([r.completion.finished for r in drawn]),
            distinct=len({r.completion.text for r in drawn}) / len(drawn),
            guards={n: _mean(_apply(guard, chosen, drawn)) for n, guard in guarding.items()},
        )
        for side, drawn in enumerate((before, after))
    ]
    comparisons = [
        Comparison(p.key, a.completion.text, b.completion.text, verdict(score_a, score_b))
        for p, a, b, score_a, score_b in zip(
            chosen, after, before, judged[1], judged[0], strict=True
        )
    ]
    verdicts = [c.verdict for c in comparisons]
    rate = win_rate(verdicts)
    metrics = EvaluationMetrics(
        win_rate=rate,
        win_rate_interval=wilson_interval(rate, len(verdicts), config.confidence),
        wins=verdicts.count(1.0),
        ties=verdicts.count(0.5),
        losses=verdicts.count(0.0),
        prompts=len(verdicts),
        kl=kl,
        judged_by="the reward model" if judge is None else f"{Path(judge).name}",
        initial=figures[0],
        **asdict(figures[1]),
    )
    write_table(pa.Table.from_pylist([asdict(c) for c in comparisons]), out / "comparisons.parquet")
    _write_json(asdict(metrics), out / "evaluation.json")
    _write_json(
        [
            {
                "prompt": p.readable,
                "before": b.completion.text,
                "after": a.completion.text,
                "judge_before": judged[0][i],
                "judge_after": judged[1][i],
            }
            for i, (p, b, a) in enumerate(zip(chosen, before, after, strict=True))
        ][: config.examples],
        out / "examples.json",
    )
    logger.info("win rate %.3f over the initial policy, KL %.2f", rate, kl)
    return metrics


@torch.no_grad()
def mean_kl(
    candidate: Any,
    initial: Any,
    prompt_tokens: Sequence[Sequence[int]],
    responses: Sequence[Response],
    dtype: torch.dtype,
) -> float:
    """KL(candidate ‖ initial) in nats a response, from the candidate's own responses: the mean of
    Σ_t log π − log π_initial at temperature 1 (an estimate of the true KL where the responses were
    drawn at temperature 1)."""
    device = candidate.device
    sequences = assemble(prompt_tokens, [r.tokens for r in responses], device)
    heads = Head.of(candidate, dtype), Head.of(initial, dtype)
    total = 0.0
    for part in sequences.parts(MICRO_BATCH_TOKENS[device.type]):
        with autocast(device, dtype):
            states = [last_states(m.base_model, part) for m in (candidate, initial)]
        ours, theirs = (
            head.read(hidden, part.tokens, 1.0)[0]
            for head, hidden in zip(heads, states, strict=True)
        )
        total += (ours - theirs).sum().item()
    return total / len(responses)


def _apply(
    function: ScoreFunction, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> list[float]:
    return function([p.readable for p in prompts], [r.completion.text for r in responses])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_json(value: object, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(partial, path)
