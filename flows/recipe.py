"""The recipe of a round: every step, in order, with what goes into it. The flow follows it to make
the steps (flows/round.py), the dry run to look at them (flows/dry_run.py). No Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from flows import stages
from flows.config import RoundConfig, project_title
from flows.lineage import Start
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


def follow(config: RoundConfig, start: Start, labels: Path, make: Maker) -> Any:
    """One round; returns its last step.

    The first round starts from the initial policy. A later one starts from the incumbent, and its
    reward model goes on from the one before with the pairs of all rounds.

    Args:
        config: the round's own (RoundConfig.for_round).
        start: what it takes from earlier rounds.
        labels: where its rankings are frozen.
    """
    prompts = make.stage(
        stages.PROMPTS,
        config.prompts,
        source=config.prompts and config.prompts.path,
        evaluation=config.prompts and config.prompts.evaluation_path,
    )
    initial: Any = f"{config.model}@{config.revision}" if config.revision else config.model
    if config.sft and start.number == 0:
        sft = initial = make.stage(stages.SFT, config.sft, model=initial, data=config.sft.data)
    else:
        sft, initial = None, start.initial or initial
    policy = start.incumbent or initial

    completions = make.stage(
        stages.COMPLETIONS,
        config.sampling,
        policy=policy,
        prompts=prompts,
        earlier=start.completions or None,
    )
    title = project_title(config.name, start.number)
    published = make.sync("publish", config, title, completions, labels)
    answered = make.sync("simulated", config, published, labels)
    opened = make.sync("gate", config, published, answered or published, labels)
    frozen = make.sync("freeze", published, opened, labels)
    pairs = make.stage(stages.PAIRS, config.pairs, completions=completions, labels=frozen)
    preferences = make.stage(
        stages.PREFERENCES, config.preferences, data=config.preferences and config.preferences.data
    )

    # Given pairs are the same in every round: so is what is learned from them.
    reward = make.stage(
        stages.REWARD,
        config.reward,
        policy=initial if config.preferences else policy,
        pairs=preferences or pairs,
        completions=completions,
        earlier=None if config.preferences else start.pairs or None,
        start=None if config.preferences else start.reward_model,
    )
    anchored = start.incumbent and config.later_rounds.anchor == "initial"
    aligned = make.stage(
        stages.PPO,
        config.ppo,
        policy=policy,
        prompts=prompts,
        reward_model=reward if config.ppo.needs_reward_model else None,
        reward_function=config.ppo.reward_function,
        demonstrations=config.sft.data if config.sft and config.ppo.sft_coef else None,
        reference=initial if anchored else None,
    )
    evaluation = make.stage(
        stages.EVALUATE,
        config.evaluation,
        initial=initial,
        candidate=aligned,
        incumbent=start.incumbent,
        prompts=prompts,
        reward_model=reward,
        judge=config.evaluation.judge,
        guards=config.evaluation.guards or None,
    )
    promoted = make.sync("promote", config, start.lineage, aligned, evaluation)
    report = make.stage(
        stages.REPORT,
        config,
        sft=sft,
        prompts=prompts,
        completions=completions,
        labels=frozen,
        answers=_if_there(labels.with_name(LABELS_SUMMARY)),
        preferences=preferences,
        pairs=pairs,
        reward=reward,
        ppo=aligned,
        evaluation=evaluation,
        promotion=promoted,
        lineage=start.lineage.model_dump(mode="json") if start.number else None,
    )
    return report or reward or frozen or completions


def _if_there(path: Path) -> Path | None:
    """Labels that an earlier version froze have none."""
    return path if path.exists() else None
