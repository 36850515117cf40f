"""What can be configured from prompts to preference pairs. No torch, no Prefect."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, field_validator, model_validator

from labeling import addresses

# A field that cannot change a step's result (a path whose content is digested apart, a poll
# interval, a device) is marked with this and stays out of the step's key (flows/store.py).
UNKEYED: dict[str, JsonValue] = {"keyed": False}


_TEN_YEARS_H = 87_600


class Prompts(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Where prompts come from, and which of them are kept apart for evaluation."""

    path: str = Field(
        description="Prompts: a JSONL or Parquet file, or a data set's name on the hub. Each row "
        "has a column `prompt`: plain text, or a list of messages with `role` and `content`.",
        json_schema_extra=UNKEYED,
    )
    evaluation_path: str | None = Field(
        None,
        description="Prompts for evaluation only, in the same form. Without it, "
        "`evaluation_fraction` of `path` is kept apart.",
        json_schema_extra=UNKEYED,
    )
    evaluation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the prompts kept apart for evaluation when `evaluation_path` is not "
        "given.",
    )
    column: str = Field("prompt", description="The column that holds the prompt.")
    limit: int | None = Field(
        None,
        ge=2,
        description="Use at most so many prompts of `path`, chosen by the seed, before the split.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the choice and of the split.")


class SimulatedLabeler(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A labeler that is a function: it answers through Label Studio's own API, as a person would
    through the page. For demonstrations and tests; a real round has none."""

    name: str = Field("simulated", description="Name of this labeler, part of its seed.")
    score: str = Field(
        description="The function that says how good a completion is, as `module_or_file:function` "
        "with the form score(prompts, completions) -> list of floats. File paths are relative to "
        "the config's folder.",
        json_schema_extra=UNKEYED,
    )
    noise: float = Field(
        0.0, ge=0, description="Standard deviation of the noise added to each score."
    )
    tie_within: float = Field(
        0.0, ge=0, description="Neighbours whose scores differ by at most this share a tier."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the noise.")


def _how_many(given: Any) -> Any:
    """A number of rankings (an int), or a share of all (a float). What a flag gives is text."""
    if isinstance(given, str):
        with suppress(ValueError):  # told below
            given = int(given) if given.strip().isdecimal() else float(given)
    is_number = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    if is_number or (isinstance(given, float) and 0 < given <= 1):
        return given
    raise ValueError("must be a number of rankings from 1 on, or a share of all such as 0.8")


# JSON that went through a browser has 1 where 1.0 was: so no field keeps the share 1.0.
_Rankings = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)], BeforeValidator(_how_many)
]


class Labeling(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How completions are put before people."""

    instructions: str | None = Field(
        None,
        description="What labelers read before they begin: a text in Markdown, or the path of an "
        "`.md` file, relative to the config's folder. Without it, Rankloop's own: helpful, honest, "
        "harmless, and how to use the page.",
    )
    wanted: _Rankings | None = Field(
        None,
        description="How many usable rankings open the gate: a number of them (400), on whichever "
        "tasks, or a share of all (0.8). Without it all: one for each task, and `overlap` for the "
        "tasks that several labelers rank. 1 is one ranking; for all of them, give nothing.",
    )
    deadline_hours: float | None = Field(
        None,
        gt=0,
        le=_TEN_YEARS_H,
        description="From so many hours on, counted from when the tasks were first before "
        "labelers, `minimum` rankings open the gate. While they are not there, the round goes on "
        "waiting. Without it there is no deadline.",
        json_schema_extra=UNKEYED,
    )
    minimum: _Rankings = Field(
        1,
        description="What is enough after `deadline_hours`: a number of usable rankings, or a "
        "share of all, as in `wanted`. One that is not less than `wanted` changes nothing.",
        json_schema_extra=UNKEYED,
    )
    remind_hours: float = Field(
        24.0,
        gt=0,
        le=_TEN_YEARS_H,
        description="When nobody has answered for so many hours, the waiting round says so, and "
        "again after as many more.",
        json_schema_extra=UNKEYED,
    )
    overlap: int = Field(
        1,
        ge=1,
        description="Labelers who rank the same task, on `overlap_share` of the tasks; the others "
        "go to one. More than one is what measuring agreement takes.",
    )
    overlap_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="About which share of the tasks goes to `overlap` labelers. Which tasks they "
        "are follows from their text.",
    )
    bind: str | None = Field(
        None,
        description="The IPv4 address on which the embedded Label Studio listens, e.g. 0.0.0.0 for "
        "all of this machine's. What a config names here or in `public_url` stays until another "
        "names it; without either: 127.0.0.1, this machine only. A server of your own "
        "(LABEL_STUDIO_URL) is left as it is.",
        json_schema_extra=UNKEYED,
    )
    public_url: str | None = Field(
        None,
        description="Where labelers' browsers find the embedded Label Studio, e.g. "
        "https://rank.example.org: the TLS proxy before it.",
        json_schema_extra=UNKEYED,
    )
    poll_seconds: float = Field(
        5.0,
        gt=0,
        description="Seconds between two looks at Label Studio while waiting.",
        json_schema_extra=UNKEYED,
    )
    snapshot_minutes: float = Field(
        15.0,
        gt=0,
        description="While waiting, what people have ranked is exported and kept at least this "
        "often, if anything changed: in Label Studio's community edition every account can delete "
        "everything.",
        json_schema_extra=UNKEYED,
    )
    simulated: tuple[SimulatedLabeler, ...] = Field(
        (), description="Simulated labelers; empty when people rank."
    )

    @field_validator("wanted")
    @classmethod
    def _all_is_not_a_share(cls, wanted: float | None) -> float | None:
        return None if isinstance(wanted, float) and wanted == 1 else wanted

    @field_validator("minimum")
    @classmethod
    def _minimum_is_less_than_all(cls, minimum: float) -> float:
        if isinstance(minimum, float) and minimum == 1:
            raise ValueError("must be less than all: a share such as 0.5, or 1 for one ranking")
        return minimum

    @model_validator(mode="after")
    def _minimum_is_less_than_wanted(self) -> Self:
        if type(self.minimum) is type(self.wanted) and self.minimum > (self.wanted or 0):
            raise ValueError(
                f"minimum is {self.minimum}, and wanted is {self.wanted}: after the deadline no "
                "more can be asked for than before it"
            )
        return self

    @field_validator("bind")
    @classmethod
    def _bind_is_an_address(cls, bind: str | None) -> str | None:
        return None if bind is None else addresses.checked_bind(bind)

    @field_validator("public_url")
    @classmethod
    def _public_url_is_one(cls, url: str | None) -> str | None:
        return None if url is None else addresses.checked_public_url(url)

    @field_validator("simulated")
    @classmethod
    def _names_are_different(
        cls, simulated: tuple[SimulatedLabeler, ...]
    ) -> tuple[SimulatedLabeler, ...]:
        names = [labeler.name for labeler in simulated]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"each must have a name of its own ({doubled!r} is there twice)")
        return simulated


