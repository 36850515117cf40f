"""The recipe of a round: every step, in order, with what goes into it. The flow follows it to make
the steps (flows/round.py), the dry run to look at them (flows/dry_run.py). No Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from flows import stages
from flows.config import RoundConfig
from flows.stages import Stage

# Beside the frozen labels: how they came to be, in numbers without names, for the report.
LABELS_SUMMARY = "labels.json"


class Maker(Protocol):
    """Makes the steps that the config needs. The others give None, and so does whatever was to be
    made of them."""

    def stage(self, stage: Stage, config: BaseModel | None, **inputs: Any) -> Any:
        """A pure step, which is in the store or goes there."""

    def sync(self, name: str, *arguments: Any) -> Any:
        """A dealing with people, by its task's name in flows/tasks.py."""


def follow(config: RoundConfig, labels: Path, make: Maker) -> Any:
    """One round; returns its last step. `labels` is where the rankings are frozen."""
    prompts = make.stage(
        stages.PROMPTS,
        config.prompts,
        source=config.prompts and config.prompts.path,
        evaluation=config.prompts and config.prompts.evaluation_path,
    )
    initial: Any = f"{config.model}@{config.revision}" if config.revision else config.model
    if config.sft:
        initial = make.stage(stages.SFT, config.sft, model=initial, data=config.sft.data)

    completions = make.stage(stages.COMPLETIONS, config.sampling, policy=initial, prompts=prompts)
    published = make.sync("publish", config, completions, labels)
    answered = make.sync("simulated", config, published, labels)
    opened = make.sync("gate", config, published, answered or published, labels)
    frozen = make.sync("freeze", published, opened, labels)
    pairs = make.stage(stages.PAIRS, config.pairs, completions=completions, labels=frozen)
    preferences = make.stage(
        stages.PREFERENCES, config.preferences, data=config.preferences and config.preferences.data
    )

    reward = make.stage(
        stages.REWARD,
        config.reward,
        policy=initial,
        pairs=preferences or pairs,
        completions=completions,
    )
    aligned = make.stage(
        stages.PPO,
        config.ppo,
        policy=initial,
        prompts=prompts,
        reward_model=reward if config.ppo.needs_reward_model else None,
        reward_function=config.ppo.reward_function,
        demonstrations=config.sft.data if config.sft and config.ppo.sft_coef else None,
    )
    evaluation = make.stage(
        stages.EVALUATE,
        config.evaluation,
        initial=initial,
        candidate=aligned,
        prompts=prompts,
        reward_model=reward,
        judge=config.evaluation.judge,
        guards=config.evaluation.guards or None,
    )
    report = make.stage(
        stages.REPORT,
        config,
        sft=initial if config.sft else None,
        prompts=prompts,
        completions=completions,
        labels=frozen,
        answers=_if_there(labels.with_name(LABELS_SUMMARY)),
        preferences=preferences,
        pairs=pairs,
        reward=reward,
        ppo=aligned,
        evaluation=evaluation,
    )
    return report or reward or frozen or completions


def _if_there(path: Path) -> Path | None:
    """Labels that an earlier version froze have none."""
    return path if path.exists() else None
