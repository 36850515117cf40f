"""A labeler that is a function: it answers through Label Studio's own API, as a person would
through the page. Its answers depend on the labeler's settings and the task alone, so neither the
order of work nor a restart changes them."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from labeling import accounts, page
from labeling.config import SimulatedLabeler
from labeling.label_studio import LabelStudio, Project
from labeling.records import Candidates, Ranking, digest

logger = logging.getLogger(__name__)

Score = Callable[[list[str], list[str]], Sequence[float]]

THREADS = 4  # more bring locks on SQLite
_SCORED_AT_ONCE = 256  # tasks
_ATTEMPTS = 5
_TOO_MANY_FAILURES = 8


def labeler_email(labeler: SimulatedLabeler) -> str:
    """The account under which this labeler answers: its lasting name in rankings."""
    name = re.sub(r"[^a-z0-9._-]+", "-", labeler.name.lower()).strip("-.")
    if name != labeler.name:
        name = f"{name}-{digest(labeler.name)[:6]}".lstrip("-")
    return f"{name}{accounts.SIMULATED}"


def rank(labeler: SimulatedLabeler, task: Candidates, scores: Sequence[float]) -> Ranking:
    """This labeler's ranking of a task: tiers by descending noisy score.

    Args:
      scores: one number for each of `task.completions`, in their order, higher is better.

    Neighbours that differ by at most `tie_within` share a tier.
    """
    key = task.key
    noise = random.Random(int(digest([labeler.seed, labeler.name, key]), 16))
    noisy = [score + labeler.noise * noise.gauss(0.0, 1.0) for score in scores]
    tiers: list[list[int]] = []
    for index in sorted(range(len(noisy)), key=lambda i: (-noisy[i], i)):
        if tiers and noisy[tiers[-1][-1]] - noisy[index] <= labeler.tie_within:
            tiers[-1].append(index)
        else:
            tiers.append([index])
    return Ranking(key, labeler_email(labeler), tuple(tuple(sorted(tier)) for tier in tiers))


def answer_tasks(
    labeler: SimulatedLabeler,
    score: Score,
    server: LabelStudio,
    project: Project,
    candidates: Sequence[Candidates],
    limit: int | None = None,
) -> int:
    """Answer every given task of the project that this labeler has not answered; how many it did.

    What is there is read first, so that a restart doubles nothing. `limit`: answer at most so
    many. Raises InputError for a score function that misbehaves, ConnectionError when the server
    keeps failing.
    """
    known = {task.key: task for task in candidates}
    email = labeler_email(labeler)
    signed_in = accounts.sign_in(server, email, labeler.name, "(simulated)")
    done = failed_passes = 0
    while True:
        todo = _unanswered(server.export(project), known, email)
        if limit is not None:
            todo = todo[: limit - done]
        if not todo:
            return done
        posted, trouble = _answer(labeler, score, signed_in, todo)
        done += posted
        if trouble is None:
            return done
        # A request that failed may have been committed all the same: read again before repeating.
        failed_passes = 1 if posted else failed_passes + 1
        if failed_passes == _ATTEMPTS:
            raise trouble
        logger.warning("%s; looking at what arrived", trouble)
        server.wait_until_stable(project)


def _unanswered(
    export: Iterable[Mapping[str, Any]], known: Mapping[str, Candidates], email: str
) -> list[tuple[int, Candidates]]:
    """(task id of this moment, candidates) of what this labeler has not answered or skipped."""
    ids: dict[str, int] = {}
    answered = set()
    for task in export:
        key = task["data"].get("key")
        if key not in known:
            continue
        ids.setdefault(key, task["id"])
        if any((a.get("completed_by") or {}).get("email") == email for a in task["annotations"]):
            answered.add(key)
    return [(id_, known[key]) for key, id_ in ids.items() if key not in answered]


def _answer(
    labeler: SimulatedLabeler,
    score: Score,
    signed_in: accounts.Labeler,
    todo: Sequence[tuple[int, Candidates]],
) -> tuple[int, ConnectionError | None]:
    """One pass over `todo`: how many answers were accepted, and the last trouble, if any."""
    posted, failures = 0, 0
    trouble: ConnectionError | None = None
    begun = time.monotonic()

    def post(task_id: int, ranking: Ranking, count: int) -> None:
        signed_in.annotate(task_id, page.annotation_result(ranking, count))

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="labeler")
    try:
        for start in range(0, len(todo), _SCORED_AT_ONCE):
            batch = todo[start : start + _SCORED_AT_ONCE]
            scores = _scores(score, [task for _, task in batch])
            waiting = [
                pool.submit(post, task_id, rank(labeler, task, given), len(task.completions))
                for (task_id, task), given in zip(batch, scores, strict=True)
            ]
            for answered in as_completed(waiting):
                try:
                    answered.result()
                    posted += 1
                except ConnectionError as error:
                    trouble, failures = error, failures + 1
                    if failures >= _TOO_MANY_FAILURES:
                        return posted, trouble
                    continue
                if posted % 50 == 0 or posted == len(todo):
                    logger.info(
                        "%s: %d/%d rankings, %.0f/s",
                        labeler.name,
                        posted,
                        len(todo),
                        posted / max(time.monotonic() - begun, 1e-6),
                        extra={"progress": (posted, len(todo))},
                    )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return posted, trouble


def _scores(score: Score, tasks: Sequence[Candidates]) -> list[list[float]]:
    """Scores of each task's completions; the function is called once for all of them."""
    prompts = [task.prompt.readable for task in tasks for _ in task.completions]
    completions = [completion.text for task in tasks for completion in task.completions]
    flat = iter(score(prompts, completions))
    return [[float(next(flat)) for _ in task.completions] for task in tasks]
