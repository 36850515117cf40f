"""Which steps a config needs: a round starts and stops anywhere, and makes nothing that nobody
asked for."""

from __future__ import annotations

from flows.config import RoundConfig
from labeling.errors import InputError

# What `stop_after` names → the step that the round then ends with.
_LAST = {None: "report", "completions": "completions", "labels": "freeze", "reward": "reward"}


def needed_steps(config: RoundConfig) -> tuple[str, ...]:
    """The round's steps in their order: the last one that is wanted, and what it needs.

    Raises:
        InputError: the config wants a step whose data it does not give, or which it rules out.
    """
    if config.preferences and config.stop_after in ("completions", "labels"):
        raise InputError(
            f"stop_after: {config.stop_after} is not reached with preferences.data: the pairs are "
            "given, so nothing is sampled or ranked; stop after reward, or remove one of the two"
        )
    if config.ppo.sft_coef and not config.sft:
        raise InputError(
            "ppo.sft_coef needs the demonstrations of sft.data: add the section sft, or set it to 0"
        )
    needs = _needs(config)
    wanted = {_LAST[config.stop_after]}
    for step in reversed(needs):
        if step in wanted:
            wanted |= set(needs[step])
    steps = tuple(step for step in needs if step in wanted)
    if "prompts" in steps and config.prompts is None:
        raise InputError("'prompts' is missing")
    return steps


def _needs(config: RoundConfig) -> dict[str, tuple[str, ...]]:
    """Each step and what it needs, in the order in which they are made. With a reward function for
    PPO and a judge for the evaluation there is no need of a reward model, hence none of labels."""
    sft = ("sft",) if config.sft else ()
    pairs = ("preferences",) if config.preferences else ("completions", "pairs")
    simulated = ("simulated",) if config.labeling.simulated else ()
    reward_for_ppo = () if config.ppo.reward_function else ("reward",)
    reward_for_judging = () if config.evaluation.judge else ("reward",)
    return {
        "prompts": (),
        "sft": (),
        "preferences": (),
        "completions": (*sft, "prompts"),
        "publish": ("completions",),
        "simulated": ("publish",),
        "gate": ("publish", *simulated),
        "freeze": ("gate",),
        "pairs": ("completions", "freeze"),
        "reward": (*sft, *pairs),
        "ppo": (*sft, "prompts", *reward_for_ppo),
        "evaluate": (*sft, "prompts", "ppo", *reward_for_judging),
        "report": ("evaluate",),
    }


def not_used(config: RoundConfig) -> list[str]:
    """A line for each thing that the config gives and no step of it needs."""
    steps = needed_steps(config)
    lines = []
    if config.stop_after is None and "reward" not in steps:
        lines.append(
            "no reward model is made, and nothing is ranked for one: PPO has ppo.reward_function "
            "and the evaluation has evaluation.judge"
        )
        if config.preferences:
            lines.append("preferences.data is not used: there is no reward model to learn from it")
    if config.labeling.simulated and config.preferences:
        lines.append("labeling.simulated is not used: the pairs are given by preferences.data")
    return lines
