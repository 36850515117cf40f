"""The gate: a round waits here for its labelers, for minutes or for days. No Prefect.

Every turn is a look that stands for itself (flows/lookout.py): a process that waits takes one after
the other, and a round that is suspended is looked at by a new process each time.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flows.answers import Look
from flows.lookout import Lookout
from flows.looks import alone
from flows.publication import Published
from labeling import simulated
from labeling.config import Labeling
from labeling.errors import InputError
from labeling.goal import Goal
from labeling.label_studio import LabelStudio
from labeling.snapshots import Snapshot
from labeling.tally import Tally, listed
from labeling.wording import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """The gate is open: so many usable rankings are there, in this snapshot. `where`: the page of
    the project, which may be another one than was published to."""

    rankings: int
    snapshot: Snapshot | None = field(default=None, compare=False)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Pending:
    """The gate is closed: what is there, and the page to rank at. `published` is the project that
    the tasks are in by now."""

    tally: Tally
    page: str
    published: Published

    @property
    def where(self) -> str:
        return self.page


def look_once(
    label_studio: LabelStudio,
    published: Published,
    config: Labeling,
    now: datetime | None = None,
) -> Opened | Pending:
    """One turn of the gate, which waits for nobody: is there enough at the moment `now` (with a
    time zone; without it the present)?

    What people have ranked is exported and kept, unless nothing changed since the newest snapshot.
    Deleted tasks, or the project, are put back with the answers of the newest snapshot; tasks with
    answers that cannot be used go back into the queue; when nobody answers, or many answers
    vanished, a line says so, once. Safe to call at any time, from several processes at once, and to
    be killed in.

    Raises:
        ConnectionError: the server fails, or another look does not end: try again later.
        InputError: only simulated labelers have ranked, and that is not enough; or somebody deletes
            the tasks again and again.
    """
    return _look(Lookout(published, config), label_studio, config, now)


def wait_for_rankings(
    label_studio: LabelStudio,
    published: Published,
    config: Labeling,
    reconnect: Callable[[], LabelStudio] | None = None,
    on_wait: Callable[[Tally, str], None] = lambda *_: None,
) -> Opened:
    """Take turns until there are enough usable rankings.

    A labeler's latest answer to a task counts once; flagged prompts count as answered. All that is
    exported is kept. A Label Studio that is away for a while is waited for; `reconnect` finds it
    again, perhaps elsewhere. `on_wait` is told what is there and the page to rank at. Simulated
    labelers have answered all that they ever will before the gate.

    Raises InputError as `look_once` does.
    """
    lookout, is_told = Lookout(published, config), False
    while True:
        try:
            found = _look(lookout, label_studio, config)
        except ConnectionError as error:
            logger.warning("%s; the gate waits for it (`rankloop up` starts it)", error)
            time.sleep(config.poll_seconds)
            label_studio = _found_again(label_studio, reconnect)
            continue
        if isinstance(found, Opened):
            return found
        if not is_told:
            logger.info(
                "every account of Label Studio's community edition can delete everything: what "
                "people rank is kept in %s every %g minutes",
                published.snapshots,
                config.snapshot_minutes,
            )
            is_told = True
        on_wait(found.tally, found.page)
        stands = found.tally
        logger.info(
            "%d of %s are there%s; rank at %s",
            stands.counting,
            counted(stands.wanted, "ranking"),
            f"; not usable: {listed(stands.refused)}" if stands.refused else "",
            found.page,
            extra={"progress": (stands.counting, stands.wanted)},
        )
        time.sleep(config.poll_seconds)


def _look(
    lookout: Lookout, label_studio: LabelStudio, config: Labeling, now: datetime | None = None
) -> Opened | Pending:
    with alone(lookout.published.folder):
        seen, stands = lookout.look(label_studio, now or datetime.now(UTC))
        page = label_studio.page(lookout.published.project.id)
        if stands.is_enough:
            if stands.wanted < stands.in_full:
                logger.info(
                    "the deadline has passed: the round goes on with %s, of %d that were wanted",
                    counted(stands.counting, "ranking"),
                    stands.in_full,
                )
            return Opened(len(seen.rankings), seen.snapshot, page)
        _refuse_to_wait_for_nobody(seen, lookout.goal, stands, config)
        lookout.remind(stands, page)
    return Pending(stands, page, lookout.published)


def _refuse_to_wait_for_nobody(seen: Look, goal: Goal, stands: Tally, config: Labeling) -> None:
    """Simulated labelers give no more than they gave; where people rank too, there is hope. What is
    there may be enough after the deadline."""
    simulations = {simulated.labeler_email(labeler) for labeler in config.simulated}
    if not simulations or any(ranking.labeler not in simulations for ranking in seen.rankings):
        return
    there = Counter(ranking.task for ranking in seen.rankings)
    if goal.minimum and not goal.missing(goal.minimum, there):
        return
    unusable = f" (not usable: {listed(seen.refused)})" if seen.refused else ""
    raise InputError(
        f"{len(seen.rankings)} of {counted(stands.wanted, 'ranking')} are there{unusable}, and the "
        "simulated labelers have answered all that falls to them: lower labeling.wanted or "
        "labeling.overlap, add labelers with other names to labeling.simulated, or let people rank "
        "and run again"
    )


def _found_again(
    label_studio: LabelStudio, reconnect: Callable[[], LabelStudio] | None
) -> LabelStudio:
    try:
        return reconnect() if reconnect else label_studio
    except (ConnectionError, InputError):
        return label_studio  # not back yet; what a person must mend, the next look tells
