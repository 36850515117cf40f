"""Where the ranking of a round stands: how much is there of what is wanted, by whom, how fast, and
what could not be used. Pure: it reads answers (rankings.py), and asks no server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from labeling.goal import Goal, Quota
from labeling.rankings import Answer
from labeling.wording import counted

# The pace of the last day, nights included, is what tells when people who come back every day will
# be done; before there is a day, it is the pace since the first answer.
_WINDOW = timedelta(days=1)
_FEW = 3  # answers, below which a pace says nothing


@dataclass(frozen=True)
class LabelerTally:
    """One labeler: usable rankings and refused answers, seconds at a task (the median of what the
    page measured; None where it measured nothing), and the time of the last answer (ISO 8601)."""

    labeler: str
    rankings: int
    refused: int
    seconds: float | None
    last: str | None


@dataclass(frozen=True)
class Tally:
    """The whole round. `rankings` are usable, `counting` of them count: where a share or all are
    wanted, of no task more than it was to get. `wanted` is enough now; `tasks_done` have all of
    theirs. From the `deadline` on `minimum` are enough; `in_full` is what else is.

    `per_hour` counts usable rankings; `expected_end` is when the gate opens at that pace. Times are
    ISO 8601, UTC; both are None while too little is known, and `expected_end` also when nothing is
    left to do. `silent_since` is there when nobody has answered for longer than the round takes in
    silence."""

    tasks: int
    tasks_done: int
    rankings: int
    counting: int
    wanted: int
    in_full: int
    minimum: int | None
    deadline: str | None
    is_after_deadline: bool
    refused: dict[str, int] = field(hash=False)
    labelers: tuple[LabelerTally, ...]
    per_hour: float | None
    expected_end: str | None
    silent_since: str | None
    taken: str

    @property
    def is_enough(self) -> bool:
        return self.counting >= self.wanted

    def document(self) -> dict[str, Any]:
        """As round.json keeps it."""
        return asdict(self)


def tally(answers: Sequence[Answer], goal: Goal, now: datetime) -> Tally:
    """Count what is there of the goal at the moment `now` (with a time zone)."""
    usable = [answer for answer in answers if answer.ranking is not None]
    there = Counter(answer.task for answer in usable)
    per_hour = _per_hour([a.at for a in usable if a.at is not None], now)
    wanted = goal.nearest(there, now)
    is_enough = goal.missing(wanted, there) == 0
    end = None if is_enough else _end(goal, there, per_hour, now)
    since = None if is_enough else _silent_since(answers, goal, now)
    return Tally(
        tasks=len(goal.numbers),
        tasks_done=sum(there[key] >= number for key, number in goal.numbers.items()),
        rankings=len(usable),
        counting=goal.counting(wanted, there),
        wanted=wanted.rankings,
        in_full=goal.wanted.rankings,
        minimum=goal.minimum.rankings if goal.minimum else None,
        deadline=_written(goal.deadline) if goal.deadline else None,
        is_after_deadline=goal.is_after_deadline(now),
        refused=dict(Counter(str(a.refusal) for a in answers if a.refusal).most_common()),
        labelers=by_labeler(answers),
        per_hour=None if per_hour is None else round(per_hour, 1),
        expected_end=_written(end) if end else None,
        silent_since=_written(since) if since else None,
        taken=_written(now),
    )


def by_labeler(answers: Iterable[Answer]) -> tuple[LabelerTally, ...]:
    """Those who ranked most come first; answers of deleted accounts are in the refusals alone."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.labeler:
            groups.setdefault(answer.labeler, []).append(answer)
    rows = []
    for labeler, theirs in groups.items():
        seconds = [a.seconds for a in theirs if a.ranking is not None and a.seconds > 0]
        last = max((a.at for a in theirs if a.at is not None), default=None)
        usable = sum(answer.ranking is not None for answer in theirs)
        rows.append(
            LabelerTally(
                labeler,
                rankings=usable,
                refused=len(theirs) - usable,
                seconds=round(median(seconds), 1) if seconds else None,
                last=_written(last) if last else None,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.rankings, row.labeler)))


