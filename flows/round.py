"""The round as a Prefect flow: prompts in, an aligned model out.

It follows flows/recipe.py. Every step is one task (flows/tasks.py); stages take from the store what
is there already, so resuming, retrying and running again are the same thing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.results import ResultRecord
from pydantic import BaseModel

from flows.config import RoundConfig
from flows.freezing import FrozenLabels
from flows.lineage import Start
from flows.plan import needed_steps, not_used
from flows.progress import Event, Step
from flows.recipe import follow
from flows.record import RoundRecord
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
    mark_killed,
    promote,
    publish,
    reused,
    simulate,
    summarise,
)

logger = logging.getLogger(__name__)

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


@flow(
    name="rankloop-round",
    flow_run_name="{config.name}-{number:03d}",
    retries=0,
    log_prints=False,
)
def rankloop_round(config: RoundConfig, number: int = 0) -> dict[str, Any]:
    """One round here and now; returns what round.json holds. Finished stages are reused.

    Args:
        config: the run's.
        number: which of its rounds; the first one is 0.
    """
    config = config.for_round(number)
    steps = needed_steps(config, number)
    with RoundRecord(Path.cwd() / "runs", config, number) as record:
        record.document["addresses"]["dashboard"] = runtime.flow_run.ui_url
        record.save()
        for dashboard in record.document["killed"]:
            mark_killed(dashboard)
        record.document["killed"] = []
        record.save()
        for line in not_used(config):
            logger.warning(line)
        make = _Maker(record, {*steps, "summary"})
        start = Start(record.lineage, Store(default_home() / "store"))
        last = follow(config, start, record.labels_path, make)
        make.sync("summary", record.document, last)
    return record.document


# --- what goes with every step -------------------------------------------------------------------


class _Maker:
    """Calls a needed step's task, tells the terminal, and notes the outcome in round.json."""

    def __init__(self, record: RoundRecord, needed: Set[str]) -> None:
        self.record = record
        self.needed = needed

    def stage(
        self, stage: Stage, config: BaseModel | None, **inputs: Any
    ) -> Outcome[StageResult] | None:
        if stage.name not in self.needed or config is None:
            return None
        with self._announced(stage.name) as end:
            made: Outcome[StageResult] = _unwrap(make_stage(stage, config, inputs))
            line = headline(stage.name, made.value.metrics)
            self.record.add(made.value, line)
            end(made.value.reused, line)
        return made

    def sync(self, name: str, *arguments: Any) -> Outcome[Any] | None:
        if name not in self.needed:
            return None
        clock = time.monotonic()
        if name == "gate":
            arguments = (*arguments, self.record.wait)
        elif name == "promote":
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
