"""The round's dealings with people: publish, wait, freeze. Each is idempotent, and cheap when
there is nothing to do. No Prefect."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labeling import simulated
from labeling.config import Labeling
from labeling.errors import InputError
from labeling.label_studio import LabelStudio, Project
from labeling.rankings import rankings_from_export
from labeling.records import Candidates, Ranking, read_candidates, read_rankings, write_rankings
from labeling.scoring import load_score_function
from labeling.wording import counted

logger = logging.getLogger(__name__)

# While waiting, an export (a second for a thousand tasks) is asked for when the count of answers
# says that it may be enough, and at least this often: an edit changes no count.
_EXPORT_EVERY_S = 60.0


@dataclass(frozen=True)
class Published:
    """The labeling project, and its tasks: the completions of this file."""

    project: Project
    completions: Path
    tasks: int
    created: int

    @property
    def where(self) -> str:
        return self.project.url


@dataclass(frozen=True)
class Answered:
    """How many answers simulated labelers gave now."""

    answers: int


@dataclass(frozen=True)
class Opened:
    """The gate is open: so many usable rankings are there."""

    rankings: int


@dataclass(frozen=True)
class FrozenLabels:
    """The rankings that this round learns from: the file, and how it came to be. `refused` is
    empty when they were frozen before."""

    output: Path
    rankings: int
    labelers: int
    reused: bool
    refused: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def where(self) -> str:
        return str(self.output)


def publish(
    label_studio: LabelStudio,
    name: str,
    config: Labeling,
    completions: Path,
    *,
    is_frozen: bool = False,
) -> Published:
    """Put the completions before labelers in the project `name`; nothing is put there twice, and
    what was put there of other completions is removed. `is_frozen`: the labels are there already,
    so nothing is put before anybody.

    Raises:
        InputError: people have ranked other completions in this project.
    """
    tasks = read_candidates(completions)
    answers_per_task = math.ceil(rankings_wanted(config, len(tasks)) / len(tasks))
    overlap = max(1, len(config.simulated), answers_per_task)
    if overlap > max(1, len(config.simulated)):
        logger.warning(
            "%s wanted of %s: each task goes to %s; with fewer people, lower labeling.wanted or "
            "sample completions for more prompts",
            counted(rankings_wanted(config, len(tasks)), "ranking"),
            counted(len(tasks), "task"),
            counted(overlap, "labeler"),
        )
    project = label_studio.ensure_project(name, config.instructions, overlap)
    if is_frozen:
        return Published(project, completions, len(tasks), created=0)
    label_studio.remove_others(project, tasks)
    report = label_studio.publish(project, tasks)
    return Published(project, completions, len(tasks), report.created)


def rankings_wanted(config: Labeling, tasks: int) -> int:
    return config.wanted or tasks


def usable_rankings(
    label_studio: LabelStudio, project: Project, tasks: Sequence[Candidates]
) -> tuple[list[Ranking], Counter[str]]:
    return rankings_from_export(label_studio.export(project), tasks)


def simulate(label_studio: LabelStudio, published: Published, config: Labeling) -> Answered:
    """Let every simulated labeler answer what it has not answered yet."""
    tasks = read_candidates(published.completions)
    return Answered(
        sum(
            simulated.answer_tasks(
                labeler,
                load_score_function(labeler.score),
                label_studio,
                published.project,
                tasks,
            )
            for labeler in config.simulated
        )
    )


def wait_for_rankings(
    label_studio: LabelStudio,
    published: Published,
    config: Labeling,
    reconnect: Callable[[], LabelStudio] | None = None,
    on_wait: Callable[[int, int, str], None] = lambda *_: None,
) -> Opened:
    """Wait until there are enough usable rankings.

    A labeler's latest answer to a task counts once; flagged prompts count as answered. A Label
    Studio that is away for a while is waited for; `reconnect` finds it again, perhaps elsewhere.
    `on_wait` is told the rankings that are there, those wanted, and the page to rank at.
    Simulated labelers have answered all that they ever will before the gate.

    Raises:
        InputError: only simulated labelers have ranked, and that is not enough.
    """
    project, tasks = published.project, read_candidates(published.completions)
    wanted = rankings_wanted(config, len(tasks))
    answers = label_studio.count(project).answers
    (rankings, refused), looked = usable_rankings(label_studio, project, tasks), time.monotonic()
    while len(rankings) < wanted:
        _refuse_to_wait_for_nobody(rankings, refused, wanted, config)
        page = label_studio.page(project.id)
        on_wait(len(rankings), wanted, page)
        logger.info(
            "%d of %s are there%s; rank at %s",
            len(rankings),
            counted(wanted, "ranking"),
            f"; not usable: {_listed(refused)}" if refused else "",
            page,
            extra={"progress": (len(rankings), wanted)},
        )
        time.sleep(config.poll_seconds)
        try:
            now = label_studio.count(project).answers
            enough = len(rankings) + now - answers >= wanted
            if enough or time.monotonic() - looked > _EXPORT_EVERY_S:
                rankings, refused = usable_rankings(label_studio, project, tasks)
                answers, looked = now, time.monotonic()
        except ConnectionError as error:
            logger.warning("%s; the gate waits for it (`rankloop up` starts it)", error)
            label_studio = _found_again(label_studio, reconnect)
    return Opened(len(rankings))


def _refuse_to_wait_for_nobody(
    rankings: Sequence[Ranking], refused: Counter[str], wanted: int, config: Labeling
) -> None:
    """Simulated labelers give no more than they gave; where people rank too, there is hope."""
    simulations = {simulated.labeler_email(labeler) for labeler in config.simulated}
    if not simulations or any(ranking.labeler not in simulations for ranking in rankings):
        return
    unusable = f" (not usable: {_listed(refused)})" if refused else ""
    raise InputError(
        f"{len(rankings)} of {counted(wanted, 'ranking')} are there{unusable}, and the "
        "simulated labelers have answered everything: lower labeling.wanted, add labelers with "
        "other names to labeling.simulated, or let people rank and run again"
    )


def _found_again(
    label_studio: LabelStudio, reconnect: Callable[[], LabelStudio] | None
) -> LabelStudio:
    try:
        return reconnect() if reconnect else label_studio
    except (ConnectionError, InputError):
        return label_studio  # not back yet; what a person must mend, the next look tells


def _listed(refused: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in refused.most_common())


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
    return FrozenLabels(labels, len(rankings), len({r.labeler for r in rankings}), reused=True)


def freeze(label_studio: LabelStudio, published: Published, labels: Path) -> FrozenLabels:
    """Write the usable rankings to `labels`, atomically; for a round that has none yet."""
    tasks = read_candidates(published.completions)
    rankings, refused = usable_rankings(label_studio, published.project, tasks)
    write_rankings(rankings, labels)
    if refused:
        logger.warning(
            "%s not used: %s",
            counted(refused.total(), "answer"),
            _listed(refused),
        )
    return FrozenLabels(
        labels,
        len(rankings),
        len({r.labeler for r in rankings}),
        reused=False,
        refused={str(reason): count for reason, count in refused.items()},
    )
