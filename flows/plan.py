"""Which steps a config needs, and which of them are there already: a round starts and stops
anywhere, and makes nothing that nobody asked for."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.config import RoundConfig
from flows.history import policy_of, read
from flows.inputs import resolve_inputs
from flows.lineage import Lineage, Start
from flows.promotion import Candidate
from flows.recipe import follow
from flows.stages import Kind, Stage
from flows.store import Entry, Store, make_key
from labeling.errors import InputError

# What `stop_after` names → the step that the round then ends with.
_LAST = {None: "report", "completions": "completions", "labels": "freeze", "reward": "reward"}


def needed_steps(config: RoundConfig, number: int = 0) -> tuple[str, ...]:
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
    if unknown := set(config.promotion.max_guard_drop) - set(config.evaluation.guards):
        raise InputError(
            f"promotion.max_guard_drop names '{min(unknown)}', and evaluation.guards has no guard "
            "of that name: give it there, or correct the name"
        )
    needs = _needs(config, number)
    wanted = {_LAST[config.stop_after]}
    for step in reversed(needs):
        if step in wanted:
            wanted |= set(needs[step])
    steps = tuple(step for step in needs if step in wanted)
    if "prompts" in steps and config.prompts is None:
        raise InputError("'prompts' is missing")
    return steps


def _needs(config: RoundConfig, number: int) -> dict[str, tuple[str, ...]]:
    """Each step and what it needs, in the order in which they are made. The first round alone has
    SFT. With a reward function for
    PPO and a judge for the evaluation there is no need of a reward model, hence none of labels."""
    sft = ("sft",) if config.sft and number == 0 else ()
    pairs = ("preferences",) if config.preferences else ("completions", "pairs")
    simulated = ("simulated",) if config.labeling.simulated else ()
    reward_for_ppo = ("reward",) if config.ppo.needs_reward_model else ()
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
        "promote": ("evaluate",),
        "report": ("evaluate", "promote"),
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


# --- what is there already ------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A step that a run would take. A stage has its `key`, unless that depends on what `after` will
    make; `entry` is there when the stage would be reused, `output` when later steps can be told."""

    step: str
    is_stage: bool
    key: str | None = None
    after: str | None = None
    entry: Entry | None = None
    output: Path | dict[str, Any] | None = None

    def place(self, kind: Kind) -> Path | dict[str, Any] | None:
        return self.entry.path if kind == "entry" and self.entry else self.output


def look(
    config: RoundConfig, store: Store, labels: Path, start: Start | None = None
) -> dict[str, Planned]:
    """What a run of the config would do, by step, in order. Nothing is made or written.

    Args:
        config: the round's own (RoundConfig.for_round).
        labels: where the round's rankings are frozen.
        start: what it takes from earlier rounds; the first round takes nothing.

    Raises:
        InputError: the config cannot be followed, or an input is missing.
    """
    start = start or Start(Lineage(round=0), store)
    looker = _Looker(frozenset(needed_steps(config, start.number)), store, labels)
    follow(config, start, labels, looker)
    return looker.found


class _Looker:
    """A Maker that only looks."""

    def __init__(self, needed: Set[str], store: Store, labels: Path) -> None:
        self.needed = needed
        self.store = store
        self.labels = labels
        self.run = labels.parent.parent.parent
        self.found: dict[str, Planned] = {}

    def stage(self, stage: Stage, config: BaseModel | None, **inputs: Any) -> Planned | None:
        if stage.name not in self.needed or config is None:
            return None
        planned = self._look(stage, config, inputs)
        self.found[stage.name] = planned
        return planned

    def _look(self, stage: Stage, config: BaseModel, inputs: dict[str, Any]) -> Planned:
        places: dict[str, Any] = {}
        for name, value in inputs.items():
            if isinstance(value, Planned):
                place = value.place(stage.inputs[name])
                if place is None:
                    return Planned(stage.name, True, after=value.step)
                places[name] = place
            else:
                places[name] = value
        _, digests = resolve_inputs(stage, places, self.store)
        key = make_key(stage.name, stage.version, config, digests)
        entry = self.store.find(stage.name, key)
        if not isinstance(entry, Entry):
            return Planned(stage.name, True, key)
        return Planned(stage.name, True, key, entry=entry, output=entry.path / stage.output)

    def sync(self, name: str, *arguments: Any) -> Planned | None:
        if name not in self.needed:
            return None
        there: Path | dict[str, Any] | None = None
        if name == "freeze" and self.labels.exists():
            there = self.labels
        elif name == "promote":
            there = self._decided(*arguments)
        self.found[name] = Planned(name, False, output=there)
        return self.found[name]

    def _decided(
        self, config: RoundConfig, lineage: Lineage, aligned: Planned, evaluation: Planned
    ) -> dict[str, Any] | None:
        if not (aligned.entry and evaluation.entry):
            return None
        policy = policy_of(self.store, lineage.round, aligned.entry.path.name)
        candidate = Candidate(policy, lineage.incumbent, evaluation.entry.metrics)
        known = read(self.run).answer(candidate.question(config.promotion))
        return known.verdict if known else None
