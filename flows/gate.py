"""The gate: a round waits here for its labelers, for minutes or for days. No Prefect."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flows import answers, publication
from flows.answers import Look
from flows.publication import Published
from labeling import simulated
from labeling.config import Labeling
from labeling.connection import Gone
from labeling.errors import InputError
from labeling.label_studio import Counts, LabelStudio
from labeling.overlap import overlaps, rankings_wanted, reopen
from labeling.records import read_candidates
from labeling.snapshots import Snapshot
from labeling.tally import Tally, listed
from labeling.withdrawn import Pair
from labeling.wording import counted

logger = logging.getLogger(__name__)

# A look is an export, a second for a thousand tasks. One is taken when the count of answers says
# that they may be enough, and else so often, if anything changed (an edit changes no count), but
# for at most a twentieth of the time.
_LOOK_EVERY_S = 60.0
_SHARE_OF_TIME = 1 / 20
_RESTORED_AT_MOST = 5
_TRIES = 3  # in one look


@dataclass(frozen=True)
class Opened:
    """The gate is open: so many usable rankings are there, in this snapshot. `where`: the page of
    the project, which may be another one than was published to."""

    rankings: int
    snapshot: Snapshot | None = field(default=None, compare=False)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Pending:
    """The gate is closed: where the ranking stands, and the page to rank at."""

    tally: Tally
    page: str

    @property
    def where(self) -> str:
        return self.page


def look_once(
    label_studio: LabelStudio, published: Published, config: Labeling
) -> Opened | Pending:
    """One turn of `wait_for_rankings`. Raises ConnectionError when the server fails."""
    gate = _Gate(published, config)
    gate.look(label_studio)
    page = label_studio.page(gate.published.project.id)
    if gate.tally.is_enough:
        return Opened(len(gate.seen.rankings), gate.seen.snapshot, page)
    _refuse_to_wait_for_nobody(gate.seen, gate.wanted, config)
    return Pending(gate.tally, page)


def wait_for_rankings(
    label_studio: LabelStudio,
    published: Published,
    config: Labeling,
    reconnect: Callable[[], LabelStudio] | None = None,
    on_wait: Callable[[Tally, str], None] = lambda *_: None,
) -> Opened:
    """Wait until there are enough usable rankings.

    A labeler's latest answer to a task counts once; flagged prompts count as answered. All that is
    exported is kept. A Label Studio that is away for a while is waited for; `reconnect` finds it
    again, perhaps elsewhere. Tasks, or the project, that somebody deletes meanwhile are put back
    with the answers of the newest snapshot. `on_wait` is told what is there and the page to rank
    at. Simulated labelers have answered all that they ever will before the gate.

    Raises:
        InputError: only simulated labelers have ranked, and that is not enough; or somebody deletes
            the tasks again and again.
    """
    gate, is_told = _Gate(published, config), False
    while True:
        try:
            gate.look(label_studio)
        except ConnectionError as error:
            logger.warning("%s; the gate waits for it (`rankloop up` starts it)", error)
            time.sleep(config.poll_seconds)
            label_studio = _found_again(label_studio, reconnect)
            continue
        page = label_studio.page(gate.published.project.id)
        seen = gate.seen
        there = gate.tally.counting
        if gate.tally.is_enough:
            return Opened(len(seen.rankings), seen.snapshot, page)
        _refuse_to_wait_for_nobody(seen, gate.wanted, config)
        if not is_told:
            logger.info(
                "every account of Label Studio's community edition can delete everything: what "
                "people rank is kept in %s every %g minutes",
                published.snapshots,
                config.snapshot_minutes,
            )
            is_told = True
        on_wait(gate.tally, page)
        logger.info(
            "%d of %s are there%s; rank at %s",
            there,
            counted(gate.wanted, "ranking"),
            f"; not usable: {listed(seen.refused)}" if seen.refused else "",
            page,
            extra={"progress": (there, gate.wanted)},
        )
        time.sleep(config.poll_seconds)


@dataclass(frozen=True)
class _Looked:
    """A look: what was there just before it, when it ended (s), and how long it took (s)."""

    look: Look
    tally: Tally
    counts: Counts
    changed: str
    at: float
    took: float


class _Gate:
    """What the gate knows: the project, which may be created anew, and what was seen last."""

    def __init__(self, published: Published, config: Labeling) -> None:
        self.published, self.config = published, config
        self.tasks = read_candidates(published.completions)
        keys = [task.key for task in self.tasks]
        self.numbers, self.wanted = overlaps(config, keys), rankings_wanted(config, keys)
        self._reopened: dict[int, int] = {}
        self._looked: _Looked | None = None
        self._restored = 0
        self._withdrawn: set[Pair] = set()

    @property
    def seen(self) -> Look:
        assert self._looked is not None
        return self._looked.look

    @property
    def tally(self) -> Tally:
        assert self._looked is not None
        return self._looked.tally

    def look(self, label_studio: LabelStudio) -> None:
        """Look whether all is as it should be, and at the answers where it may be worth it.

        Raises ConnectionError when it is not after some tries, or the server fails.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(Gone):
                if self._look(label_studio):
                    return
            self._put_back(label_studio)
            self._looked = None
        raise ConnectionError(
            f"project {self.published.project.title!r} of Label Studio is gone, or lacks tasks, as "
            "often as it is put right"
        )

    def _look(self, label_studio: LabelStudio) -> bool:
        """Whether all tasks are there. Only an export tells which are: somebody may have deleted
        one and added another."""
        project = self.published.project
        counts = label_studio.count(project)
        if counts.tasks != self.published.in_project:
            return False
        if not self._may_be_enough(counts) and not self._is_due():
            return True
        changed, begun = label_studio.last_change(project), time.monotonic()
        last = self._looked
        if last and (last.counts, last.changed) == (counts, changed):
            stands = last.look.tally(self.numbers, self.config.wanted)  # the clock went on
            self._looked = replace(last, at=begun, tally=stands)
            return True
        look = answers.look(label_studio, self.published, self.tasks)
        if look.missing:
            return False
        now = time.monotonic()
        stands = look.tally(self.numbers, self.config.wanted)
        self._looked = _Looked(look, stands, counts, changed, now, now - begun)
        answers.warn_of_vanished(self.published, look, self._withdrawn)
        self._withdrawn = look.withdrawn
        self._reopen(label_studio, look)
        return True

    def _reopen(self, label_studio: LabelStudio, look: Look) -> None:
        usable = Counter(ranking.task for ranking in look.rankings)
        count = reopen(label_studio, look.submitted, usable, self.numbers, self._reopened)
        if count:
            logger.warning(
                "%s answered in a way that cannot be used (%s): back in the queue for others",
                counted(count, "task"),
                listed(look.refused),
            )

    def _may_be_enough(self, counts: Counts) -> bool:
        if self._looked is None:
            return True
        new = counts.answers - self._looked.counts.answers
        return new > 0 and self.tally.counting + new >= self.wanted

    def _is_due(self) -> bool:
        assert self._looked is not None
        every = max(_LOOK_EVERY_S, self._looked.took / _SHARE_OF_TIME)
        every = min(every, 60.0 * self.config.snapshot_minutes)
        return time.monotonic() - self._looked.at >= every

    def _put_back(self, label_studio: LabelStudio) -> None:
        before = self.published
        self.published = publication.publish(
            label_studio, before.project.title, self.config, before.completions, before.folder
        )
        self._reopened.clear()  # each task has its first number again, and perhaps another id
        self._restored += self.published.created > 0
        if self._restored > _RESTORED_AT_MOST:
            raise InputError(
                f"tasks of project {before.project.title!r} were deleted in Label Studio "
                f"{self._restored} times while this round waited: find out who does it, then run "
                f"again; all that was ranked before is kept in {before.snapshots}"
            )


def _refuse_to_wait_for_nobody(seen: Look, wanted: int, config: Labeling) -> None:
    """Simulated labelers give no more than they gave; where people rank too, there is hope."""
    simulations = {simulated.labeler_email(labeler) for labeler in config.simulated}
    if not simulations or any(ranking.labeler not in simulations for ranking in seen.rankings):
        return
    unusable = f" (not usable: {listed(seen.refused)})" if seen.refused else ""
    raise InputError(
        f"{len(seen.rankings)} of {counted(wanted, 'ranking')} are there{unusable}, and the "
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
