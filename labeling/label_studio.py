"""Label Studio: ensure a project, publish tasks, count answers, export them. The only user of its
SDK.

Tasks are known by `data.key` (Candidates.key), never by Label Studio's id: on SQLite an id is used
again after a deletion. The SDK's own retries are off everywhere, because a repeated import doubles
its tasks; what is safe to repeat is repeated here.
"""

from __future__ import annotations

import html
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx
from label_studio_sdk.client import LabelStudio as Client
from label_studio_sdk.core.api_error import ApiError

from labeling import page
from labeling.errors import InputError
from labeling.records import Candidates, digest
from labeling.wording import counted

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_MARKER = "Ranked with Rankloop: please keep this line, the project is found by it."
_BATCH = 1000
_REQUEST_S = 60.0
_LONG_REQUEST_S = 600.0
_ATTEMPTS = 6


@dataclass(frozen=True)
class Project:
    """A project of ours. `url` opens it in a browser; `is_new`: it was created just now."""

    id: int
    title: str
    url: str
    is_new: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class PublishReport:
    """How many of the given tasks were created now, and how many were there before."""

    created: int
    already_there: int


@dataclass(frozen=True)
class Counts:
    """`tasks` in the project; `answers`: annotations that were submitted, not skipped. An answer
    may still turn out unusable: it takes an export and `rankings_from_export` to know."""

    tasks: int
    answers: int
    skipped: int