class Preferences(BaseModel, frozen=True, extra="forbid"):
    """Preference pairs that exist already, in place of completions that people rank."""

    data: str = Field(
        description="Preference pairs in TRL's format: a JSONL or Parquet file, or a data set's "
        "name on the hub, with columns `chosen` and `rejected` (texts, or messages), `prompt` "
        "unless both begin with it, and perhaps a number `margin`. In place of `chosen` and "
        "`rejected` there may be `completions`, a list of two, with `labels`: [1, 0] or [0, 1], "
        "[0.5, 0.5] or [1, 1] for a tie, [0, 0] for neither (left out). With preferences no "
        "completions are ranked, and rewards are normalised on the pairs' own texts.",
        json_schema_extra=UNKEYED,
    )
    ties: Literal["drop", "keep"] = Field(
        "drop", description="What becomes of ties; `pairs.ties` says what `keep` means."
    )


class Pairs(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How a ranking becomes preference pairs."""

    strategy: Literal["all", "adjacent", "best_vs_rest"] = Field(
        "all",
        description="`all`: every pair of completions in different tiers. `adjacent`: only pairs "
        "of neighbouring tiers. `best_vs_rest`: each of the best tier against all below it.",
    )
    ties: Literal["drop", "keep"] = Field(
        "drop",
        description="Two completions in one tier: `drop` makes no pair of them. `keep` writes them "
        "in both orders with margin 0 and `tie` true, which asks the reward model for equal "
        "scores; such a tie weighs as much as two preferences. `adjacent` keeps ties of every "
        "tier, `best_vs_rest` those of the best.",
    )
    labelers: Literal["each", "majority"] = Field(
        "each",
        description="Several labelers on one task: `each` gives the pairs of each labeler's "
        "ranking, contradictions included. `majority` gives one pair for two completions, as most "
        "of their labelers prefer (equally many is a tie), with the mean margin of these; a task "
        "that more than half of its labelers call a bad prompt gives none. A pair is made when "
        "`strategy` makes it of one ranking at least, and then all who ranked both vote.",
    )
    margin_per_tier: float = Field(
        0.0,
        ge=0,
        description="Margin of a pair for each tier that lies between its completions; 0 asks the "
        "reward model for no margin.",
    )
