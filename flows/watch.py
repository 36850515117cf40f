"""`watch-rankings`, every few minutes: rounds that wait for people are looked at and resumed, runs
whose process is gone are ended and begun again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from pydantic import ValidationError

from flows import dashboard, publication, servers, tasks
from flows.config import RoundConfig, project_title
from flows.flow_runs import end_killed, forget, give_up, revive, runs_of, times_revived
from flows.gate import Pending, look_once
from flows.prefect_environment import ROUND, WATCH
from flows.progress import hear_our_loggers
from flows.round_folder import is_locked
from flows.turns import is_newest, round_of
from labeling.errors import InputError
from labeling.tally import standing

logger = logging.getLogger(__name__)

_KEPT = timedelta(days=2)  # runs of the watcher itself: there are 288 a day
_REVIVED_AT_MOST, _LATELY = 5, timedelta(days=7)
_HISTORY = timedelta(days=30)  # the machine may have been off since
_WATCHES_WITHIN = timedelta(hours=2)


@flow(name=WATCH, flow_run_name="watch", retries=0, log_prints=False)
def watch_rankings(
    begins_within_s: float = 120.0, starts_within_s: float = 600.0, crashed_for_s: float = 30.0
) -> dict[str, list[str]]:
    """Look at every round: resume those whose rankings are in, keep snapshots of what people have
    ranked, mark runs as crashed whose process is gone, and let them go on.

    Args:
        begins_within_s: Seconds after which a run that says it runs must have taken its round, or
            its process is gone.
        starts_within_s: Seconds after which a run that the worker took must have said that it runs.
        crashed_for_s: Seconds for which a crashed run is left alone: the worker tells of a crash
            twice, some seconds apart, and the second time would end the run that was begun again.
    """
    hear_our_loggers()
    done: dict[str, list[str]] = {"resumed": [], "waiting": [], "crashed": [], "revived": []}
    lock = FileLock(servers.default_home() / "watch.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        logger.info("another watcher is at work")
        return done
    with held, get_client(sync_client=True) as client:

        def each(types: tuple[StateType, ...], look: Callable[[FlowRun], str | None]) -> None:
            for run in runs_of(client, ROUND, *types):
                try:
                    if what := look(run):
                        logger.log(
                            logging.DEBUG if what == "waiting" else logging.INFO,
                            *("%s: %s", run.name, what),
                        )
                        done[what].append(run.name)
                except Exception as error:  # one round's trouble is not the others'
                    logger.warning("%s: %s: %s", run.name, type(error).__name__, error)

        ended = partial(_end_if_gone, client, begins_within_s, starts_within_s)
        each((StateType.RUNNING, StateType.PENDING), ended)
        each((StateType.CRASHED,), partial(_revive, client, crashed_for_s))
        each((StateType.PAUSED,), partial(_resume_if_ready, client))
        _tidy_up(client)
    return done


def _tidy_up(client: SyncPrefectClient) -> None:
    """Nobody else ends a watcher that died with its machine."""
    forget(client, WATCH, _KEPT)
    for run in runs_of(client, WATCH, StateType.RUNNING, StateType.PENDING):
        if run.state and datetime.now(UTC) - run.state.timestamp > _WATCHES_WITHIN:
            end_killed(client, run, "Its process is gone.")


@dataclass(frozen=True)
class _Round:
    """The folder of a run's rounds, and the one that it is at: None before it began one. `config`
    is None where another version of Rankloop wrote it, which this one does not read."""

    of_run: Path
    number: int | None
    config: RoundConfig | None

    @property
    def folder(self) -> Path | None:
        return None if self.number is None else self.of_run / "rounds" / f"{self.number:03d}"

    @classmethod
    def of(cls, run: FlowRun) -> _Round:
        given = run.parameters.get("config") or {}
        runs = Path(run.parameters.get("folder") or Path.cwd()) / "runs"
        of_run = runs / str(given.get("name"))
        try:
            config = RoundConfig.model_validate(given)
        except ValidationError:
            config = None
        return cls(of_run, round_of(of_run, str(run.id)), config)

    def is_at_work(self) -> bool:
        """Whether a process holds the round."""
        return self.folder is not None and is_locked(self.folder)


# --- rounds that wait ----------------------------------------------------------------------------


def _resume_if_ready(client: SyncPrefectClient, run: FlowRun) -> str | None:
    found = _Round.of(run)
    if run.state_name != "Suspended" or found.is_at_work():
        return None  # whoever suspended it from outside: its process has yet to notice
    if not _is_ready(run.name, found):
        return "waiting"
    client.resume_flow_run(run.id)
    return "resumed"


def _is_ready(name: str, found: _Round) -> bool:
    """Whether the round is to go on: its rankings are in, or it is to say what is wrong. A Label
    Studio that is away is looked at the next time."""
    if found.config is None or found.folder is None:
        logger.warning("%s: its config or its folder cannot be read: resumed, to say so", name)
        return True
    config = found.config.for_round(found.number or 0)
    if (found.folder / "labels.parquet").exists():
        return True
    try:
        server, title = tasks.label_studio(), project_title(config.name, found.number or 0)
        published = publication.published_before(server, title, config.labeling, found.folder)
        seen = look_once(server, published, config.labeling)
    except ConnectionError as error:
        logger.warning("%s: %s", name, error)
        return False
    except InputError as error:
        logger.warning("%s: %s", name, error)
        return True
    if not isinstance(seen, Pending):
        return True
    stands = ". ".join(standing(seen.tally.document()))
    logger.info("%s: %s", name, stands)
    dashboard.Rankings(config.name, found.folder.name)(seen.tally, seen.page)
    return False


# --- runs whose process is gone ------------------------------------------------------------------


def _end_if_gone(
    client: SyncPrefectClient, begins_within_s: float, starts_within_s: float, run: FlowRun
) -> str | None:
    """A process that is at work holds the lock of its round, which it takes some seconds after its
    first word to the server. One that has noted how it ended may still be telling Prefect."""
    found = _Round.of(run)
    if run.state is None or found.is_at_work():
        return None
    document = _document(found.folder)
    is_begun = run.state_type == StateType.RUNNING and document.get("status") == "running"
    patience_s = begins_within_s if is_begun else starts_within_s
    since = run.state.timestamp
    if not is_begun and (ended := document.get("finished")):
        since = max(since, datetime.fromisoformat(ended))
    if (datetime.now(UTC) - since).total_seconds() <= patience_s:
        return None
    is_ended = end_killed(client, run, "Its process is gone; what is finished is kept.")
    return "crashed" if is_ended else None


def _document(folder: Path | None) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "round.json").read_text())) if folder else {}
    except (OSError, ValueError):
        return {}


def _revive(client: SyncPrefectClient, crashed_for_s: float, run: FlowRun) -> str | None:
    """Let a crashed run of a deployment go on, unless somebody else took its round over, or it
    crashes again and again."""
    found = _Round.of(run)
    if run.deployment_id is None or run.state is None or found.is_at_work():
        return None
    ago = datetime.now(UTC) - run.state.timestamp
    if ago > _HISTORY or ago < timedelta(seconds=crashed_for_s):
        return None
    if found.number is not None and not is_newest(found.of_run, found.number, str(run.id)):
        return None
    if times_revived(client, run.id, _LATELY) >= _REVIVED_AT_MOST:
        why = (
            f"crashed {_REVIVED_AT_MOST + 1} times in a week and is left alone: read its log, then "
            "retry it, or `rankloop submit` it again"
        )
        logger.warning("%s %s", run.name, why)
        give_up(client, run, f"It {why}.")
        return None
    return "revived" if revive(client, run, "Goes on from what is finished.") else None
