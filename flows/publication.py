"""A round's completions before labelers: they are published, and their project is found again.
Idempotent, and cheap when there is nothing to do. No Prefect."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flows.first_published import first_published, note_first
from flows.looks import Notes, alone
from labeling import publishing, snapshots
from labeling.config import Labeling
from labeling.connection import Gone
from labeling.durable import put_in_place
from labeling.errors import InputError
from labeling.label_studio import LabelStudio, Project
from labeling.overlap import overlaps, set_overlaps, usual
from labeling.publishing import KnownTask
from labeling.records import Candidates, read_candidates
from labeling.wording import counted

logger = logging.getLogger(__name__)

_PUBLISHED_ANEW_AT_MOST = 3


@dataclass(frozen=True)
class Published:
    """The labeling project, and its tasks: the completions of this file. `folder` is the round's;
    `in_project` counts strangers' tasks too. `first`: when the tasks were first before labelers,
    None where nothing is put before them any more."""

    project: Project
    completions: Path
    tasks: int
    created: int
    folder: Path
    in_project: int = 0
    first: datetime | None = None

    @property
    def snapshots(self) -> Path:
        """Where this round's exports are kept."""
        return self.folder / "snapshots"

    @property
    def where(self) -> str:
        return self.project.url


def publish(
    label_studio: LabelStudio,
    name: str,
    config: Labeling,
    completions: Path,
    folder: Path,
    *,
    is_frozen: bool = False,
) -> Published:
    """Put the completions before labelers in the project `name`; nothing is put there twice, and
    what was put there of other completions is removed. `folder` is the round's: what its snapshots
    know of a task that was deleted is put back with it. `is_frozen`: the labels are there already,
    so nothing is put before anybody.

    Raises:
        InputError: people have ranked other completions in this project, or it belongs to another
            folder's run.
        ConnectionError: the server fails, or another process is at work on this for long.
    """
    with alone(folder):
        return put_there(label_studio, name, config, completions, folder, is_frozen=is_frozen)


def put_there(
    label_studio: LabelStudio,
    name: str,
    config: Labeling,
    completions: Path,
    folder: Path,
    *,
    is_frozen: bool = False,
) -> Published:
    """`publish`, for whoever is `alone` with the round already."""
    tasks = read_candidates(completions)
    keys = [task.key for task in tasks]
    numbers = overlaps(config, keys)
    _warn_of_many(config, numbers)
    run = _run_mark(folder, _make_run_id(folder))
    for attempt in range(1, _PUBLISHED_ANEW_AT_MOST + 1):
        project = label_studio.ensure_project(name, config.instructions, usual(numbers), run)
        if is_frozen:
            return Published(project, completions, len(tasks), 0, folder)
        known = _known_tasks(folder / "snapshots", tasks)
        try:
            report = publishing.publish(label_studio, project, tasks, known)
            Notes.forget_told(folder)
            set_overlaps(label_studio, project, numbers, report.listed)
        except Gone:
            if attempt == _PUBLISHED_ANEW_AT_MOST:
                raise
            logger.warning("somebody deleted project %r meanwhile: created anew", name)
            continue
        if report.new_accounts:
            logger.warning(
                "their accounts had been deleted, and are made anew for their answers, without a "
                "password: %s; docs/labeling.md says how they log in again",
                ", ".join(report.new_accounts),
            )
        if report.left_out:
            logger.warning(
                "%s not put back: Label Studio does not take their labelers' accounts; they are "
                "in %s",
                counted(report.left_out, "answer"),
                folder / "snapshots",
            )
        if report.restored:
            logger.warning(
                "%s had been deleted in Label Studio's project %r: put back, with %s from the "
                "newest snapshot; what was answered after it is lost (in the community edition "
                "every account can delete everything)",
                counted(report.restored, "task"),
                name,
                counted(report.answers, "answer"),
            )
        created = [task.created for task in report.listed or ()]
        created += [task.created for task in known.values()]
        return Published(
            project,
            completions,
            len(tasks),
            report.created,
            folder,
            in_project=report.tasks,
            first=note_first(folder, keys, created),
        )
    raise AssertionError


def _warn_of_many(config: Labeling, numbers: Mapping[str, int]) -> None:
    by_default = overlaps(config.model_copy(update={"wanted": None}), list(numbers))
    if isinstance(config.wanted, int) and config.wanted > sum(by_default.values()):
        logger.warning(
            "%s wanted of %s: each task goes to at least %s; with fewer people, lower "
            "labeling.wanted or sample completions for more prompts",
            counted(config.wanted, "ranking"),
            counted(len(numbers), "task"),
            counted(min(numbers.values()), "labeler"),
        )


def published_before(
    label_studio: LabelStudio, name: str, config: Labeling, folder: Path
) -> Published:
    """What was published of the round in `folder`, for a look from outside of it: nothing is
    compared or sent, as long as the project is there.

    Raises as `publish` does, and InputError when the round has no completions.
    """
    completions = folder / "completions.parquet"
    if not completions.exists():
        raise InputError(f"{completions} does not exist: run the round again")
    project = find_project(label_studio, name, folder)
    if project is None:
        return publish(label_studio, name, config, completions, folder)
    tasks = read_candidates(completions)
    count = label_studio.count(project).tasks
    first = first_published(folder, [task.key for task in tasks])
    return Published(project, completions, len(tasks), 0, folder, in_project=count, first=first)


# --- its project ----------------------------------------------------------------------------------


def find_project(label_studio: LabelStudio, name: str, folder: Path) -> Project | None:
    """The project of the round in `folder`, whatever it is called by now; nothing is written."""
    return label_studio.find_project(name, _run_mark(folder, _run_id(folder)))


def _run_id(folder: Path) -> str:
    """The run's lasting id, by which its projects in Label Studio are told from another folder's of
    the same name: `runs/<name>/id`. "" before it is made."""
    try:
        return (folder.parents[1] / "id").read_text().strip()
    except FileNotFoundError:
        return ""


def _make_run_id(folder: Path) -> str:
    path = folder.parents[1] / "id"
    if not (made := _run_id(folder)):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("id.partial")
        partial.write_text(f"{uuid.uuid4().hex[:12]}\n")
        put_in_place(partial, path)
        made = _run_id(folder)
    return made


def _run_mark(folder: Path, run: str) -> str:
    """What a round's project is marked with: each round of a run has one of its own."""
    return f"{run}_{folder.name}" if run else ""


def _known_tasks(folder: Path, tasks: Sequence[Candidates]) -> dict[str, KnownTask]:
    seen = snapshots.last_seen(folder, {task.key for task in tasks})
    return {key: KnownTask.of(task) for key, task in seen.items()}
