"""Label Studio's exported annotations → rankings; every refusal is named and counted.

The server checks almost nothing of what a labeler or a program saves, so all of it is checked
here. Pure: nothing is asked of a server.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from labeling import page
from labeling.records import Candidates, Ranking


class Refusal(StrEnum):
    """Why an annotation is not a usable ranking."""

    UNKNOWN_TASK = "unknown_task"  # a task without our key, or with the key of other candidates
    UNKNOWN_LABELER = "unknown_labeler"  # no account's email: a deleted account
    DUPLICATE = "duplicate"  # the same labeler answered the same task again later
    WITHDRAWN = "withdrawn"  # it was there in an earlier export, and somebody deleted it
    SKIPPED = "skipped"
    UNTOUCHED = "untouched"  # submitted without ranking anything
    PARTIAL = "partial"  # some completions were left outside the tiers
    UNKNOWN_ID = "unknown_id"
    UNKNOWN_BUCKET = "unknown_bucket"
    MALFORMED = "malformed"  # not the shape that the page saves, or an id in two tiers


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


@dataclass(frozen=True)
class Answer:
    """One annotation as it counts: a `ranking`, or the `refusal` that says why it is none.

    `task` is its key and `labeler` an email, "" where they are not known. `at` is the time of its
    last change, `seconds` what the page measured of the labeler's time (0: nothing).
    """

    task: str
    labeler: str
    at: datetime | None = None
    seconds: float = 0.0
    ranking: Ranking | None = None
    refusal: Refusal | None = None


def rankings_from_export(
    export: Iterable[Mapping[str, Any]],
    candidates: Sequence[Candidates],
    withdrawn: Iterable[tuple[str, str]] = (),
) -> tuple[list[Ranking], Counter[str]]:
    """Usable rankings of an export, by task and labeler, and how many annotations were refused, by
    `Refusal`; `read_answers` says what of what."""
    answers = read_answers(export, candidates, withdrawn)
    rankings = [answer.ranking for answer in answers if answer.ranking is not None]
    return rankings, Counter(answer.refusal for answer in answers if answer.refusal is not None)


def read_answers(
    export: Iterable[Mapping[str, Any]],
    candidates: Sequence[Candidates],
    withdrawn: Iterable[tuple[str, str]] = (),
) -> list[Answer]:
    """Every annotation of an export, judged.

    Args:
      export: tasks with annotations, as `LabelStudio.export` gives them: `completed_by` must be
        expanded to the account, because its email is the labeler's lasting name.
      candidates: the tasks that were published; anything else in the project is refused.
      withdrawn: (task key, labeler) of answers that earlier exports had and this one has not
        (labeling/withdrawn.py); they are only counted.

    Each labeler has one say on each task: the latest, by the time of the last change. A skip after
    an answer takes the answer back, an answer after a skip counts. `bad_prompt` or
    `none_acceptable` is an answer also without a complete ranking: such a Ranking has no tiers,
    hence gives no pairs. What counts for a labeler and a task comes last, sorted by the two.
    """
    known = {c.key: len(c.completions) for c in candidates}
    answers: list[Answer] = []
    latest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for key, labeler, annotation in annotations_of(export):
        if key not in known:
            answers.append(_not_used(key, labeler, annotation, Refusal.UNKNOWN_TASK))
        elif not labeler:
            answers.append(_not_used(key, labeler, annotation, Refusal.UNKNOWN_LABELER))
        else:
            before = latest.get((key, labeler))
            later = before is None or changed_at(before) <= changed_at(annotation)
            if before is not None:
                earlier = before if later else annotation
                answers.append(_not_used(key, labeler, earlier, Refusal.DUPLICATE))
            if later:
                latest[key, labeler] = annotation
    for key, labeler in sorted(withdrawn):
        if key in known and (key, labeler) not in latest:
            answers.append(_not_used(key, labeler, {}, Refusal.WITHDRAWN))
    for (key, labeler), annotation in sorted(latest.items(), key=lambda item: item[0]):
        try:
            ranking = _ranking(annotation, key, labeler, known[key])
        except _Refused as refused:
            answers.append(_not_used(key, labeler, annotation, refused.refusal))
        else:
            answers.append(Answer(key, labeler, *_when(annotation), ranking=ranking))
    return answers


def _not_used(key: str, labeler: str, annotation: Mapping[str, Any], why: Refusal) -> Answer:
    return Answer(key, labeler, *_when(annotation), refusal=why)


def _when(annotation: Mapping[str, Any]) -> tuple[datetime | None, float]:
    """Time of the last change, and the labeler's seconds; an imported answer may have neither."""
    at, _ = changed_at(annotation)
    seconds = _get(annotation, "lead_time")
    is_number = isinstance(seconds, (int, float)) and math.isfinite(seconds)
    return (at if at.year > 1 else None), float(seconds) if is_number else 0.0


