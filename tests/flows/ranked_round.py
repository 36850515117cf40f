"""A round's four tasks, put before labelers and answered: for the tests of labels and gate."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows import publication
from flows.publication import Published
from labeling import page, simulated
from labeling.accounts import sign_in
from labeling.config import Labeling, SimulatedLabeler
from labeling.label_studio import LabelStudio
from labeling.records import Candidates, Completion, Prompt, Ranking, write_candidates

LABELER = SimulatedLabeler(score="unused.py:score")
ANN = "ann@example.org"


def by_length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def tasks(prefix: str = "question") -> list[Candidates]:
    return [
        Candidates(Prompt(text=f"{prefix} {n}"), (Completion("a" * (n + 1)), Completion("b")))
        for n in range(1, 5)
    ]


def write_tasks(path: Path, given: Sequence[Candidates]) -> Path:
    write_candidates(given, path)
    return path


def round_folder(folder: Path) -> Path:
    return folder / "runs" / "name" / "rounds" / "000"


def publish_round(label_studio: LabelStudio, folder: Path) -> Published:
    """Four tasks in a project of their own."""
    completions = write_tasks(folder / "completions.parquet", tasks())
    name = f"round-{uuid.uuid4().hex[:8]}"
    return publication.publish(label_studio, name, Labeling(), completions, round_folder(folder))


def publish_again(
    label_studio: LabelStudio, published: Published, completions: Path | None = None
) -> Published:
    return publication.publish(
        label_studio,
        published.project.title,
        Labeling(),
        completions or published.completions,
        published.folder,
    )


def answer(label_studio: LabelStudio, published: Published, limit: int) -> None:
    """The simulated labeler answers so many more."""
    simulated.answer_tasks(
        LABELER, by_length, label_studio, published.project, tasks(), limit=limit
    )


def rank(
    label_studio: LabelStudio,
    published: Published,
    task: Candidates,
    tiers: Sequence[Sequence[int]] = ((0,), (1,)),
    email: str = ANN,
) -> None:
    """One answer of a person, as the page would send it."""
    ranking = Ranking(task.key, email, tuple(tuple(tier) for tier in tiers))
    sign_in(label_studio, email).annotate(
        exported(label_studio, published)[task.key]["id"],
        page.annotation_result(ranking, len(task.completions)),
    )


def exported(label_studio: LabelStudio, published: Published) -> dict[str, dict[str, Any]]:
    """The project's tasks with their annotations, by key."""
    return {task["data"]["key"]: task for task in label_studio.export(published.project)}


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
