"""How many labelers each task goes to, who of the simulated ones they are, and how the server is
told.

All of it follows from the config and the task's key alone: neither batches, nor timing, nor a
restart change it. Label Studio's own share (`overlap_cohort_percentage`) does not keep that: it
draws its tasks without a seed, draws again whenever tasks arrive or go, and then prefers those that
somebody ranked already. So each task is given its own number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from labeling.config import Labeling
from labeling.records import digest

if TYPE_CHECKING:
    from labeling.label_studio import LabelStudio, Project
    from labeling.project_tasks import Listed

_THREADS = 4  # more bring locks on SQLite


def overlaps(config: Labeling, keys: Sequence[str]) -> dict[str, int]:
    """The number of labelers for each task: `overlap` on about `overlap_share` of them, one on the
    others. Where `wanted` is a number, and more than that gives, every task goes to as many as it
    takes."""
    drawn = {key: config.overlap if _draw(key) < config.overlap_share else 1 for key in keys}
    asked = config.wanted if isinstance(config.wanted, int) else 0
    if asked <= sum(drawn.values()) or not drawn:
        return drawn
    least = math.ceil(asked / len(drawn))
    return {key: max(number, least) for key, number in drawn.items()}


def of_labeler(name: str, config: Labeling, keys: Sequence[str]) -> set[str]:
    """The tasks that fall to one of the simulated labelers: each task has an order of its own among
    them, and the first so many answer it."""
    names = [labeler.name for labeler in config.simulated]

    def first(key: str, number: int) -> list[str]:
        return sorted(names, key=lambda one: digest(["order", one, key]))[:number]

    return {key for key, number in overlaps(config, keys).items() if name in first(key, number)}


def usual(numbers: Mapping[str, int]) -> int:
    """What most tasks want: the project's own number, so that few tasks need one of theirs."""
    return Counter(numbers.values()).most_common(1)[0][0]


def set_overlaps(
    server: LabelStudio,
    project: Project,
    numbers: Mapping[str, int],
    there: Sequence[Listed] | None = None,
) -> int:
    """Give each task its number of labelers where the server has another; how many had. `there`:
    the tasks, by somebody who has just listed or sent them; a listing takes half a second for each
    thousand.

    The server does not look again whether a task is done, so that is said with it: a task that one
    has ranked and two shall rank comes back into the queue.
    """

    def read() -> list[tuple[str, Any]]:
        tasks: Any = server.client.tasks.list(
            project=project.id,
            page_size=2000,
            include=["id", "data", "overlap", "total_annotations"],
            fields="task_only",
        )
        return [(str((task.data or {}).get("key")), task) for task in tasks]

    listed = server.ask(read, repeat=True) if there is None else [(one.key, one) for one in there]
    others = [
        (task, numbers[key])
        for key, task in listed
        if key in numbers and numbers[key] != task.overlap
    ]

    def tell(other: tuple[Any, int]) -> None:
        task, number = other
        is_done = (task.total_annotations or 0) >= number
        update = partial(server.client.tasks.update, str(task.id))
        server.ask(lambda: update(overlap=number, is_labeled=is_done), repeat=True)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="overlap") as pool:
        list(pool.map(tell, others))
    return len(others)


def submitted(export: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Of an export's tasks, by key: the id of this moment, and the answers that count there."""
    found = {}
    for task in export:
        key = (task.get("data") or {}).get("key")
        answers = task.get("annotations") or ()
        if isinstance(key, str):
            found[key] = (task["id"], sum(not a.get("was_cancelled") for a in answers))
    return found


def reopen(
    server: LabelStudio,
    there: Mapping[str, tuple[int, int]],
    usable: Mapping[str, int],
    numbers: Mapping[str, int],
    told: dict[int, int],
) -> int:
    """Put tasks back into the queue that the server counts as done though some of their answers
    cannot be used: a partial ranking is an answer to it. How many were put back now.

    Args:
        there: `submitted` of the newest export.
        usable: usable rankings by key.
        numbers: how many labelers each task was to get.
        told: the number that each task was given so far, by id; what is given now is added.
    """
    count = 0
    for key, (task, answers) in there.items():
        missing = numbers.get(key, 0) - usable.get(key, 0)
        if missing <= 0 or answers < numbers[key] or told.get(task) == answers + missing:
            continue
        told[task] = answers + missing
        update = partial(server.client.tasks.update, str(task))
        server.ask(partial(update, overlap=told[task], is_labeled=False), repeat=True)
        count += 1
    return count


def _draw(key: str) -> float:
    """A number in [0, 1) that belongs to the task."""
    return int(digest(["overlap", key]), 16) / 16**16
