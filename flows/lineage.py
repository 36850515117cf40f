"""From a policy back to all that it came from: what a round starts from, noted once, and what the
rounds before it were made of. No Prefect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flows.config import RoundConfig, StopAfter
from flows.store import Entry, Store, digest_of_json, write_json
from labeling.errors import InputError

PINNED = "lineage.json"


class Policy(BaseModel, frozen=True):
    """A round's policy: the key of its entry in the store, and the digest of its files."""

    round: int
    key: str
    digest: str

    def __str__(self) -> str:
        return f"round {self.round}'s policy"


def named(policy: Policy | None) -> str:
    """`round 3's policy`, or `the initial policy` when no round's is promoted."""
    return "the initial policy" if policy is None else str(policy)


class Ancestor(BaseModel, frozen=True):
    """An earlier round as the later one found it.

    `config` is a digest of its config, which its own round.json holds; `data` are digests by what
    they are of, the frozen rankings among them; `stages` are keys in the store; `promotion` says
    what the gate decided.
    """

    round: int
    started_from: Policy | None
    config: str
    seed: int
    commits: tuple[str, ...]
    versions: dict[str, str]
    data: dict[str, str]
    labels: dict[str, Any]
    stages: dict[str, str]
    win_rate: float | None
    win_rate_vs_incumbent: float | None
    promotion: str | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Ancestor:
        """Raises KeyError, TypeError or ValidationError for what is no round.json."""
        made = {name: step for name, step in document["stages"].items() if "key" in step}
        evaluation = document.get("evaluation", {})
        labels = document.get("labels", {})
        return cls(
            round=document["round"],
            started_from=document.get("started_from"),
            config=digest_of_json(document["config"]),
            seed=document["seed"],
            commits=tuple(sorted({s["commit"] for s in made.values() if s.get("commit")})),
            versions=document["versions"],
            data=document.get("data", {}),
            labels={n: labels[n] for n in ("rankings", "labelers", "pairs") if n in labels},
            stages={name: step["key"] for name, step in made.items()},
            win_rate=evaluation.get("win_rate"),
            win_rate_vs_incumbent=evaluation.get("win_rate_vs_incumbent"),
            promotion=(document.get("promotion") or {}).get("what"),
        )


class Lineage(BaseModel, frozen=True):
    """What a round starts from: the incumbent (None: the initial policy), and all rounds before."""

    round: int
    incumbent: Policy | None = None
    earlier: tuple[Ancestor, ...] = ()


def begin(run: Path, number: int, incumbent: Policy | None) -> Lineage:
    """The round's lineage: as it was noted when the round began, or else as it is now, which is
    noted. So a round that waits for people goes on as it began, whatever is promoted meanwhile.

    Args:
        run: the run's folder.
        incumbent: what is promoted now.

    Raises:
        InputError: the round before it is not there, or a file cannot be read.
    """
    lineage = look(run, number, incumbent)
    pinned = _pinned(run, number)
    if number and not pinned.exists():
        write_json(pinned, lineage.model_dump(mode="json"))
    return lineage


def look(run: Path, number: int, incumbent: Policy | None) -> Lineage:
    """What `begin` gives, and nothing is noted."""
    if number == 0:
        return Lineage(round=0)
    pinned = _pinned(run, number)
    if pinned.exists():
        try:
            return Lineage.model_validate_json(pinned.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{pinned} cannot be read ({type(error).__name__}): it says what the round started "
                "from; bring it back from a backup, or remove the round's folder to begin it anew"
            ) from error
    earlier = tuple(_ancestors(run, number))
    if len(earlier) < number:
        raise InputError(
            f"round {number} of {run.name} comes after round {number - 1}, and there "
            f"{'is' if len(earlier) == 1 else 'are'} {len(earlier)} so far: `--rounds "
            f"{number + 1}` makes all of them"
        )
    return Lineage(round=number, incumbent=incumbent, earlier=earlier)


def next_round(run: Path, stop_after: StopAfter | None) -> int:
    """The round to work on now: the newest one while it is not complete, or was stopped before the
    end that `stop_after` of the config sets it now; else the one after it."""
    numbers = [
        int(path.parent.name)
        for path in run.glob("rounds/[0-9]*/round.json")
        if path.parent.name.isdecimal()
    ]
    if not numbers:
        return 0
    newest = max(numbers)
    return newest + _is_over(_document(run, newest), stop_after)


def _is_over(document: Mapping[str, Any], stop_after: StopAfter | None) -> bool:
    ends: list[str | None] = [None]  # it was made to its end
    if stop_after is not None:
        stops = get_args(StopAfter)
        ends += stops[stops.index(stop_after) :]
    return document["status"] == "complete" and document.get("stopped_after") in ends


