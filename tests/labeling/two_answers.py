"""Tasks of two completions, for the tests against Label Studio."""

from __future__ import annotations

from labeling.label_studio import LabelStudio, Project
from labeling.records import Candidates, Completion, Prompt


def make_tasks(name: str, count: int) -> list[Candidates]:
    return [
        Candidates(Prompt(text=f"{name} {n}"), (Completion(f"yes {n}"), Completion(f"no {n}")))
        for n in range(count)
    ]


def task_ids(server: LabelStudio, project: Project) -> dict[str, int]:
    return {task["data"]["key"]: task["id"] for task in server.export(project)}
