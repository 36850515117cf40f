"""The round's tasks: one for every stage, one for each dealing with people, one for the dashboard.
They call what knows no Prefect, and say what may be tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from pydantic import BaseModel

from flows import answers, dashboard, freezing, publication, servers
from flows.answers import Answered
from flows.config import RoundConfig
from flows.flow_runs import stop_if_cancelled
from flows.freezing import FrozenLabels
from flows.gate import Opened, Pending, look_once, wait_for_rankings
from flows.gpu import gpu_slot, runs_on_gpu
from flows.history import FILE, policy_of
from flows.lineage import Lineage
from flows.promotion import Candidate, ask_gate
from flows.publication import Published
from flows.retriable import may_pass
from flows.runner import StageError, StageResult, run_stage
from flows.stages import Kind, Stage
from flows.store import Store
from labeling.label_studio import LabelStudio
from labeling.tally import Tally

logger = logging.getLogger(__name__)

T = TypeVar("T")


def can_help(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try of a task can end otherwise. A wrong input, config or user function
    stays wrong; a killed process or a server that was away may not be so again."""
    return may_end_otherwise(state.data)


def may_end_otherwise(error: Any) -> bool:
    """Whether another try can end otherwise than with this error."""
    if isinstance(error, StageError):
        return error.retriable
    return isinstance(error, BaseException) and may_pass(error)


# A server that restarts is back after 4 to 20 s, so the two delays together are never below that.
_RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(backoff_factor=12),
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": can_help,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@dataclass(frozen=True)
class Summary:
    """Nothing but the dashboard holds the result."""


@dataclass(frozen=True)
class Promoted:
    """What the gate said (history.Decision.verdict), and where it is written."""

    output: dict[str, Any]
    where: str
    reused: bool


class Outcome(Generic[T]):
    """A step's result, as tasks hand it on. Prefect looks into dataclasses and dicts, and would
    draw an arrow for each field; this it takes for one thing."""

    def __init__(self, value: T) -> None:
        self.value = value


Answer: TypeAlias = Outcome[T] | State[Any]


@task(task_run_name="{stage.name}", **_RETRIES)
def make_stage(
    stage: Stage, config: BaseModel, inputs: dict[str, Any], noted: str | None = None
) -> Answer[StageResult]:
    """The stage's entry in the store; a state named Reused when it was there. `noted`: the key of
    the one to stay with while it is whole."""
    places = {name: _place(stage.inputs[name], value) for name, value in inputs.items()}
    slot = gpu_slot() if runs_on_gpu(config) else None
    home, lines = servers.default_home(), dashboard.Lines(stage.name)
    return _answer(run_stage(stage, config, places, home, lines, slot=slot, noted=noted))


@task(task_run_name="publish", **_RETRIES)
def publish(
    config: RoundConfig, title: str, completions: Outcome[StageResult], frozen: Path
) -> Answer[Published]:
    """The completions as tasks in the Label Studio project of that title; refuses before anything
    is published when the labels frozen earlier are of other completions."""
    file = completions.value.output
    known = freezing.find_frozen(frozen, file)
    return _answer(
        publication.publish(
            label_studio(),
            title,
            config.labeling,
            file,
            frozen.parent,
            is_frozen=known is not None,
        )
    )


@task(task_run_name="simulated labelers", **_RETRIES)
def simulate(config: RoundConfig, published: Outcome[Published], frozen: Path) -> Answer[Answered]:
    """The answers of simulated labelers, if there are any and they still matter."""
    if frozen.exists():
        return _answer(Answered(0))
    return _answer(answers.simulate(label_studio(), published.value, config.labeling))


@task(task_run_name="gate", **_RETRIES)
def gate(
    config: RoundConfig,
    published: Outcome[Published],
    labeled: Outcome[Any],
    frozen: Path,
    on_wait: Callable[[Tally, str], None],
    is_suspended: bool,
) -> Answer[Opened | Pending]:
    """Whether there are enough rankings, or the labels are frozen already. If not, wait for them
    here, or `is_suspended`: look once."""
    known = freezing.find_frozen(frozen, published.value.completions)
    if known is not None:
        return _answer(Opened(known.rankings))
    show = dashboard.Rankings(config.name, frozen.parent.name)

    def tell(stands: Tally, page: str) -> None:
        stop_if_cancelled(str(runtime.flow_run.id))
        on_wait(stands, page)
        show(stands, page)

    if not is_suspended:
        return _answer(
            wait_for_rankings(label_studio(), published.value, config.labeling, label_studio, tell)
        )
    seen = look_once(label_studio(), published.value, config.labeling)
    if isinstance(seen, Pending):
        tell(seen.tally, seen.page)
        return Completed(name="Waiting", data=Outcome(seen))
    return _answer(seen)


@task(task_run_name="freeze labels", **_RETRIES)
def freeze(
    published: Outcome[Published], opened: Outcome[Opened], path: Path
) -> Answer[FrozenLabels]:
    """The rankings that this round learns from, written once."""
    known = freezing.find_frozen(path, published.value.completions)
    if known is not None:
        return _answer(known)
    snapshot = opened.value.snapshot
    assert snapshot is not None  # without frozen labels the gate has looked
    return _answer(freezing.freeze(published.value, snapshot, path))


@task(task_run_name="promotion", **_RETRIES)
def promote(
    config: RoundConfig,
    lineage: Lineage,
    aligned: Outcome[StageResult],
    evaluation: Outcome[StageResult],
    run: Path,
) -> Answer[Promoted]:
    """The gate's decision on the round's policy, which is taken once."""
    store = Store(servers.default_home() / "store")
    policy = policy_of(store, lineage.round, aligned.value.key)
    candidate = Candidate(policy, lineage.incumbent, evaluation.value.metrics)
    decision, was_there = ask_gate(run, store, candidate, config.promotion)
    return _answer(Promoted(decision.verdict, str(run / FILE), was_there))


@task(task_run_name="summary", **_RETRIES)
def summarise(document: dict[str, Any], last: Outcome[Any]) -> Answer[Summary]:
    """The round's table and its outcome, as artifacts on the dashboard; after its last step."""
    dashboard.show_summary(document)
    return _answer(Summary())


def _answer(result: T) -> Answer[T]:
    """Only the name of the state tells on the dashboard that nothing had to be done."""
    outcome = Outcome(result)
    return Completed(name="Reused", data=outcome) if reused(result) else outcome


def reused(result: Any) -> bool:
    return bool(getattr(result, "reused", False))


def _place(kind: Kind, value: Any) -> Any:
    """What a stage is given of another step's result; paths and names stay as they are."""
    if not isinstance(value, Outcome):
        return value
    return value.value.path if kind == "entry" else value.value.output


def label_studio() -> LabelStudio:
    return servers.reach_label_studio(servers.default_home())
