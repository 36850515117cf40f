"""What people answered to a round's tasks, and what its simulated labelers answer. A look keeps the
export that it reads; the wait is in flows/gate.py. No Prefect."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flows.first_published import first_published
from flows.publication import Published, find_project
from labeling import simulated, snapshots
from labeling.config import Labeling, SimulatedLabeler
from labeling.errors import InputError
from labeling.goal import Goal, goal_of
from labeling.label_studio import LabelStudio
from labeling.overlap import of_labeler, submitted
from labeling.rankings import Answer, Refusal, read_answers
from labeling.records import Candidates, Ranking, read_candidates
from labeling.scoring import load_score_function
from labeling.snapshots import Snapshot, Tasks
from labeling.tally import Tally, tally
from labeling.withdrawn import Pair, holding, is_suspicious, note_answers, withdrawn
from labeling.wording import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """How many answers simulated labelers gave now."""

    answers: int


@dataclass(frozen=True)
class Look:
    """What people have answered until now, and the export that says so. `submitted`: each task's id
    at this moment, and how many answers the server counts for it."""

    answers: list[Answer]
    snapshot: Snapshot
    submitted: dict[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    missing: int = 0  # tasks of the round that the export has not

    @property
    def rankings(self) -> list[Ranking]:
        return [answer.ranking for answer in self.answers if answer.ranking is not None]

    @property
    def refused(self) -> Counter[str]:
        """How many annotations are not used, by `Refusal`."""
        return Counter(answer.refusal for answer in self.answers if answer.refusal is not None)

    @property
    def withdrawn(self) -> set[Pair]:
        """(task key, labeler) of the answers that somebody deleted."""
        return {(a.task, a.labeler) for a in self.answers if a.refusal is Refusal.WITHDRAWN}

    def tally(self, goal: Goal, now: datetime) -> Tally:
        """Where the ranking stands; labeling/tally.py says of what."""
        return tally(self.answers, goal, now)


def look(label_studio: LabelStudio, published: Published, tasks: Sequence[Candidates]) -> Look:
    """Export what people have ranked, keep it, and read it.

    Raises Gone when the project was deleted, ConnectionError when the server fails.
    """
    content = label_studio.export_bytes(published.project)
    try:
        export = snapshots.parse(content)
    except InputError as error:
        raise ConnectionError(f"Label Studio at {label_studio.url}: {error}") from None
    snapshot = snapshots.keep(published.snapshots, content)
    note_answers(published.snapshots, export)
    return _look(published, snapshot, export, tasks)


def look_again(
    published: Published, snapshot: Snapshot, tasks: Sequence[Candidates]
) -> Look | None:
    """The look that was taken when this snapshot was; None when it is gone or damaged."""
    try:
        return _look(published, snapshot, snapshot.tasks(), tasks)
    except InputError:
        return None


def _look(
    published: Published, snapshot: Snapshot, export: Tasks, tasks: Sequence[Candidates]
) -> Look:
    there = submitted(export)
    missing = sum(task.key not in there for task in tasks)
    return Look(of_export(published.snapshots, export, tasks), snapshot, there, missing)


def warn_of_vanished(published: Published, now: Look, before: Collection[Pair]) -> None:
    """Say when many answers went that were not among those withdrawn `before`, and which snapshot
    has them: Label Studio lets everybody delete everybody's at one stroke."""
    gone = now.withdrawn - set(before)
    if not is_suspicious(gone, len(now.rankings) + len(gone)):
        return
    found = holding(published.snapshots, gone)
    logger.warning(
        "%s of %s were deleted in Label Studio's project %r, while the tasks are there, and do not "
        "count any more: %s; if their labelers did not mean to, docs/labeling.md says how they "
        "come back",
        counted(len(gone), "answer"),
        counted(len({labeler for _, labeler in gone}), "labeler"),
        published.project.title,
        f"{found.path} has them" if found else "no snapshot has them",
    )


def stands_now(label_studio: LabelStudio, name: str, config: Labeling, folder: Path) -> Tally:
    """Where the ranking stands of a round that nobody is at work on; nothing is written.

    Raises ConnectionError when the server fails.
    """
    answers, tasks = answers_now(label_studio, name, folder)
    goal = goal_of(config, tasks, first_published(folder, tasks))
    return tally(answers, goal, datetime.now(UTC))


def answers_now(
    label_studio: LabelStudio, name: str, folder: Path
) -> tuple[list[Answer], list[str]]:
    """What was answered in a round until now, and its tasks' keys; nothing is written. Of a project
    that is not there, the newest snapshot tells."""
    try:
        tasks = read_candidates(folder / "completions.parquet")
    except FileNotFoundError:
        return [], []
    kept = folder / "snapshots"
    project = find_project(label_studio, name, folder)
    if project is None:
        found = snapshots.latest(kept)
        export: Tasks = found[1] if found else []
    else:
        export = snapshots.parse(label_studio.export_bytes(project))
    return of_export(kept, export, tasks), [task.key for task in tasks]


def of_export(folder: Path, export: Tasks, tasks: Sequence[Candidates]) -> list[Answer]:
    """Of a kept export; `folder` holds the round's snapshots."""
    return read_answers(export, tasks, withdrawn(folder, export))


def simulate(label_studio: LabelStudio, published: Published, config: Labeling) -> Answered:
    """Let every simulated labeler answer what falls to it and it has not answered yet."""
    tasks = read_candidates(published.completions)
    keys = [task.key for task in tasks]

    def answer(labeler: SimulatedLabeler) -> int:
        own = of_labeler(labeler.name, config, keys)
        return simulated.answer_tasks(
            labeler,
            load_score_function(labeler.score),
            label_studio,
            published.project,
            [task for task in tasks if task.key in own],
        )

    return Answered(sum(answer(labeler) for labeler in config.simulated))
