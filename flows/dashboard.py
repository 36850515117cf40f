"""What a round shows on Prefect's dashboard: the progress of its stages, the rankings that it waits
for, its outcome, and how an earlier process of it ended. A dashboard that is away ends no work."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    Artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.flow_runs import end_killed, end_tasks
from flows.progress import LOGGERS
from flows.runner import Line
from flows.summary import step_rows, summary_markdown, tally_rows
from labeling.tally import Tally, standing

logger = logging.getLogger(__name__)

_ARTIFACT_EVERY_S = 3.0


def show_summary(document: dict[str, Any]) -> None:
    """The round's table and its outcome; `document` is what round.json holds."""
    name, rows, text = _slug(document["name"]), step_rows(document), summary_markdown(document)

    def show() -> None:
        create_table_artifact(rows, key=f"{name}-steps", description="Steps")
        create_markdown_artifact(text, key=f"{name}-summary", description="Outcome")

    shown(show)


class Rankings:
    """Keeps a table of what a round waits for: `name` and `number` are those of the round, the
    number as its folder has it."""

    def __init__(self, name: str, number: str) -> None:
        self._key = f"{_slug(name)}-{number}-rankings"
        self._shown_last: object = None

    def __call__(self, stands: Tally, page: str) -> None:
        """Show it, if there is news: the expected end alone is none."""
        rows = tally_rows(stands)
        people = (rows, stands.wanted, stands.silent_since)
        if people == self._shown_last:
            return
        is_first, self._shown_last = self._shown_last is None, people
        text = f"{'. '.join(standing(stands.document()))}. Rank at {page}"

        def show() -> None:
            if not (is_first and self._is_there(rows)):
                create_table_artifact(rows, key=self._key, description=text)

        shown(show)

    def _is_there(self, rows: list[dict[str, str]]) -> bool:
        """Whether an earlier process, or the watcher, has shown the same."""
        known: Any = Artifact.get(self._key)
        return known is not None and json.loads(known.data or "null") == rows


class Lines:
    """Passes a stage's log records on to `logging`, hence to terminal and dashboard, and keeps a
    progress artifact for stages that take a while."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._last = time.monotonic()
        self._is_shown = True

    def __call__(self, line: Line) -> None:
        ours = line.logger.partition(".")[0] in LOGGERS
        target = logging.getLogger(line.logger if ours else f"flows.others.{line.logger}")
        extra = {"progress": line.progress, "metrics": line.metrics}
        target.log(line.level, line.message, extra=extra)
        if line.progress and self._is_shown:
            self._show(*line.progress, line.message)

    def _show(self, done: int, total: int, message: str) -> None:
        finished = done >= total and self._artifact is not None
        if total <= 0 or (time.monotonic() - self._last < _ARTIFACT_EVERY_S and not finished):
            return
        self._last = time.monotonic()
        share = 100 * min(done / total, 1.0)

        def show() -> None:
            if self._artifact is None:
                key = f"{_slug(self._stage)}-progress"
                self._artifact = cast(UUID, create_progress_artifact(share, key, message))
            else:
                update_progress_artifact(self._artifact, share, message)

        self._is_shown = shown(show)  # after one failure the stage goes on without


def mark_killed(dashboard: str) -> bool:
    """End a killed run on the dashboard. Another server than the one that it ran on does not know
    it. Whether it was told."""

    def show() -> None:
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):
            run = client.read_flow_run(UUID(dashboard.rpartition("/")[2]))
            if run.state is None or not run.state.is_final():
                end_killed(client, run, "Killed; a later run of the round goes on.")

    return shown(show)


def mark_left(flow_run: str) -> None:
    """End what an earlier process of this run left at work on the dashboard."""

    def show() -> None:
        with get_client(sync_client=True) as client:
            end_tasks(client, UUID(flow_run), "Killed; the run went on.")

    shown(show)


def shown(show: Callable[[], None]) -> bool:
    """Whether the dashboard took it. A dashboard that is away ends no work: that is worth a
    warning, whatever it is that Prefect's client raises."""
    try:
        show()
    except Exception as error:
        logger.warning("the dashboard is not told (%s); going on", type(error).__name__)
        return False
    return True


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
