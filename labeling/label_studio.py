"""Label Studio's projects: find or create ours, count its answers, export them. Tasks are put there
by labeling/publishing.py.

Tasks are known by `data.key` (Candidates.key), never by Label Studio's id: on SQLite an id is used
again after a deletion.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from labeling import page
from labeling.connection import LONG_REQUEST_S, Connection, Gone
from labeling.errors import InputError
from labeling.instructions import instructions_html
from labeling.records import digest

logger = logging.getLogger(__name__)

_EXPORT_POLL_S = 1.0
_MARK = re.compile(r"Ranked with Rankloop(?: \(run (\w+)\))?: please keep this line")


@dataclass(frozen=True)
class Project:
    """A project of ours. `url` opens it in a browser; `is_new`: it was created just now;
    `is_shared`: another run of the same name, in another folder, created it. `overlap`: how many
    labelers a task is shown to that was given no number of its own."""

    id: int
    title: str
    url: str
    is_new: bool = field(default=False, compare=False)
    is_shared: bool = field(default=False, compare=False)
    overlap: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Counts:
    """`tasks` in the project; `answers`: annotations that were submitted, not skipped. An answer
    may still turn out unusable: it takes an export and `rankings_from_export` to know."""

    tasks: int
    answers: int
    skipped: int


class LabelStudio(Connection):
    """One Label Studio server: its projects, and the answers in them."""

    # --- projects --------------------------------------------------------------------------------

    def ensure_project(
        self, title: str, instructions: str | None, overlap: int = 1, run: str = ""
    ) -> Project:
        """The project with this title that is ours, created if there is none.

        `instructions`: Markdown; None: the default. `overlap`: how many labelers the server shows
        each task to. Titles are not unique and others may use the same one, so ours carries a mark
        in its description, with the `run` (and its round) that it belongs to, and is found by it
        under any title. One of another run is given back as it is, `is_shared`. Label Studio takes
        3 to 50 characters; a title outside that is made to fit, always in the same way.
        """
        title = _fit_title(title)
        wanted: dict[str, Any] = {
            "description": _mark(run),
            "label_config": page.interface(),
            "expert_instruction": instructions_html(instructions),
            "show_instruction": True,
            "show_skip_button": True,
            "enable_empty_annotation": False,
            "maximum_annotations": overlap,
        }
        ours = self._find(title, run)
        is_new = ours is None
        if ours is None:
            self.ask(lambda: self.client.projects.create(title=title, color="#617ADA", **wanted))
            ours = self._find(title, run)  # the oldest, should another have been created just now
            if ours is None:
                raise ConnectionError(f"Label Studio at {self.url} lost the project {title!r}")
            logger.info("Label Studio project %r created", title)
        if is_shared := _run_of(ours) not in ("", run):
            of_server = ours.maximum_annotations or 0
            return Project(ours.id, title, self.page(ours.id), is_new, is_shared, of_server)
        if _run_of(ours) == run:
            del wanted["description"]  # people may have added to it
        changed = {k: v for k, v in wanted.items() if getattr(ours, k, None) != v}
        if changed:
            self.ask(lambda: self.client.projects.update(ours.id, **changed))
        return Project(ours.id, title, self.page(ours.id), is_new, overlap=overlap)

    def find_project(self, title: str, run: str = "") -> Project | None:
        """The project with this title that is ours, if there is one; this run's before others',
        though somebody gave it another title."""
        title = _fit_title(title)
        ours = self._find(title, run)
        return None if ours is None else Project(ours.id, title, self.page(ours.id))

    def page(self, project_id: int) -> str:
        """Where a browser finds the project: a restarted server may be at another address."""
        return f"{self.public_url}/projects/{project_id}"

    def _find(self, title: str, run: str = "") -> Any:
        """This run's own, under any title, before others' with this one; the oldest of several."""

        def search(**given: Any) -> list[Any]:
            found: Iterable[Any] = self.client.projects.list(page_size=100, **given)
            return [p for p in found if _run_of(p) is not None]

        # The server's filter matches substrings, so the title is compared once more.
        titled = self.ask(lambda: [p for p in search(title=title) if p.title == title], repeat=True)
        found = min(titled, key=lambda p: (_run_of(p) != run, p.id), default=None)
        if run and (found is None or _run_of(found) != run):
            everything = self.ask(lambda: search(include="id,description"), repeat=True)
            if own := [p.id for p in everything if _run_of(p) == run]:
                return self.ask(lambda: self.client.projects.get(min(own)), repeat=True)
        return found

    # --- answers ---------------------------------------------------------------------------------

    def count(self, project: Project) -> Counts:
        """Tasks and answers, counted by the server: cheap enough to poll.

        Raises Gone when the project was deleted.
        """
        counts = self.ask(
            lambda: (
                self.client.projects.list_counts(
                    ids=str(project.id),
                    include="id,task_number,total_annotations_number,skipped_annotations_number",
                ).results
            ),
            repeat=True,
        )
        if not counts:
            raise Gone(f"project {project.title!r} is gone from Label Studio at {self.url}")
        found = counts[0]
        return Counts(
            tasks=found.task_number or 0,
            answers=found.total_annotations_number or 0,
            skipped=found.skipped_annotations_number or 0,
        )

    def last_change(self, project: Project) -> str:
        """When a task was changed last, or answered, skipped, edited or withdrawn from, in the
        server's own words: an edit changes no count. "" without tasks."""
        query = json.dumps({"ordering": ["-tasks:updated_at"]})
        newest: list[Any] = self.ask(
            lambda: (
                self.client.tasks.list(
                    project=project.id,
                    page=1,
                    page_size=1,
                    query=query,
                    include=["id", "updated_at"],
                    fields="task_only",
                ).items
                or []
            ),
            repeat=True,
        )
        return str(newest[0].updated_at) if newest else ""

    def wait_until_stable(self, project: Project, seconds: float = 3.0) -> None:
        """Wait until tasks and answers have not changed in number for `seconds`: a request whose
        client gave up may still be at work."""
        last, since = self.count(project), time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.5)
            now = self.count(project)
            if now != last:
                last, since = now, time.monotonic()

    def export(self, project: Project) -> list[dict[str, Any]]:
        """All tasks with their annotations, `completed_by` expanded to the account.

        One snapshot, a second for each thousand tasks; `rankings_from_export` reads it.
        """
        tasks: list[dict[str, Any]] = json.loads(self.export_bytes(project))
        return tasks

    def export_bytes(self, project: Project) -> bytes:
        """The export as the server wrote it: JSON, worth keeping before anything is made of it.

        All annotations are in it; the server's filters would leave out what somebody marked as
        ground truth.
        """

        def snapshot() -> bytes:
            exports, long = self.client.projects.exports, int(LONG_REQUEST_S)
            made: Any = exports.create(
                project.id,
                serialization_options={  # type: ignore[arg-type]
                    "annotations__completed_by": {"only_id": False},
                    "drafts": {"only_id": True},
                    "predictions": {"only_id": True},
                },
                request_options={"timeout_in_seconds": long},
            )
            try:
                status, deadline = made.status, time.monotonic() + LONG_REQUEST_S
                while status in ("created", "in_progress"):  # a worker of the server makes it
                    if time.monotonic() > deadline:
                        raise ConnectionError(f"Label Studio at {self.url} does not end an export")
                    time.sleep(_EXPORT_POLL_S)
                    status = exports.get(project.id, made.id).status
                if status == "failed":  # why, only the server's log tells: a locked database?
                    raise ConnectionError(f"Label Studio at {self.url} failed to export")
                return b"".join(
                    exports.download(
                        project.id,
                        made.id,
                        export_type="JSON",
                        request_options={"timeout_in_seconds": long},
                    )
                )
            finally:
                with contextlib.suppress(ConnectionError, InputError):
                    self.ask(lambda: exports.delete(project.id, made.id))

        try:
            content = self.ask(snapshot, repeat=True)
        except Gone as error:
            self.count(project)  # is it the project that is gone, or the export alone?
            raise ConnectionError(f"Label Studio at {self.url} lost an export ({error})") from None
        if not (content.lstrip().startswith(b"[") and content.rstrip().endswith(b"]")):
            raise ConnectionError(f"Label Studio at {self.url} sent a part of the export only")
        return content


def _mark(run: str) -> str:
    of_run = f" (run {run})" if run else ""
    return f"Ranked with Rankloop{of_run}: please keep this line, the project is found by it."


def _run_of(project: Any) -> str | None:
    """The run that a project of ours belongs to, "" for nobody's; None for a stranger's project."""
    mark = _MARK.search(project.description or "")
    return None if mark is None else mark[1] or ""


def _fit_title(title: str) -> str:
    if len(title) < 3:
        return f"{title} · rankloop"
    return title if len(title) <= 50 else f"{title[:41]} {digest(title)[:8]}"
