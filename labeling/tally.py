"""Where the ranking of a round stands: how much is there of what is wanted, by whom, how fast, and
what could not be used. Pure: it reads answers (rankings.py), and asks no server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

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
    """The whole round. `rankings` are usable, of `counting` of them no task has more than it was to
    get; `tasks_done` have all of theirs. `per_hour` counts usable rankings; `expected_end` is when
    `wanted` are there at that pace. Times are ISO 8601, UTC; both are None while too little is
    known, and `expected_end` also when nothing is left to do."""

    tasks: int
    tasks_done: int
    rankings: int
    counting: int
    wanted: int
    refused: dict[str, int] = field(hash=False)
    labelers: tuple[LabelerTally, ...]
    per_hour: float | None
    expected_end: str | None
    taken: str

    @property
    def is_enough(self) -> bool:
        return self.counting >= self.wanted

    def document(self) -> dict[str, Any]:
        """As round.json keeps it."""
        return asdict(self)


def tally(
    answers: Sequence[Answer], numbers: Mapping[str, int], wanted: int | None, now: datetime
) -> Tally:
    """Count what is there at the moment `now` (with a time zone).

    Args:
        numbers: how many labelers each task was to get, by key (labeling/overlap.py).
        wanted: so many usable rankings, on whichever tasks; None: each task's number.
    """
    usable = [answer for answer in answers if answer.ranking is not None]
    there = Counter(answer.task for answer in usable)
    in_turn = sum(min(there[key], number) for key, number in numbers.items())
    counting = in_turn if wanted is None else len(usable)
    wanted = sum(numbers.values()) if wanted is None else wanted
    per_hour = _per_hour([a.at for a in usable if a.at is not None], now)
    missing = wanted - counting
    end = None
    if per_hour and missing > 0:
        end = _written(now + timedelta(hours=missing / per_hour))
    return Tally(
        tasks=len(numbers),
        tasks_done=sum(there[key] >= number for key, number in numbers.items()),
        rankings=len(usable),
        counting=counting,
        wanted=wanted,
        refused=dict(Counter(str(a.refusal) for a in answers if a.refusal).most_common()),
        labelers=by_labeler(answers),
        per_hour=None if per_hour is None else round(per_hour, 1),
        expected_end=end,
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


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


# --- for people -----------------------------------------------------------------------------------


def describe(document: dict[str, Any]) -> list[str]:
    """A tally out of round.json in a few lines: the state, the labelers, what was not used."""
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
    for row in document["labelers"]:
        *parts, last = labeler_parts(row)
        told = [*parts, f"last {last}" if last else ""]
        lines.append(f"  {row['labeler']}: {', '.join(part for part in told if part)}")
    if document["refused"]:
        lines.append(f"  not used: {listed(document['refused'])}")
    return lines


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
