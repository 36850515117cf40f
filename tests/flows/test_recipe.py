"""What goes into the steps of a first round, and of a later one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel

from flows.config import RoundConfig
from flows.lineage import Lineage, Start
from flows.recipe import follow
from flows.stages import Stage

FIRST: dict[str, Any] = {
    "lineage": Lineage(round=0),
    "number": 0,
    "initial": None,
    "incumbent": None,
    "completions": [],
    "pairs": [],
    "reward_model": None,
}
LATER = FIRST | {
    "lineage": Lineage(round=1),
    "number": 1,
    "initial": Path("sft of round 0"),
    "incumbent": Path("policy of round 0"),
    "completions": [Path("completions of round 0")],
    "pairs": [Path("pairs of round 0")],
    "reward_model": Path("reward model of round 0"),
}


class Recorder:
    """A Maker that makes nothing: a step is its name."""

    def __init__(self) -> None:
        self.inputs: dict[str, dict[str, Any]] = {}
        self.syncs: dict[str, tuple[Any, ...]] = {}

    def stage(self, stage: Stage, config: BaseModel | None, **inputs: Any) -> str | None:
        if config is None:
            return None
        assert set(inputs) <= set(stage.inputs)
        self.inputs[stage.name] = {k: v for k, v in inputs.items() if v is not None}
        return f"new {stage.name}"

    def sync(self, name: str, *arguments: Any) -> str:
        self.syncs[name] = arguments
        return f"new {name}"


def steps(start: dict[str, Any], **given: Any) -> Recorder:
    config = RoundConfig.model_validate(
        {"name": "x", "model": "m", "prompts": {"path": "p"}, "sft": {"data": "d"}} | given
    )
    recorder = Recorder()
    follow(config, cast(Start, SimpleNamespace(**start)), Path("labels.parquet"), recorder)
    return recorder


def test_the_first_round_starts_from_the_initial_policy() -> None:
    made = steps(FIRST).inputs
    assert made["completions"] == {"policy": "new sft", "prompts": "new prompts"}
    assert made["reward"] == {
        "policy": "new sft",
        "pairs": "new pairs",
        "completions": "new completions",
    }
    assert made["ppo"]["policy"] == "new sft"
    assert "reference" not in made["ppo"]
    assert "incumbent" not in made["evaluate"]
    assert "lineage" not in made["report"]
    assert steps(FIRST).syncs["publish"][1] == "x"


def test_a_later_round_starts_from_the_incumbent_and_all_earlier_preferences() -> None:
    recorder = steps(LATER)
    made = recorder.inputs
    assert "sft" not in made
    assert made["completions"] == {
        "policy": LATER["incumbent"],
        "prompts": "new prompts",
        "earlier": LATER["completions"],
    }
    assert made["reward"]["earlier"] == LATER["pairs"]
    assert made["reward"]["start"] == LATER["reward_model"]
    assert made["ppo"]["policy"] == LATER["incumbent"]
    assert "reference" not in made["ppo"], "the policy itself"
    compared = {name: made["evaluate"][name] for name in ("initial", "candidate", "incumbent")}
    assert compared == {
        "initial": LATER["initial"],
        "candidate": "new ppo",
        "incumbent": LATER["incumbent"],
    }
    assert "sft" not in made["report"]
    assert recorder.syncs["publish"][1] == "x, round 1"


@pytest.mark.parametrize("sft", [{"data": "d"}, None])
def test_after_a_refusal_a_round_starts_from_the_initial_policy_again(
    sft: dict[str, str] | None,
) -> None:
    initial = LATER["initial"] if sft else None
    start = LATER | {"incumbent": None, "initial": initial}
    made = steps(start, sft=sft, later_rounds={"anchor": "initial"}).inputs
    for stage in ("completions", "reward", "ppo"):
        assert made[stage]["policy"] == (initial or "m")
    assert "reference" not in made["ppo"]
    assert "incumbent" not in made["evaluate"]
    assert made["reward"]["earlier"] == LATER["pairs"]


def test_ppo_is_anchored_as_configured() -> None:
    made = steps(LATER, later_rounds={"anchor": "initial"}).inputs
    assert made["ppo"]["policy"] == LATER["incumbent"]
    assert made["ppo"]["reference"] == LATER["initial"]
    assert "reference" not in steps(FIRST, later_rounds={"anchor": "initial"}).inputs["ppo"]


def test_given_pairs_give_the_same_reward_model_in_every_round() -> None:
    given = {"preferences": {"data": "pairs"}}
    first, later = (steps(start, **given).inputs["reward"] for start in (FIRST, LATER))
    assert set(first) == set(later)
    assert later["policy"] == LATER["initial"]