def annotations_of(
    export: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(task key, labeler, annotation) of all annotations; "" for a key that is not ours or an
    account that has no address any more."""
    for task in export:
        key = _get(_get(task, "data"), "key")
        for annotation in _get(task, "annotations") or ():
            email = _get(_get(annotation, "completed_by"), "email")
            yield (
                key if isinstance(key, str) else "",
                # One mailbox, however it was typed at the signup.
                email.lower() if isinstance(email, str) else "",
                annotation,
            )


def _ranking(annotation: Mapping[str, Any], key: str, labeler: str, count: int) -> Ranking:
    if _get(annotation, "was_cancelled"):
        raise _Refused(Refusal.SKIPPED)
    result = _get(annotation, "result")
    if not isinstance(result, list):
        raise _Refused(Refusal.MALFORMED)
    values: dict[str, Mapping[str, Any]] = {}
    for item in result:
        name, value = _get(item, "from_name"), _get(item, "value")
        if not isinstance(name, str) or not isinstance(value, Mapping) or name in values:
            raise _Refused(Refusal.MALFORMED)
        values[name] = value
    flags = _strings(values.get(page.FLAGS, {}).get("choices", []))
    reason = _strings(values.get(page.REASON, {}).get("text", []))
    none_acceptable, bad_prompt = page.NONE_ACCEPTABLE in flags, page.BAD_PROMPT in flags
    try:
        tiers = _tiers(values.get(page.RANKING), key, count)
    except _Refused as refusal:
        unfinished = refusal.refusal in (Refusal.UNTOUCHED, Refusal.PARTIAL)
        if not (unfinished and (none_acceptable or bad_prompt)):
            raise
        tiers = ()
    return Ranking(key, labeler, tiers, none_acceptable, bad_prompt, "\n".join(reason).strip())


def _tiers(value: Mapping[str, Any] | None, key: str, count: int) -> tuple[tuple[int, ...], ...]:
    """Indices into `Candidates.completions`, best tier first, empty tiers left out."""
    if value is None:
        raise _Refused(Refusal.UNTOUCHED)
    buckets = value.get("ranker")
    if not isinstance(buckets, Mapping):
        raise _Refused(Refusal.MALFORMED)
    if set(buckets) - {page.UNRANKED, *page.TIERS}:
        raise _Refused(Refusal.UNKNOWN_BUCKET)
    order = page.shown_order(key, count)
    index_of = {page.item_id(key, position): index for position, index in enumerate(order)}
    seen: list[str] = [id_ for bucket in buckets.values() for id_ in _strings(bucket)]
    if set(seen) - set(index_of):
        raise _Refused(Refusal.UNKNOWN_ID)
    if len(set(seen)) != len(seen):
        raise _Refused(Refusal.MALFORMED)
    tiers = [tuple(sorted(index_of[i] for i in buckets.get(tier) or ())) for tier in page.TIERS]
    ranked = sum(map(len, tiers))
    if ranked == 0:
        raise _Refused(Refusal.UNTOUCHED)
    if ranked < count:
        raise _Refused(Refusal.PARTIAL)
    return tuple(tier for tier in tiers if tier)


def _strings(value: Any) -> list[str]:
    """A list of strings (or a single one) as a list; anything else is malformed."""
    if isinstance(value, str):
        return [value]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise _Refused(Refusal.MALFORMED)
    return value


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def changed_at(annotation: Mapping[str, Any]) -> tuple[datetime, int]:
    """Orders one labeler's annotations of one task: by the last change, then by id."""
    id_ = _get(annotation, "id")
    updated = _get(annotation, "updated_at") or _get(annotation, "created_at")
    return read_time(updated), id_ if isinstance(id_, int) else 0


def read_time(text: Any) -> datetime:
    """A time of the export; of what is none, a time before all others. As texts they do not sort:
    on a full second Label Studio leaves out the fraction."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        time = datetime.min
    return time if time.tzinfo else time.replace(tzinfo=UTC)
