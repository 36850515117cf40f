"""The tasks in a Label Studio project: list them, and take away what should not be there. Nothing
that people have answered is ever deleted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from labeling.errors import InputError
from labeling.label_studio import LabelStudio, Project
from labeling.wording import counted

logger = logging.getLogger(__name__)

_PAGE = 2000
_DELETED_AT_ONCE = 1000
_UNANSWERED: dict[str, Any] = {
    "conjunction": "and",
    "items": [
        {"filter": f"filter:tasks:{name}", "operator": "equal", "type": "Number", "value": 0}
        for name in ("total_annotations", "cancelled_annotations")
    ],
}


@dataclass(frozen=True)
class Listed:
    """A task of ours as it was when the tasks were listed. `id` holds for this moment alone."""

    id: int
    key: str
    created: datetime
    is_answered: bool  # or skipped
    overlap: int = 0
    total_annotations: int = 0  # submitted, not skipped


def list_tasks(server: LabelStudio, project: Project) -> tuple[list[Listed], int]:
    """The tasks that are ours, oldest first, and how many others there are. Half a second for each
    thousand."""

    def read() -> list[Any]:
        include = ["id", "data.key", "created_at", "overlap"]
        include += ["total_annotations", "cancelled_annotations"]
        return list(
            server.client.tasks.list(
                project=project.id,
                page_size=_PAGE,
                include=include,
                fields="task_only",
            )
        )

    listed = server.ask(read, repeat=True)
    ours = [
        Listed(
            task.id,
            str(task.data["key"]),
            task.created_at,
            bool(task.total_annotations or task.cancelled_annotations),
            task.overlap or 0,
            task.total_annotations or 0,
        )
        for task in listed
        if "key" in (task.data or {})
    ]
    return sorted(ours, key=lambda task: task.id), len(listed) - len(ours)


def keys(server: LabelStudio, project: Project) -> Counter[str]:
    """The keys of the project's tasks, and how often each is there."""
    return Counter(task.key for task in list_tasks(server, project)[0])


def remove_others(
    server: LabelStudio, project: Project, listed: Sequence[Listed], wanted: Collection[str]
) -> list[Listed]:
    """Delete our tasks of other completions, so that nobody ranks what no round reads; those that
    stay.

    Raises InputError, and deletes nothing, when people have ranked some of them, or when the
    project is another folder's run's: each would delete the other's.
    """
    others = [task for task in listed if task.key not in wanted]
    if project.is_shared and (others or not listed):
        raise InputError(
            f"project {project.title!r} of Label Studio belongs to a run of the same name in "
            "another folder, with other completions: give this run another name with --name, or "
            "delete that project if nobody needs it"
        )
    if ranked := sum(task.is_answered for task in others):
        raise InputError(
            f"{ranked} tasks that are ranked already in project {project.title!r} of Label "
            "Studio are of other completions (the model, the prompts or the sampling changed "
            "since); give this run another name with --name"
        )
    if others:
        logger.warning(
            "%s of other completions, not ranked yet, in project %r: deleted",
            counted(len(others), "task"),
            project.title,
        )
        _delete(server, project, others)
    return [task for task in listed if task.key in wanted]


def remove_copies(
    server: LabelStudio, project: Project, listed: Sequence[Listed], lost: Collection[str]
) -> list[Listed]:
    """Delete the copies of a task that nobody answered, all but one; those that stay. Where the
    key is among the `lost`, an unanswered copy is worth nothing and none stays."""
    by_key: dict[str, list[Listed]] = {}
    for task in listed:
        by_key.setdefault(task.key, []).append(task)
    stay: list[Listed] = []
    for key, copies in by_key.items():
        answered = [task for task in copies if task.is_answered]
        stay += answered or ([] if key in lost else copies[:1])
    if len(stay) < len(listed):
        empty = [task for task in listed if task not in set(stay)]
        logger.warning(
            "%s in project %r came twice, or without the answers: deleted",
            counted(len(empty), "task"),
            project.title,
        )
        _delete(server, project, empty)
    return stay


def _delete(server: LabelStudio, project: Project, tasks: Sequence[Listed]) -> None:
    """The server looks at the moment of the deletion whether a task was answered meanwhile."""
    for start in range(0, len(tasks), _DELETED_AT_ONCE):
        ids = [task.id for task in tasks[start : start + _DELETED_AT_ONCE]]
        server.ask(
            lambda ids=ids: server.client.actions.create(  # type: ignore[misc]
                id="delete_tasks",
                project=project.id,
                selected_items={"all": False, "included": ids},
                filters=_UNANSWERED,
            ),
            repeat=True,
        )