class LabelStudio:
    """One Label Studio server. Safe to use from several threads.

    `token` is a legacy token or a personal access token. Methods raise InputError for what a
    person must mend (a refused token, a deleted project) and ConnectionError for a server that
    does not answer, which is worth another try later. `client` is the SDK's own, for what has no
    method here; call it through `ask`.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        local = httpx.URL(self.url).host in ("127.0.0.1", "localhost")
        self._http = httpx.Client(timeout=_REQUEST_S, follow_redirects=True, trust_env=not local)
        self.client = Client(
            base_url=self.url, api_key=token, httpx_client=self._http, max_retries=0
        )

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    def check(self) -> str:
        """The email of the account behind the token.

        Raises InputError when the server cannot be reached or refuses the token.
        """
        try:
            return str(self.ask(self.client.users.whoami).email)
        except ConnectionError as error:
            raise InputError(f"{error}: start it, or correct its address") from None

    # --- projects --------------------------------------------------------------------------------

    def ensure_project(self, title: str, instructions: str, overlap: int = 1) -> Project:
        """The project with this title that is ours, created if there is none.

        `overlap`: how many labelers the server shows each task to. Titles are not unique and
        others may use the same one, so ours carries a marker in its description. Label Studio
        takes 3 to 50 characters; a title outside that is made to fit, always in the same way.
        """
        title = _fit_title(title)
        shown = "<br>".join(html.escape(line) for line in instructions.splitlines())
        wanted: dict[str, Any] = {
            "label_config": page.interface(),
            "expert_instruction": shown,
            "show_instruction": True,
            "show_skip_button": True,
            "enable_empty_annotation": False,
            "maximum_annotations": overlap,
        }
        ours = self._find(title)
        is_new = ours is None
        if ours is None:
            self.ask(
                lambda: self.client.projects.create(
                    title=title, description=_MARKER, color="#617ADA", **wanted
                )
            )
            ours = self._find(title)  # the oldest, should somebody else have created one just now
            if ours is None:
                raise ConnectionError(f"Label Studio at {self.url} lost the project {title!r}")
            logger.info("Label Studio project %r created", title)
        else:
            changed = {k: v for k, v in wanted.items() if getattr(ours, k, None) != v}
            if changed:
                self.ask(lambda: self.client.projects.update(ours.id, **changed))
        return Project(ours.id, title, self.page(ours.id), is_new)

    def find_project(self, title: str) -> Project | None:
        """The project with this title that is ours, if there is one."""
        title = _fit_title(title)
        ours = self._find(title)
        return None if ours is None else Project(ours.id, title, self.page(ours.id))

    def page(self, project_id: int) -> str:
        """Where a browser finds the project: a restarted server may be at another address."""
        return f"{self.url}/projects/{project_id}"

    def _find(self, title: str) -> Any:
        def search() -> list[Any]:
            found: Iterable[Any] = self.client.projects.list(title=title, page_size=100)
            # The server's filter matches substrings, so the title is compared once more.
            return [p for p in found if p.title == title and _MARKER in (p.description or "")]

        return min(self.ask(search, repeat=True), key=lambda p: p.id, default=None)

    # --- tasks in --------------------------------------------------------------------------------

    def publish(self, project: Project, tasks: Sequence[Candidates]) -> PublishReport:
        """Put before labelers those tasks that are not there yet, known by their key.

        After a failed request nobody knows whether it was committed (all of it or nothing, never
        a part), so it is not repeated: the keys that are there are read again, and what is
        missing is sent. The last request of a killed run is such a one too. Raises ConnectionError
        when the server keeps failing.
        """
        wanted = {task.key: task for task in tasks}
        there = self.keys(project) if self.count(project).tasks else Counter()
        if not project.is_new and wanted.keys() - there.keys():
            self.wait_until_stable(project)
            there = self.keys(project)
        before = len(wanted.keys() & there.keys())
        failures = 0
        while missing := [task for key, task in wanted.items() if key not in there]:
            batch = missing[:_BATCH]
            try:
                self._import(project, batch)
                there.update(task.key for task in batch)
                failures = 0
            except ConnectionError as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                logger.warning("%s; looking at what arrived", error)
                self.wait_until_stable(project)
                there = self.keys(project)
            done = len(wanted.keys() & there.keys())
            logger.info(
                "tasks published: %d/%d",
                done,
                len(wanted),
                extra={"progress": (done, len(wanted))},
            )
        if doubled := sum(count > 1 for key, count in there.items() if key in wanted):
            tasks_doubled = counted(doubled, "task")
            logger.warning("%s more than once in project %r", tasks_doubled, project.title)
        return PublishReport(created=len(wanted) - before, already_there=before)

    def _import(self, project: Project, batch: Sequence[Candidates]) -> None:
        rows: list[Any] = [{"data": page.task_data(task)} for task in batch]
        self.ask(
            lambda: self.client.projects.import_tasks(
                project.id,
                request=rows,
                return_task_ids=True,
                request_options={"max_retries": 0, "timeout_in_seconds": int(_LONG_REQUEST_S)},
            )
        )

    def wait_until_stable(self, project: Project, seconds: float = 3.0) -> None:
        """Wait until tasks and answers have not changed in number for `seconds`: a request whose
        client gave up may still be at work."""
        last, since = self.count(project), time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.5)
            now = self.count(project)
            if now != last:
                last, since = now, time.monotonic()

    def keys(self, project: Project) -> Counter[str]:
        """The keys of the project's tasks, and how often each is there."""

        return Counter(key for key, _ in self._tasks(project))

    def _tasks(self, project: Project) -> list[tuple[str, Any]]:
        """Key and task, for the tasks that are ours."""

        def read() -> list[tuple[str, Any]]:
            tasks: Iterable[Any] = self.client.tasks.list(
                project=project.id,
                page_size=2000,
                include=["id", "data", "total_annotations"],
                fields="task_only",
            )
            return [(str(t.data["key"]), t) for t in tasks if "key" in (t.data or {})]

        return self.ask(read, repeat=True)

    def remove_others(self, project: Project, tasks: Sequence[Candidates]) -> int:
        """Delete our tasks that are none of the given, so that nobody ranks what no round reads;
        how many there were. Tasks without a key of ours are left alone.

        Raises InputError, and deletes nothing, when people have ranked some of them.
        """
        if not self.count(project).tasks:
            return 0
        known = {task.key for task in tasks}
        others = [task for key, task in self._tasks(project) if key not in known]
        if ranked := sum(bool(task.total_annotations) for task in others):
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
        for task in others:
            self.ask(partial(self.client.tasks.delete, str(task.id)))
        return len(others)

    # --- answers out -----------------------------------------------------------------------------

    def count(self, project: Project) -> Counts:
        """Tasks and answers, counted by the server: cheap enough to poll."""
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
            raise InputError(f"project {project.title!r} is gone from Label Studio at {self.url}")
        found = counts[0]
        return Counts(
            tasks=found.task_number or 0,
            answers=found.total_annotations_number or 0,
            skipped=found.skipped_annotations_number or 0,
        )

    def export(self, project: Project) -> list[dict[str, Any]]:
        """All tasks with their annotations, `completed_by` expanded to the account.

        One snapshot, a second for each thousand tasks; `rankings_from_export` reads it.
        """

        def snapshot() -> list[dict[str, Any]]:
            made: Any = self.client.projects.exports.create(
                project.id,
                serialization_options={  # type: ignore[arg-type]
                    "annotations__completed_by": {"only_id": False},
                    "drafts": {"only_id": True},
                    "predictions": {"only_id": True},
                },
                annotation_filter_options={"usual": True, "skipped": True},  # type: ignore[arg-type]
                request_options={"timeout_in_seconds": int(_LONG_REQUEST_S)},
            )
            try:
                content = b"".join(
                    self.client.projects.exports.download(
                        project.id,
                        made.id,
                        export_type="JSON",
                        request_options={"timeout_in_seconds": int(_LONG_REQUEST_S)},
                    )
                )
            finally:
                self.client.projects.exports.delete(project.id, made.id)
            tasks: list[dict[str, Any]] = json.loads(content)
            return tasks

        return self.ask(snapshot, repeat=True)

    # --- answers in, for simulated labelers ------------------------------------------------------

    def ensure_labeler(self, email: str) -> int:
        """The id of the account with this email, created (without a usable password) if there is
        none. For simulated labelers; people sign up with an invitation."""
        email = email.lower()
        for _ in range(2):
            users = self.ask(lambda: list(self.client.users.list()), repeat=True)
            for user in users:
                if (user.email or "").lower() == email:
                    return int(user.id)
            self.ask(lambda: self.client.users.create(username=email, email=email))
        raise ConnectionError(f"Label Studio at {self.url} lost the account {email}")

    def annotate(
        self, task_id: int, result: list[dict[str, Any]], labeler_id: int, lead_time_s: float = 0.0
    ) -> None:
        """Submit one annotation in a labeler's name. `task_id` must come from an `export` of this
        very moment. A failed call may have been committed: read before repeating."""
        self.ask(
            lambda: self.client.annotations.create(
                task_id, result=result, completed_by=labeler_id, lead_time=lead_time_s
            )
        )

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, call: Callable[[], _T], repeat: bool = False) -> _T:
        """Call the SDK, with both families of its errors made into ours.

        `repeat`: the call changes nothing that matters, so it is tried again while the server is
        down or fails (a restart, a locked database).
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return call()
            except ApiError as error:
                status, trouble = error.status_code or 0, _first_line(error.body)
                if status in (401, 403):
                    raise InputError(
                        f"Label Studio at {self.url} refuses the token (HTTP {status}): set "
                        "LABEL_STUDIO_API_KEY to one from its Account & Settings page"
                    ) from None
                if status == 404:
                    raise InputError(
                        f"Label Studio at {self.url} does not know what was asked for (HTTP 404): "
                        "was the project or the task deleted, or is that no Label Studio?"
                    ) from None
                if status not in (408, 429) and status < 500:
                    raise InputError(
                        f"Label Studio at {self.url} answers HTTP {status}: {trouble}"
                    ) from None
                failure = f"Label Studio at {self.url} fails with HTTP {status}: {trouble}"
            except httpx.TransportError as error:
                failure = f"Label Studio at {self.url} cannot be reached ({type(error).__name__})"
            except httpx.InvalidURL:
                raise InputError(f"{self.url} is not an address of a Label Studio") from None
            if not repeat or attempt == _ATTEMPTS:
                break
            time.sleep(0.5 * 2**attempt)
        raise ConnectionError(failure)


def _fit_title(title: str) -> str:
    if len(title) < 3:
        return f"{title} · rankloop"
    return title if len(title) <= 50 else f"{title[:41]} {digest(title)[:8]}"


def _first_line(body: Any) -> str:
    text = body.get("detail") if isinstance(body, dict) and body.get("detail") else body
    return " ".join(str(text).split())[:300]
