"""One turn of the gate: is all as it should be in Label Studio, and what have people answered? No
Prefect.

What one turn must know of the last one, perhaps another process's, is in the round's folder
(flows/looks.py); what only saves work is kept in memory.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from flows import answers, publication
from flows.answers import Look
from flows.looks import Notes, Seen
from flows.publication import Published
from labeling import snapshots
from labeling.config import Labeling
from labeling.connection import Gone
from labeling.errors import InputError
from labeling.goal import goal_of
from labeling.label_studio import Counts, LabelStudio
from labeling.overlap import reopen
from labeling.records import read_candidates
from labeling.tally import Tally, listed, silence
from labeling.wording import counted

logger = logging.getLogger(__name__)

# A look is an export, a second for a thousand tasks. One is taken when the count of answers says
# that they may be enough, and else so often, if anything changed (an edit changes no count), but
# for at most a twentieth of the time.
_LOOK_EVERY_S = 60.0
_SHARE_OF_TIME = 1 / 20
_RESTORED_AT_MOST, _RESTORED_IN = 5, timedelta(days=1)
_TRIES = 3  # in one turn


@dataclass(frozen=True)
class _Looked:
    """A look: what was there just before it, when it ended (s), and how long it took (s)."""

    look: Look
    tally: Tally
    counts: Counts
    changed: str
    at: float
    took: float


class Lookout:
    """Looks at one round, for whoever is `alone` with it (flows/looks.py): the project, which may
    be created anew, and what was seen last."""

    def __init__(self, published: Published, config: Labeling) -> None:
        self.published, self.config = published, config
        self.tasks = read_candidates(published.completions)
        self.goal = goal_of(config, [task.key for task in self.tasks], published.first)
        self._looked: _Looked | None = None

    def look(self, label_studio: LabelStudio, now: datetime) -> tuple[Look, Tally]:
        """Look whether all is as it should be, and at the answers where it may be worth it.

        Raises ConnectionError when it is not after some tries, or the server fails.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(Gone):
                if self._look(label_studio, now):
                    assert self._looked is not None
                    return self._looked.look, self._looked.tally
            self._put_back(label_studio, now)
            self._looked = None
        raise ConnectionError(
            f"project {self.published.project.title!r} of Label Studio is gone, or lacks tasks, as "
            "often as it is put right"
        )

    def remind(self, stands: Tally, page: str) -> None:
        """Say that nobody answers: once, and again after as much time as it took to say so."""
        if stands.silent_since is None or self.goal.remind_after is None:
            return
        since, now = (datetime.fromisoformat(at) for at in (stands.silent_since, stands.taken))
        due = since + (now - since) // self.goal.remind_after * self.goal.remind_after
        reminded = self._notes.reminded
        if reminded is not None and reminded >= due:
            return
        logger.warning(
            "nobody has answered for %s: %d of %s are there; rank at %s (`rankloop labelers "
            "invite` gives the link for more people)",
            silence(stands.document()),
            stands.counting,
            counted(stands.wanted, "ranking"),
            page,
        )
        self._note(reminded=now)

    @property
    def _notes(self) -> Notes:
        """What the last turn left, whoever took it."""
        return Notes.read(self.published.folder)

    def _note(self, **changed: Any) -> None:
        before = self._notes
        after = before.model_copy(update=changed)
        if after != before:
            after.write(self.published.folder)

    def _look(self, label_studio: LabelStudio, now: datetime) -> bool:
        """Whether all tasks are there. Only an export tells which are: somebody may have deleted
        one and added another."""
        project = self.published.project
        counts = label_studio.count(project)
        if counts.tasks != self.published.in_project:
            return False
        if self._looked and not self._may_be_enough(counts) and not self._is_due(now):
            return True
        changed, begun = label_studio.last_change(project), time.monotonic()
        last = self._looked
        if last and (last.counts, last.changed) == (counts, changed):
            stands = last.look.tally(self.goal, now)  # the clock went on
            self._looked = replace(last, at=begun, tally=stands)
            return True
        seen = Seen(project=project.id, **vars(counts), changed=changed)
        look = self._kept_look(seen) or answers.look(label_studio, self.published, self.tasks)
        if look.missing:
            return False
        ended = time.monotonic()
        stands = look.tally(self.goal, now)
        self._looked = _Looked(look, stands, counts, changed, ended, ended - begun)
        answers.warn_of_vanished(self.published, look, self._notes.withdrawn)
        self._note(
            seen=seen.model_copy(update={"snapshot": look.snapshot.digest}),
            withdrawn=frozenset(look.withdrawn),
        )
        self._reopen(label_studio, look)
        return True

    def _kept_look(self, now: Seen) -> Look | None:
        """What the newest snapshot says, if nothing changed since it was taken."""
        last = self._notes.seen
        newest = next(iter(snapshots.kept(self.published.snapshots)), None)
        if last is None or newest is None or newest.digest != last.snapshot:
            return None
        if last != now.model_copy(update={"snapshot": last.snapshot}):
            return None
        return answers.look_again(self.published, newest, self.tasks)

    def _reopen(self, label_studio: LabelStudio, look: Look) -> None:
        usable = Counter(ranking.task for ranking in look.rankings)
        told = dict(self._notes.told)
        count = reopen(label_studio, look.submitted, usable, self.goal.numbers, told)
        self._note(told=told)
        if count:
            logger.warning(
                "%s answered in a way that cannot be used (%s): back in the queue for others",
                counted(count, "task"),
                listed(look.refused),
            )

    def _may_be_enough(self, counts: Counts) -> bool:
        assert self._looked is not None
        new, stands = counts.answers - self._looked.counts.answers, self._looked.tally
        return new > 0 and stands.counting + new >= stands.wanted

    def _is_due(self, now: datetime) -> bool:
        assert self._looked is not None
        if self.goal.is_after_deadline(now) != self._looked.tally.is_after_deadline:
            return True
        every = max(_LOOK_EVERY_S, self._looked.took / _SHARE_OF_TIME)
        every = min(every, 60.0 * self.config.snapshot_minutes)
        return time.monotonic() - self._looked.at >= every

    def _put_back(self, label_studio: LabelStudio, now: datetime) -> None:
        before = self.published
        self.published = publication.put_there(
            label_studio, before.project.title, self.config, before.completions, before.folder
        )
        if not self.published.created:
            return
        lately = tuple(at for at in self._notes.restored if now - at < _RESTORED_IN)
        restored = (*lately, now)
        if len(restored) <= _RESTORED_AT_MOST:
            self._note(restored=restored)
            return
        self._note(restored=())  # told: who runs again has found out
        raise InputError(
            f"tasks of project {before.project.title!r} were deleted in Label Studio "
            f"{len(restored)} times in a day while this round waited: find out who does it, then "
            f"run again; all that was ranked before is kept in {before.snapshots}"
        )
