"""The round as a Prefect flow: prompts in, an aligned model out.

It follows flows/recipe.py. Every step is one task (flows/tasks.py); stages take from the store what
is there already, so resuming, retrying and running again are the same thing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.flow_runs import suspend_flow_run
from prefect.results import ResultRecord
from prefect.states import Cancelled, Completed, Crashed
from pydantic import BaseModel

from flows import dashboard
from flows.config import RoundConfig
from flows.flow_runs import CancelledByHand, is_alive, rename, stop_if_cancelled, waits
from flows.freezing import FrozenLabels
from flows.gate import Pending
from flows.lineage import Start
from flows.plan import needed_steps, not_used
from flows.prefect_environment import ROUND
from flows.progress import Event, Step, hear_our_loggers
from flows.recipe import follow
from flows.record import AtWork, RoundRecord, Taken
from flows.runner import StageResult
from flows.servers import default_home
from flows.stages import Stage
from flows.store import Store
from flows.summary import headline
from flows.tasks import (
    Outcome,
    freeze,
    gate,
    make_stage,
    may_end_otherwise,
    promote,
    publish,
    reused,
    simulate,
    summarise,
)
from flows.turns import round_of, take

logger = logging.getLogger(__name__)

# How long a resumed run waits for the process that was suspended to leave the round.
_PATIENCE_S = 60.0
# What these made in a run stays when it goes on, whatever changed meanwhile: people rank it.
_BEFORE_GATE = ("prompts", "sft", "completions")

_SYNCS: dict[str, Callable[..., Any]] = {
    "publish": publish,
    "simulated": simulate,
    "gate": gate,
    "freeze": freeze,
    "promote": promote,
    "summary": summarise,
}
_SAID: dict[Event, str] = {
    "begin": "begins",
    "made": "is done",
    "reused": "is there already",
    "failed": "failed",
}


def _run_name() -> str:
    parameters = runtime.flow_run.parameters
    return _name(parameters["config"], parameters.get("number"))


def _name(config: RoundConfig, number: int | None) -> str:
    return config.name if number is None else f"{config.name}-{number:03d}"


@flow(name=ROUND, flow_run_name=_run_name, retries=0, log_prints=False)
def rankloop_round(
    config: RoundConfig, number: int | None = None, folder: str = ""
) -> dict[str, Any] | State[Any]:
    """One round of a run, from its prompts to its report; returns what round.json holds. Finished
    steps are reused.

    In this process it waits for its labelers. As a run of a deployment it is suspended meanwhile,
    holds nothing, and `watch-rankings` resumes it.

    Args:
        config: The run, as a YAML file has it; paths are absolute.
        number: Which of its rounds; the first one is 0. Without it: the unfinished one, else a new
            one.
        folder: The folder that holds `runs/`. Without it: the one that `rankloop up` was called in.
    """
    hear_our_loggers()
    if folder:
        os.chdir(folder)
    is_deployed = runtime.deployment.id is not None
    try:
        return _take_up(config, number, str(runtime.flow_run.id), is_deployed)
    except CancelledByHand as cancelled:
        return Cancelled(message=str(cancelled))
    except Exception as error:
        if not (is_deployed and may_end_otherwise(error)):
            raise
        # A failed run is left alone; one that crashed goes on when the server is back.
        return Crashed(message=f"{error}; `watch-rankings` begins it again")


def _take_up(
    config: RoundConfig, number: int | None, flow_run: str, is_deployed: bool
) -> dict[str, Any] | State[Any]:
    runs = Path.cwd() / "runs"
    if number is None:
        number = take(runs / config.name, flow_run, config.stop_after, is_alive)
        if number is None:
            return _nothing_to_do(f"another run is at the newest round of {config.name}")
        rename(flow_run, _name(config, number))
    config = config.for_round(number)
    patience = _PATIENCE_S if is_deployed else 1.0
    try:
        with RoundRecord(runs, config, number, flow_run, patience, waits) as record:
            return _follow(config, number, record, is_deployed)
    except Taken as taken:
        if not is_deployed:
            raise
        is_ours = round_of(runs / config.name, flow_run) == number
        if is_ours and isinstance(taken, AtWork):
            # Suspended and resumed in the middle of a step, which goes on in the process before.
            return Crashed(message=f"{taken}; if that does not end it, `watch-rankings` goes on")
        return _nothing_to_do(str(taken))


def _follow(
    config: RoundConfig, number: int, record: RoundRecord, is_deployed: bool
) -> dict[str, Any]:
    steps = needed_steps(config, number)
    record.document["addresses"]["dashboard"] = runtime.flow_run.ui_url
    record.save()
    if is_deployed:
        dashboard.mark_left(str(runtime.flow_run.id))
    killed = record.document["killed"]
    record.document["killed"] = [page for page in killed if not dashboard.mark_killed(page)]
    record.save()
    for line in not_used(config):
        logger.warning(line)
    make = _Maker(record, {*steps, "summary"}, is_deployed)
    start = Start(record.lineage, Store(default_home() / "store"))
    last = follow(config, start, record.labels_path, make)
    make.sync("summary", record.document, last)
    return record.document


def _nothing_to_do(why: str) -> State[Any]:
    logger.warning("%s: nothing is begun", why)
    return Completed(name="Skipped", message=f"{why[:1].upper()}{why[1:]}: nothing is begun.")


# --- what goes with every step -------------------------------------------------------------------


class _Maker:
    """Calls a needed step's task, tells the terminal, and notes the outcome in round.json."""

    def __init__(self, record: RoundRecord, needed: Set[str], is_deployed: bool) -> None:
        self.record = record
        self.needed = needed
        self.is_deployed = is_deployed

    def stage(
        self, stage: Stage, config: BaseModel | None, **inputs: Any
    ) -> Outcome[StageResult] | None:
        if stage.name not in self.needed or config is None:
            return None
        with self._announced(stage.name) as end:
            noted = self.record.noted.get(stage.name) if stage.name in _BEFORE_GATE else None
            made: Outcome[StageResult] = _unwrap(make_stage(stage, config, inputs, noted))
            line = headline(stage.name, made.value.metrics)
            self.record.add(made.value, line)
            end(made.value.reused, line)
        return made

    def sync(self, name: str, *arguments: Any) -> Outcome[Any] | None:
        if name not in self.needed:
            return None
        if name == "gate":
            return self._gate(*arguments)
        return self._sync(name, *arguments)

    def _gate(self, *arguments: Any) -> Outcome[Any]:
        """Level-triggered: whoever resumes a suspended round, whenever, it looks once more."""
        while True:
            seen = self._sync("gate", *arguments, self.record.wait, self.is_deployed)
            if not isinstance(seen.value, Pending):
                return seen
            try:
                suspend_flow_run(timeout=None, key=f"rankings-{uuid4()}")
            except Pause:  # ends this process
                self.record.is_suspended = True
                raise

    def _sync(self, name: str, *arguments: Any) -> Outcome[Any]:
        clock = time.monotonic()
        if name == "promote":
            arguments = (*arguments, self.record.run)
        with self._announced(name) as end:
            done: Outcome[Any] = _unwrap(_SYNCS[name](*arguments))
            what = done.value.output if name == "promote" else vars(done.value)
            line, there = headline(name, what), reused(done.value)
            where = getattr(done.value, "where", "")
            if name == "publish" or (name == "gate" and where):  # it may be created anew there
                self.record.document["addresses"]["labeling"] = where
            elif name == "freeze":
                self.record.document["labels"] |= _labels_metrics(done.value)
            elif name == "promote":
                self.record.document["promotion"] = what
            self.record.add_sync(name, time.monotonic() - clock, there, line, where)
            end(there, line)
        return done

    @contextmanager
    def _announced(self, name: str) -> Iterator[Callable[[bool, str], None]]:
        clock = time.monotonic()

        def say(event: Event, line: str = "") -> None:
            step = Step(name, event, time.monotonic() - clock, line)
            message = ": ".join(part for part in (f"{name} {_SAID[event]}", line) if part)
            logger.info(message, extra={"step": step})

        stop_if_cancelled(str(runtime.flow_run.id))
        self.record.begin(name)
        say("begin")
        try:
            yield lambda there, line: say("reused" if there else "made", line)
        except BaseException:
            say("failed")
            raise


def _unwrap(outcome: Any) -> Any:
    # A task that returns a state hands that state back to a direct call, its data in a record.
    if not isinstance(outcome, State):
        return outcome
    return outcome.data.result if isinstance(outcome.data, ResultRecord) else outcome.data


def _labels_metrics(frozen: FrozenLabels) -> dict[str, Any]:
    metrics: dict[str, Any] = {"rankings": frozen.rankings, "labelers": frozen.labelers}
    if frozen.snapshot:
        metrics["snapshot"] = frozen.snapshot
    return metrics if frozen.reused else metrics | {"refused": frozen.refused}
