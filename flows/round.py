"""The round as a Prefect flow: prompts in, an aligned model out.

`rankloop_round` is the recipe. Every step is one task (flows/tasks.py); stages take from the store
what is there already, so resuming, retrying and running again are the same thing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.results import ResultRecord
from pydantic import BaseModel

from flows import stages
from flows.config import RoundConfig
from flows.labels import FrozenLabels
from flows.progress import Event, Step
from flows.record import RoundRecord
from flows.runner import StageResult
from flows.stages import Stage
from flows.summary import headline
from flows.tasks import (
    Answer,
    Outcome,
    T,
    freeze,
    gate,
    make_stage,
    mark_killed,
    publish,
    reused,
    simulate,
    summarise,
)

logger = logging.getLogger(__name__)

_SAID: dict[Event, str] = {
    "begin": "begins",
    "made": "is done",
    "reused": "is there already",
    "failed": "failed",
}


@flow(name="rankloop-round", flow_run_name="{config.name}-000", retries=0, log_prints=False)
def rankloop_round(config: RoundConfig) -> dict[str, Any]:
    """One round here and now; returns what round.json holds. Finished stages are reused."""
    with RoundRecord(Path.cwd() / "runs", config) as record:
        make = _Maker(record)
        record.document["addresses"]["dashboard"] = runtime.flow_run.ui_url
        record.save()
        if record.killed:
            mark_killed(record.killed)

        prompts = make.stage(
            stages.PROMPTS,
            config.prompts,
            source=config.prompts.path,
            evaluation=config.prompts.evaluation_path,
        )
        initial: Any = f"{config.model}@{config.revision}" if config.revision else config.model
        if config.sft:
            initial = make.stage(stages.SFT, config.sft, model=initial, data=config.sft.data)
        completions = make.stage(
            stages.COMPLETIONS, config.sampling, policy=initial, prompts=prompts
        )

        published = make.sync("publish", publish, config, completions, record.labels_path)
        record.document["addresses"]["labeling"] = published.value.where
        labeled: Any = published
        if config.labeling.simulated:
            labeled = make.sync("simulated", simulate, config, published, record.labels_path)
        opened = make.sync("gate", gate, config, published, labeled, record.labels_path)
        frozen = make.sync("freeze", freeze, published, opened, record.labels_path)
        record.document["labels"] |= _labels_metrics(frozen.value)

        pairs = make.stage(stages.PAIRS, config.pairs, completions=completions, labels=frozen)
        reward = make.stage(
            stages.REWARD, config.reward, policy=initial, pairs=pairs, completions=completions
        )
        aligned = make.stage(
            stages.PPO,
            config.ppo,
            policy=initial,
            prompts=prompts,
            reward_model=None if config.ppo.reward_function else reward,
            reward_function=config.ppo.reward_function,
        )
        evaluation = make.stage(
            stages.EVALUATE,
            config.evaluation,
            initial=initial,
            candidate=aligned,
            prompts=prompts,
            reward_model=reward,
            judge=config.evaluation.judge,
            guards=config.evaluation.guards or None,
        )
        report = make.stage(
            stages.REPORT,
            config,
            sft=initial if config.sft else None,
            prompts=prompts,
            completions=completions,
            labels=frozen,
            pairs=pairs,
            reward=reward,
            ppo=aligned,
            evaluation=evaluation,
        )
        make.sync("summary", summarise, record.document, report)
    return record.document


# --- what goes with every step -------------------------------------------------------------------


class _Maker:
    """Calls a step's task, tells the terminal, and notes the outcome in round.json."""

    def __init__(self, record: RoundRecord) -> None:
        self.record = record

    def stage(self, stage: Stage, config: BaseModel, **inputs: Any) -> Outcome[StageResult]:
        with self._announced(stage.name) as end:
            made: Outcome[StageResult] = _unwrap(make_stage(stage, config, inputs))
            line = headline(stage.name, made.value.metrics)
            self.record.add(made.value, line)
            end(made.value.reused, line)
        return made

    def sync(self, name: str, run: Callable[..., Answer[T]], *arguments: Any) -> Outcome[T]:
        clock = time.monotonic()
        with self._announced(name) as end:
            done: Outcome[T] = _unwrap(run(*arguments))
            line, there = headline(name, vars(done.value)), reused(done.value)
            where = getattr(done.value, "where", "")
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
    return metrics if frozen.reused else metrics | {"refused": frozen.refused}