def _per_hour(times: Sequence[datetime], now: datetime) -> float | None:
    recent = [at for at in times if now - at <= _WINDOW]
    if len(recent) < _FEW:
        return None
    since = now - _WINDOW if len(recent) < len(times) else min(recent)
    return len(recent) / max((now - since) / timedelta(hours=1), 1 / 60)


def _end(
    goal: Goal, there: Mapping[str, int], per_hour: float | None, now: datetime
) -> datetime | None:
    """When the gate opens: with all that is wanted, or from the deadline on with the minimum."""

    def reached(quota: Quota, not_before: datetime) -> datetime | None:
        missing = goal.missing(quota, there)
        if missing and not per_hour:
            return None
        return max(not_before, now + timedelta(hours=missing / per_hour if per_hour else 0))

    ends = [reached(goal.wanted, now)]
    if goal.minimum and goal.deadline:
        ends.append(reached(goal.minimum, goal.deadline))
    return min(filter(None, ends), default=None)


def _silent_since(answers: Sequence[Answer], goal: Goal, now: datetime) -> datetime | None:
    """The last sign of a labeler, be it a skip, or the publishing, if that is long ago."""
    signs = [answer.at for answer in answers if answer.at is not None]
    since = max([*signs, *([goal.published] if goal.published else [])], default=None)
    if since is None or goal.remind_after is None or now - since < goal.remind_after:
        return None
    return since


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


# --- for people -----------------------------------------------------------------------------------


def describe(document: dict[str, Any]) -> list[str]:
    """A tally out of round.json in a few lines: the state, the labelers, what was not used."""
    lines = standing(document)
    for row in document["labelers"]:
        *parts, last = labeler_parts(row)
        told = [*parts, f"last {last}" if last else ""]
        lines.append(f"  {row['labeler']}: {', '.join(part for part in told if part)}")
    if document["refused"]:
        lines.append(f"  not used: {listed(document['refused'])}")
    return lines


def standing(document: dict[str, Any]) -> list[str]:
    """How much is there; from when on less is enough; and for how long nobody has answered."""
    first = (
        f"{document['counting']:,} of {counted(document['wanted'], 'ranking')}, "
        f"{document['tasks_done']:,} of {counted(document['tasks'], 'task')} done"
    )
    if surplus := document["rankings"] - document["counting"]:
        first += f", {surplus:,} more on tasks that had enough"
    if document["per_hour"] is not None:
        first += f", {document['per_hour']:g} an hour"
    if document["expected_end"] is not None:
        first += f", done by about {for_people(document['expected_end'])}"
    lines = [first]
    if document.get("deadline"):  # an earlier version's round.json has none
        when, enough = for_people(document["deadline"]), counted(document["minimum"], "ranking")
        if document["is_after_deadline"]:
            lines.append(
                f"since the deadline, {when}, {enough} would be enough in place of "
                f"{document['in_full']:,}: the round waits for them"
            )
        else:
            lines.append(f"from {when} on, {enough} will be enough")
    if document.get("silent_since"):
        lines.append(f"nobody has answered for {silence(document)}")
    return lines


def silence(document: dict[str, Any]) -> str:
    """`26 hours`."""
    taken, since = (datetime.fromisoformat(document[key]) for key in ("taken", "silent_since"))
    hours = (taken - since) // timedelta(hours=1)
    return counted(hours, "hour") if hours else "less than an hour"


def labeler_parts(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Of a labeler: usable rankings, refused answers, pace and last answer, each maybe empty."""
    return (
        counted(row["rankings"], "ranking"),
        f"{row['refused']:,} not usable" if row["refused"] else "",
        f"{row['seconds']:g} s a task" if row["seconds"] is not None else "",
        for_people(row["last"]) if row["last"] else "",
    )


def listed(refused: dict[str, int]) -> str:
    """`3 skipped, 1 partial`."""
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in refused.items())


def for_people(written: str) -> str:
    """In the time zone of this machine, to the minute."""
    return datetime.fromisoformat(written).astimezone().strftime("%a %d %b, %H:%M")
