"""RoundConfig: everything that a round can be told, composed of the sections of its steps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue, model_validator

from labeling.config import UNKEYED, Labeling, Pairs, Preferences, Prompts
from ppo.config import PPO, SFT, Evaluation, Sampling
from reward.config import RewardTraining

SECTIONS: dict[str, type[BaseModel]] = {
    "prompts": Prompts,
    "sft": SFT,
    "sampling": Sampling,
    "labeling": Labeling,
    "preferences": Preferences,
    "pairs": Pairs,
    "reward": RewardTraining,
    "ppo": PPO,
    "evaluation": Evaluation,
}
OPTIONAL = ("prompts", "sft", "preferences")  # without them a step is left out
StopAfter = Literal["completions", "labels", "reward"]  # in the round's order
# Said once at the top, they hold for every section that has the field and does not set its own.
SHARED = ("seed", "device", "threads", "dtype", "max_new_tokens")


class LaterRounds(BaseModel, frozen=True, extra="forbid"):
    """What is different in the rounds after the first, which start from the incumbent and learn
    from the preferences of all rounds."""

    anchor: Literal["incumbent", "initial"] = Field(
        "incumbent",
        description="The reference that PPO's KL is measured from: the policy that the round "
        "starts from, or the initial policy.",
    )
    changes: dict[
        Literal["sampling", "labeling", "pairs", "reward", "ppo"], dict[str, JsonValue]
    ] = Field(
        {},
        description="Fields that have another value than in the first round, by section, e.g. "
        "`reward: {epochs: 1}`.",
    )


class Promotion(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """When the gate makes a round's policy the incumbent, from which the next round starts."""

    min_win_rate: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="What the lower bound of the win rate over the incumbent has to reach; how "
        "sure it is says `evaluation.confidence`.",
    )
    kl_budget: float | None = Field(
        None,
        gt=0,
        description="KL to the initial policy in nats a response above which nothing is promoted.",
    )
    max_guard_drop: dict[str, float] = Field(
        {},
        description="How far a guard's mean may fall below the incumbent's, by the names of "
        "`evaluation.guards`, e.g. `valid: 0.05`.",
    )


class RoundConfig(BaseModel, frozen=True, extra="forbid"):
    """One run: a model and prompts in, rounds of rankings and training, an aligned model out."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="Name of the run: its folder under runs/ and its Label Studio project.",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of every step that does not set its own."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device of every step; `auto` takes CUDA where it is there.",
        json_schema_extra=UNKEYED,
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of every step; torch's own choice without it."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of every step that does not set its own."
    )
    max_new_tokens: int = Field(
        128, ge=1, description="Longest completion in tokens, in sampling, PPO and evaluation."
    )
    model: str = Field(
        description="The model to align: a folder in transformers' format, or a name on the hub.",
        json_schema_extra=UNKEYED,
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    stop_after: StopAfter | None = Field(
        None,
        description="End the round, complete, after its completions, its frozen labels or its "
        "reward model. Without it the next run goes on from there.",
        json_schema_extra=UNKEYED,
    )
    prompts: Prompts | None = Field(
        None,
        description="What the policy answers. Only a round that stops after a reward model of "
        "given preferences needs none.",
    )
    sft: SFT | None = Field(
        None, description="Fine-tune the model first; without it the model is the initial policy."
    )
    sampling: Sampling = Sampling()
    labeling: Labeling = Labeling()
    preferences: Preferences | None = Field(
        None, description="Learn from these pairs; without them people rank completions."
    )
    pairs: Pairs = Pairs()
    reward: RewardTraining = RewardTraining()
    ppo: PPO = PPO()
    evaluation: Evaluation = Evaluation()
    promotion: Promotion = Promotion()
    later_rounds: LaterRounds = LaterRounds()

    def for_round(self, number: int) -> RoundConfig:
        """What holds in the round: from number 1 on with `later_rounds.changes`, and completions
        are drawn with another seed, or nobody would see anything new where prompts come again.

        Raises:
            ValidationError: a change is of no field, or not allowed there.
        """
        if number == 0:
            return self
        values = self.model_dump()
        values["sampling"]["seed"] = (self.sampling.seed + number) % 2**32
        for section, changed in self.later_rounds.changes.items():
            values[section] |= changed
        return RoundConfig.model_validate(values)

    @model_validator(mode="before")
    @classmethod
    def _share(cls, given: Any) -> Any:
        """Carry SHARED fields into the sections that did not set their own."""
        if not isinstance(given, dict):
            return given
        shared = {
            name: given.get(name, cls.model_fields[name].default)
            for name in SHARED
            if name in cls.model_fields
        }
        filled = dict(given)
        for section, model in SECTIONS.items():
            value = filled.get(section, None if section in OPTIONAL else {})
            if isinstance(value, dict):
                inherited = {k: v for k, v in shared.items() if k in model.model_fields}
                filled[section] = inherited | value
        return filled


def project_title(name: str, number: int) -> str:
    """Of a round's Label Studio project; no run's name has a comma in it."""
    return name if number == 0 else f"{name}, round {number}"