def _pinned(run: Path, number: int) -> Path:
    return run / "rounds" / f"{number:03d}" / PINNED


def _document(run: Path, number: int) -> dict[str, Any]:
    path = run / "rounds" / f"{number:03d}" / "round.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        document["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}): `rankloop run CONFIG --round "
            f"{number}` writes it anew"
        ) from error
    return document


def _ancestors(run: Path, number: int) -> Iterator[Ancestor]:
    for earlier in range(number):
        if not (run / "rounds" / f"{earlier:03d}" / "round.json").exists():
            return
        document = _document(run, earlier)
        try:
            yield Ancestor.of(document)
        except (KeyError, TypeError, ValidationError) as error:
            raise InputError(
                f"round {earlier} of {run.name} was written by another version of Rankloop "
                f"({type(error).__name__}): `rankloop run CONFIG --round {earlier}` writes it anew"
            ) from error


# --- where the files are --------------------------------------------------------------------------


class Start:
    """A round's lineage as files in the store: what its steps take from earlier rounds."""

    def __init__(self, lineage: Lineage, store: Store) -> None:
        """Raises InputError when something of an earlier round is not in the store any more."""
        self.lineage = lineage
        self.number = lineage.round
        self._store = store
        earlier = lineage.earlier
        self.incumbent = self._policy(lineage.incumbent)
        self.initial = self._of(earlier[0], "sft", "policy") if earlier else None
        self.completions = self._all("completions", "completions.parquet")
        self.pairs = self._all("pairs", "pairs.parquet")
        learned = [a for a in earlier if "reward" in a.stages]
        self.reward_model = self._of(learned[-1], "reward", "reward_model") if learned else None

    def _policy(self, policy: Policy | None) -> Path | None:
        return self._whole(policy.round, "ppo", policy.key) / "policy" if policy else None

    def _all(self, stage: str, file: str) -> list[Path]:
        found = (self._of(ancestor, stage, file) for ancestor in self.lineage.earlier)
        return [path for path in found if path is not None]

    def _of(self, ancestor: Ancestor, stage: str, file: str) -> Path | None:
        key = ancestor.stages.get(stage)
        return None if key is None else self._whole(ancestor.round, stage, key) / file

    def _whole(self, number: int, stage: str, key: str) -> Path:
        entry = self._store.find(stage, key)
        if not isinstance(entry, Entry):
            trouble = "is not in the store any more" if entry is None else entry.reason
            raise InputError(
                f"{stage} {key} of round {number}, from which round {self.number} starts: "
                f"{trouble}; `rankloop run CONFIG --round {number}` makes it anew"
            )
        return entry.path


# --- what a round is made of ----------------------------------------------------------------------


def used_data(
    config: RoundConfig, manifests: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """What the round was made from: what it is, its name without folders, digest or commit.

    Args:
        manifests: of the stages that made it, by stage.
    """
    prompts, sft, preferences = config.prompts, config.sft, config.preferences
    model = ("model", config.model, "evaluate", "initial")
    if "sft" in manifests:
        model = ("model", config.model, "sft", "model")
    elif sft:  # a later round
        model = ("initial policy", "of the first round", "evaluate", "initial")
    rows = [
        model,
        ("prompts", prompts and prompts.path, "prompts", "source"),
        ("evaluation prompts", prompts and prompts.evaluation_path, "prompts", "evaluation"),
        ("demonstrations for SFT", sft and sft.data, "sft", "data"),
        ("preference pairs", preferences and preferences.data, "preferences", "data"),
        ("rankings", "labels.parquet", "pairs", "labels"),
        ("judge", config.evaluation.judge, "evaluate", "judge"),
        ("reward function", config.ppo.reward_function, "ppo", "reward_function"),
    ]
    rows += [
        (f"guard: {name}", reference, "evaluate", f"guards.{name}")
        for name, reference in config.evaluation.guards.items()
    ]
    # A folder's name may say more of the machine than the report should; a hub name has one slash.
    return [
        (what, Path(name).name if Path(name).is_absolute() else name, str(digest))
        for what, name, stage, role in rows
        if name and (digest := _digest(manifests, stage, role))
    ]


def _digest(manifests: Mapping[str, Mapping[str, Any]], stage: str, role: str) -> Any:
    found: Any = manifests.get(stage, {}).get("inputs", {})
    for part in role.split(".", 1):
        found = found.get(part, {})
    return found
