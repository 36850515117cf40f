"""`watch-rankings`, every few minutes: rounds that wait for people are looked at and resumed, runs
whose process is gone are ended and begun again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from pydantic import ValidationError

from flows import publication, tasks
from flows.config import RoundConfig, project_title
from flows.flow_runs import end_killed, forget, of_rounds, revive, times_revived
from flows.gate import Pending, look_once
from flows.progress import hear_our_loggers
from flows.record import RoundRecord, is_locked
from flows.summary import tally_rows
from flows.turns import is_newest, round_of
from labeling.errors import InputError
from labeling.tally import describe

logger = logging.getLogger(__name__)

_KEPT = timedelta(days=2)  # runs of the watcher itself: there are 288 a day
    """Look at every round: resume those whose rankings are in, keep snapshots of what people have
    ranked, mark runs as crashed whose process is gone, and let them go on.

    Args:
        begins_within_s: Seconds after which a run that says it runs must have taken its round, or
            its process is gone.
        starts_within_s: Seconds after which a run that the worker took must have said that it runs.
    """
    hear_our_loggers()
    done: dict[str, list[str]] = {"resumed": [], "waiting": [], "crashed": [], "revived": []}
    with get_client(sync_client=True) as client:
        for run in of_rounds(client, StateType.RUNNING, StateType.PENDING):
            if _is_gone(run, begins_within_s, starts_within_s):
                end_killed(client, run.id, "Its process is gone; what is finished is kept.")
                _note(done["crashed"], run, "process is gone: crashed")
        for run in of_rounds(client, StateType.CRASHED):
            if _goes_on(client, run):
                revive(client, run.id, "Goes on from what is finished.")
                _note(done["revived"], run, "begun again")
        for run in of_rounds(client, StateType.PAUSED):
            if run.state_name != "Suspended":
                continue
            if _look(run):
                client.resume_flow_run(run.id)
                _note(done["resumed"], run, "resumed")
            else:
                done["waiting"].append(run.name)
        forget(client, WATCH, _KEPT)
    return done


def _note(names: list[str], run: FlowRun, what: str) -> None:
    logger.info("%s: %s", run.name, what)
    names.append(run.name)


@dataclass(frozen=True)
class _Round:
    """What a run was told, and the round that it is at: None before it began one."""

    config: RoundConfig
    runs: Path
    number: int | None

    @property
    def folder(self) -> Path | None:
        return None if self.number is None else self._place(self.number)

    def _place(self, number: int) -> Path:
        return RoundRecord.place(self.runs, self.config, number)

    @classmethod
    def of(cls, run: FlowRun) -> _Round | None:
        """None for a run whose parameters another version of Rankloop does not read."""
        try:
            config = RoundConfig.model_validate(run.parameters.get("config"))
        except ValidationError as error:
            logger.warning("%s: its config cannot be read (%s)", run.name, error.title)
            return None
        runs = Path(run.parameters.get("folder") or Path.cwd()) / "runs"
        return cls(config, runs, round_of(runs / config.name, str(run.id)))


# --- rounds that wait ----------------------------------------------------------------------------


def _look(run: FlowRun) -> bool:
    """Whether the round is to go on: its rankings are in, or it is to say what is wrong. A Label
    Studio that is away is looked at the next time."""
    found = _Round.of(run)
    if found is None or found.folder is None:
        return False
    config = found.config.for_round(found.number or 0)
    try:
        if (found.folder / "labels.parquet").exists():
            return True
        server, title = tasks.label_studio(), project_title(config.name, found.number or 0)
        published = publication.published_before(server, title, config.labeling, found.folder)
        seen = look_once(server, published, config.labeling)
    except ConnectionError as error:
        logger.warning("%s: %s", run.name, error)
        return False
    except InputError as error:
        logger.warning("%s: %s", run.name, error)
        return True
    if not isinstance(seen, Pending):
        return True
    first, *_ = describe(seen.tally.document())
    logger.info("%s: %s", run.name, first)
    _show(config.name, seen, first)
    return False


def _show(name: str, seen: Pending, first: str) -> None:
    def show() -> None:
        create_table_artifact(
            tally_rows(seen.tally),
            key=tasks.rankings_key(name),
            description=f"{first}. Rank at {seen.page}",
        )

    tasks.shown(show)


# --- runs whose process is gone ------------------------------------------------------------------


def _is_gone(run: FlowRun, begins_within_s: float, starts_within_s: float) -> bool:
    """Whether no process is at work on it: one that is holds the lock of its round, which it takes
    some seconds after its first word to the server."""
    found = _Round.of(run)
    if found is None or run.state is None:
        return False
    silent_s = (datetime.now(UTC) - run.state.timestamp).total_seconds()
    if found.folder is None or run.state_type == StateType.PENDING:
        return silent_s > starts_within_s
    return silent_s > begins_within_s and not is_locked(found.folder)


def _goes_on(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a crashed run of a deployment is to be begun again: nobody else took its round over,
    and it does not crash again and again."""
    found = _Round.of(run)
    if run.deployment_id is None or run.state is None or found is None:
        return False
    if datetime.now(UTC) - run.state.timestamp > _LATELY:
        return False
    if found.number is not None:
        folder = found.runs / found.config.name
        if not is_newest(folder, found.number, str(run.id)):
            return False
    return times_revived(client, run.id, _LATELY) < _REVIVED_AT_MOST
