"""The candidate against the initial policy, and against the incumbent where that is another, on the
evaluation prompts, which PPO never sees."""

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
from transformers import PreTrainedModel

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
    """The candidate's figures at the top, those of the others under `initial` and `incumbent`.

    `win_rate` and `kl` are against the initial policy, `win_rate_vs_incumbent` and
    `kl_vs_incumbent` against the incumbent: the same where the initial policy is the incumbent.
    """

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
    win_rate_vs_incumbent: float
    win_rate_vs_incumbent_interval: tuple[float, float]
    kl_vs_incumbent: float
    incumbent: PolicyFigures


def evaluate_policy(
    config: Evaluation,
    initial: str,
    candidate: str,
    prompts: Path,
    out: Path,
    reward_model: Path | None = None,
    judge: str | None = None,
    guards: Mapping[str, str] | None = None,
    incumbent: str | None = None,
) -> EvaluationMetrics:
    """One completion a prompt from each policy, compared by the judge.

    Writes `out/evaluation.json`, `out/comparisons.parquet` (a = candidate, b = initial policy) and
    `out/examples.json`; with an `incumbent` also `out/comparisons_vs_incumbent.parquet`.

    Args:
        initial, candidate: policies; folders or `name@commit`. They share a tokenizer.
        incumbent: the policy that is promoted now; without it, the initial one.
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

    def draw(policy: PreTrainedModel, what: str) -> list[Response]:
        sampler = Sampler.of(policy, tokenizer, config, dtype)
        return sampler.draw_all(ids, config.seed, config.batch_size, what)

    before = draw(model, "initial policy")
    candidate_model = load_policy(candidate).to(device)  # type: ignore[arg-type]
    after = draw(candidate_model, "candidate")
    kl = kl_vs_incumbent = mean_kl(candidate_model, model, ids, after, dtype)
    between = before
    if incumbent is not None:
        del model  # two policies are in memory at once, never three
        model = load_policy(incumbent).to(device)  # type: ignore[arg-type]
        between = draw(model, "incumbent")
        kl_vs_incumbent = mean_kl(candidate_model, model, ids, after, dtype)
    scorer = None if reward_model is None else RewardModel.load(reward_model, device, dtype)
    measure = _Measure(chosen, judging, scorer, guarding)
    ours, theirs = measure.of(after), measure.of(before)
    incumbents = theirs if incumbent is None else measure.of(between)
    comparisons = _compare(chosen, (after, ours.judged), (before, theirs.judged))
    verdicts = [c.verdict for c in comparisons]
    rate = rate_vs_incumbent = win_rate(verdicts)
    write_table(pa.Table.from_pylist([asdict(c) for c in comparisons]), out / "comparisons.parquet")
    if incumbent is not None:
        rows = _compare(chosen, (after, ours.judged), (between, incumbents.judged))
        rate_vs_incumbent = win_rate([row.verdict for row in rows])
        table = pa.Table.from_pylist([asdict(row) for row in rows])
        write_table(table, out / "comparisons_vs_incumbent.parquet")
    metrics = EvaluationMetrics(
        win_rate=rate,
        win_rate_interval=wilson_interval(rate, len(verdicts), config.confidence),
        wins=verdicts.count(1.0),
        ties=verdicts.count(0.5),
        losses=verdicts.count(0.0),
        prompts=len(verdicts),
        kl=kl,
        judged_by="the reward model" if judge is None else f"{Path(judge).name}",
        initial=theirs.figures,
        win_rate_vs_incumbent=rate_vs_incumbent,
        win_rate_vs_incumbent_interval=wilson_interval(
            rate_vs_incumbent, len(verdicts), config.confidence
        ),
        kl_vs_incumbent=kl_vs_incumbent,
        incumbent=incumbents.figures,
        **asdict(ours.figures),
    )
    _write_json(asdict(metrics), out / "evaluation.json")
    _write_json(
        [
            {
                "prompt": p.readable,
                "before": b.completion.text,
                "after": a.completion.text,
                "judge_before": theirs.judged[i],
                "judge_after": ours.judged[i],
            }
            for i, (p, b, a) in enumerate(zip(chosen, before, after, strict=True))
        ][: config.examples],
        out / "examples.json",
    )
    logger.info("win rate %.3f over the initial policy, KL %.2f", rate, kl)
    if incumbent is not None:
        logger.info("win rate %.3f over the incumbent, KL %.2f", rate_vs_incumbent, kl_vs_incumbent)
    return metrics


@dataclass(frozen=True)
class _Measured:
    """What one policy's responses are worth: each one's score by the judge, and all in figures."""

    judged: list[float]
    figures: PolicyFigures


@dataclass(frozen=True)
class _Measure:
    """What measures responses to the prompts. Without `judging` the reward model judges."""

    prompts: Sequence[Prompt]
    judging: ScoreFunction | None
    scorer: RewardModel | None
    guarding: Mapping[str, ScoreFunction]

    def of(self, drawn: Sequence[Response]) -> _Measured:
        rewards = None
        if self.scorer is not None:
            rewards = self.scorer.scores(self.prompts, [r.completion for r in drawn])
        judged = rewards if self.judging is None else self._apply(self.judging, drawn)
        assert judged is not None  # one of judge and reward model is there
        figures = PolicyFigures(
            judge=_mean(judged),
            reward=None if rewards is None else _mean(rewards),
            tokens=_mean([len(r.tokens) for r in drawn]),
            finished=_mean([r.completion.finished for r in drawn]),
            distinct=len({r.completion.text for r in drawn}) / len(drawn),
            guards={n: _mean(self._apply(guard, drawn)) for n, guard in self.guarding.items()},
        )
        return _Measured(judged, figures)

    def _apply(self, function: ScoreFunction, drawn: Sequence[Response]) -> list[float]:
        return function([p.readable for p in self.prompts], [r.completion.text for r in drawn])


def _compare(
    prompts: Sequence[Prompt],
    ours: tuple[Sequence[Response], Sequence[float]],
    theirs: tuple[Sequence[Response], Sequence[float]],
) -> list[Comparison]:
    """Responses and their scores, prompt by prompt."""
    return [
        Comparison(p.key, a.completion.text, b.completion.text, verdict(score_a, score_b))
        for p, a, score_a, b, score_b in zip(prompts, *ours, *theirs, strict=True)
    ]


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_json(value: object, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(partial, path)
