"""The round's dealings with people: publish, look at what they ranked, freeze; the wait is in
flows/gate.py. Each is idempotent, and cheap when there is nothing to do. No Prefect."""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flows.recipe import LABELS_SUMMARY
from labeling import publishing, simulated, snapshots
from labeling.config import Labeling, SimulatedLabeler
from labeling.connection import Gone
from labeling.durable import put_in_place
from labeling.errors import InputError
from labeling.label_studio import LabelStudio, Project
from labeling.overlap import of_labeler, overlaps, rankings_wanted, set_overlaps, submitted, usual
from labeling.publishing import KnownTask
from labeling.rankings import Answer, Refusal, read_answers
from labeling.records import Candidates, Ranking, read_candidates, read_rankings, write_rankings
from labeling.scoring import load_score_function
from labeling.snapshots import Snapshot, Tasks
from labeling.tally import Tally, listed, tally
from labeling.withdrawn import Pair, holding, is_suspicious, note_answers, withdrawn
from labeling.wording import counted

logger = logging.getLogger(__name__)

_PUBLISHED_ANEW_AT_MOST = 3


@dataclass(frozen=True)
class Published:
    """The labeling project, and its tasks: the completions of this file. `folder` is the round's;
    `in_project` counts strangers' tasks too."""

    project: Project
    completions: Path
    tasks: int
    created: int
    folder: Path
    in_project: int = 0

    @property
    def snapshots(self) -> Path:
        """Where this round's exports are kept."""
        return self.folder / "snapshots"

    @property
    def where(self) -> str:
        return self.project.url


@dataclass(frozen=True)
class Answered:
    """How many answers simulated labelers gave now."""

    answers: int


@dataclass(frozen=True)
class Opened:
    """The gate is open: so many usable rankings are there, in this snapshot. `where`: the page of
    the project, which may be another one than was published to."""

    rankings: int
    snapshot: Snapshot | None = field(default=None, compare=False)
    where: str = field(default="", compare=False)


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

    def tally(self, numbers: Mapping[str, int], wanted: int | None) -> Tally:
        """Where the ranking stands now; labeling/tally.py says of what."""
        return tally(self.answers, numbers, wanted, datetime.now(UTC))


@dataclass(frozen=True)
class FrozenLabels:
    """The rankings that this round learns from: the file, and how it came to be. `snapshot` names
    the export that they were made of, its digest included; `refused` is empty when they were frozen
    before."""

    output: Path
    rankings: int
    labelers: int
    reused: bool
    snapshot: str = ""
    refused: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def where(self) -> str:
        return str(self.output)


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
    """
    tasks = read_candidates(completions)
    keys = [task.key for task in tasks]
    numbers = overlaps(config, keys)
    by_default = rankings_wanted(config.model_copy(update={"wanted": None}), keys)
    if config.wanted and config.wanted > by_default:
        logger.warning(
            "%s wanted of %s: each task goes to at least %s; with fewer people, lower "
            "labeling.wanted or sample completions for more prompts",
            counted(config.wanted, "ranking"),
            counted(len(tasks), "task"),
            counted(min(numbers.values()), "labeler"),
        )
    run = _run_mark(folder, _make_run_id(folder))
    for attempt in range(1, _PUBLISHED_ANEW_AT_MOST + 1):
        project = label_studio.ensure_project(name, config.instructions, usual(numbers), run)
        if is_frozen:
            return Published(project, completions, len(tasks), 0, folder)
        known = _known_tasks(folder / "snapshots", tasks)
        try:
            report = publishing.publish(label_studio, project, tasks, known)
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
        return Published(
            project, completions, len(tasks), report.created, folder, in_project=report.tasks
        )
    raise AssertionError


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
    there = submitted(export)
    missing = sum(task.key not in there for task in tasks)
    return Look(_answers(published.snapshots, export, tasks), snapshot, there, missing)


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


def find_project(label_studio: LabelStudio, name: str, folder: Path) -> Project | None:
    """The project of the round in `folder`, whatever it is called by now; nothing is written."""
    return label_studio.find_project(name, _run_mark(folder, _run_id(folder)))


def stands_now(label_studio: LabelStudio, name: str, config: Labeling, folder: Path) -> Tally:
    """Where the ranking stands of a round that nobody is at work on; nothing is written.

    Raises ConnectionError when the server fails.
    """
    answers, tasks = answers_now(label_studio, name, folder)
    return tally(answers, overlaps(config, tasks), config.wanted, datetime.now(UTC))


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
    return _answers(kept, export, tasks), [task.key for task in tasks]


def _answers(folder: Path, export: Tasks, tasks: Sequence[Candidates]) -> list[Answer]:
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


def find_frozen(labels: Path, completions: Path) -> FrozenLabels | None:
    """The labels if they were frozen before.

    Raises:
        InputError: they rank other completions than this round's.
    """
    if not labels.exists():
        return None
    try:
        rankings = read_rankings(labels)
    except Exception as error:  # pyarrow's errors are many and unrelated
        raise InputError(
            f"{labels} cannot be read ({type(error).__name__}): remove it to freeze the labels anew"
        ) from error
    known = {task.key for task in read_candidates(completions)}
    strangers = sum(ranking.task not in known for ranking in rankings)
    if strangers:
        raise InputError(
            f"{labels}: {strangers:,} of {len(rankings):,} rankings are of other "
            "completions (the model, the prompts or the sampling changed since); give this run "
            "another name with --name, or remove that file to rank anew"
        )
    pinned = snapshots.pinned(labels.parent / "snapshots")
    return FrozenLabels(
        labels,
        len(rankings),
        len({r.labeler for r in rankings}),
        reused=True,
        snapshot=pinned.path.name if pinned else "",
    )


def freeze(published: Published, snapshot: Snapshot, labels: Path) -> FrozenLabels:
    """Write the usable rankings of a kept export to `labels`, atomically; for a round that has none
    yet. Label Studio is not asked: whatever happens there afterwards changes nothing.

    Raises InputError when the snapshot is damaged.
    """
    tasks = read_candidates(published.completions)
    look = Look(_answers(published.snapshots, snapshot.tasks(), tasks), snapshot)
    rankings, refused = look.rankings, look.refused
    snapshots.pin(snapshot)
    _write_summary(labels.with_name(LABELS_SUMMARY), look)
    write_rankings(rankings, labels)
    if refused:
        logger.warning("%s not used: %s", counted(refused.total(), "answer"), listed(refused))
    return FrozenLabels(
        labels,
        len(rankings),
        len({r.labeler for r in rankings}),
        reused=False,
        snapshot=snapshot.path.name,
        refused={str(reason): count for reason, count in refused.items()},
    )


def _write_summary(path: Path, look: Look) -> None:
    by_labeler = Counter(ranking.labeler for ranking in look.rankings)
    document = {
        "rankings": len(look.rankings),
        "by_labeler": sorted(by_labeler.values(), reverse=True),
        "refused": dict(sorted(look.refused.items())),
    }
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    put_in_place(partial, path)
