"""Tasks in: whatever state the project is in, afterwards each task is there once, with the answers
that are known of it.

A task is known by its key alone. After a failed request nobody knows whether it was committed (all
of it or nothing, never a part), and a request whose client gave up may still arrive: so nothing is
sent again before what is there was read, and what came twice all the same is taken away.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from labeling import connection, page, project_tasks
from labeling.accounts import SIMULATED, accounts, ensure_account
from labeling.connection import Imported
from labeling.errors import InputError
from labeling.label_studio import LabelStudio, Project
from labeling.project_tasks import Listed
from labeling.rankings import changed_at, read_time
from labeling.records import Candidates
from labeling.wording import counted

logger = logging.getLogger(__name__)

BATCH = 2500


@dataclass(frozen=True)
class PublishReport:
    """How many of the given tasks were created now, and how many were there before. `restored` of
    those created had been there at some time, and got their `answers` back, but for those
    `left_out`, whose labelers the server refuses. `new_accounts` were made for answers of people
    whom it did not know any more. `tasks`: all in the project, strangers' too;
    `listed`: the given ones, None where the server did not tell their ids."""

    created: int
    already_there: int
    restored: int = field(default=0, compare=False)
    answers: int = field(default=0, compare=False)
    tasks: int = field(default=0, compare=False)
    left_out: int = field(default=0, compare=False)
    new_accounts: tuple[str, ...] = field(default=(), compare=False)
    listed: Sequence[Listed] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class KnownTask:
    """A task as an export has it: when it was created, and the annotations of it that can be put
    back, oldest first."""

    created: datetime
    annotations: Sequence[Mapping[str, Any]]

    @staticmethod
    def of(exported: Mapping[str, Any]) -> KnownTask:
        """Without the answers of accounts that are gone: the import would take them for ours."""
        named = [a for a in exported.get("annotations") or () if _email(a)]
        return KnownTask(read_time(exported.get("created_at")), sorted(named, key=changed_at))


def publish(
    server: LabelStudio,
    project: Project,
    tasks: Sequence[Candidates],
    known: Mapping[str, KnownTask] | None = None,
) -> PublishReport:
    """Put the tasks before labelers: send what is missing, and delete what is of other completions
    or there twice, unless people have answered it.

    `known`: by key, the tasks as the newest export that has them has them. A task that was deleted
    since comes back with its answers: their labelers, their order and the time that they took. Only
    their dates are new.

    Raises InputError, and changes nothing, when people have ranked other completions in this
    project, or it is another folder's; ConnectionError when the server keeps failing; Gone when
    somebody deletes the project meanwhile.
    """
    wanted = {task.key: task for task in tasks}
    known = {key: task for key, task in (known or {}).items() if key in wanted}
    state = _State(server, project, wanted, known)
    if server.count(project).tasks:
        state.read()
    if state.missing() and not project.is_new:
        server.wait_until_stable(project)  # what a killed run sent last may still arrive
        state.read()
    before, failures, disagreements = set(state.keys), 0, 0
    while True:
        if missing := state.missing():
            try:
                state.send(missing[:BATCH])
                failures = 0
            except ConnectionError as error:
                failures += 1
                if failures == connection.ATTEMPTS:
                    raise
                logger.warning("%s; looking at what arrived", error)
                server.wait_until_stable(project)
                state.read()
            done, of = len(state.keys), len(wanted)
            logger.info("tasks published: %d/%d", done, of, extra={"progress": (done, of)})
            continue
        count = server.count(project).tasks
        if count == state.count or disagreements == connection.ATTEMPTS:
            break
        disagreements += 1  # somebody else publishes too, or deletes
        state.read()
    if count != state.count:
        logger.warning(
            "project %r has %s, not %d: somebody is changing it",
            project.title,
            counted(count, "task"),
            state.count,
        )
    restored = [task for key, task in known.items() if key not in before]
    return PublishReport(
        created=len(wanted) - len(before),
        already_there=len(before),
        restored=len(restored),
        answers=sum(len(task.annotations) for task in restored) - len(state.left_out),
        tasks=count,
        left_out=len(state.left_out),
        new_accounts=tuple(state.new_accounts),
        listed=state.listed if state.is_listed else None,
    )


class _State:
    """What is known of the project's tasks: `keys` are there, `count` tasks in all."""

    def __init__(
        self,
        server: LabelStudio,
        project: Project,
        wanted: Mapping[str, Candidates],
        known: Mapping[str, KnownTask],
    ) -> None:
        self.server, self.project = server, project
        self.wanted, self.known = wanted, known
        self.keys: set[str] = set()
        self.count = 0
        self.listed: list[Listed] = []
        self.is_listed = True
        self.new_accounts: list[str] = []
        self.left_out: set[tuple[str, int]] = set()  # task and place of the answer
        self._accounts: dict[str, int | dict[str, str] | None] = {}

    def missing(self) -> list[tuple[str, Candidates]]:
        """Key and task; a key is a digest, worth keeping."""
        return [(key, task) for key, task in self.wanted.items() if key not in self.keys]

    def read(self) -> None:
        """Ask what is there, and clear away what should not be."""
        listed, strangers = project_tasks.list_tasks(self.server, self.project)
        ours = project_tasks.remove_others(self.server, self.project, listed, self.wanted.keys())
        ours = project_tasks.remove_copies(self.server, self.project, ours, self._lost(ours))
        self.listed, self.is_listed = ours, True
        self.keys = {task.key for task in ours}
        self.count = len(ours) + strangers

    def _lost(self, listed: Sequence[Listed]) -> set[str]:
        """Tasks that had answers and were created anew since. Where the server forgot to put their
        answers back (see `send`), they are sent once more."""
        created: dict[str, set[datetime]] = {}
        for task in listed:
            created.setdefault(task.key, set()).add(task.created)
        return {
            key
            for key, task in self.known.items()
            if task.annotations and task.created not in created.get(key, ())
        }

    def send(self, batch: Sequence[tuple[str, Candidates]]) -> None:
        """One request, which the server commits whole or not at all."""
        rows = self._rows(batch)
        try:
            made = self._import(rows)
        except InputError:
            unsure = [email for email, who in self._accounts.items() if isinstance(who, dict)]
            if not unsure:
                raise
            self._accounts |= dict.fromkeys(unsure)  # it may be for them that it refuses
            rows = self._rows(batch)
            made = self._import(rows)
        answers = sum(len(row.get("annotations", ())) for row in rows)
        if made.annotation_count < answers:
            # It does so when it meets a locked database and tries once more.
            raise ConnectionError("Label Studio took tasks without their answers")
        self.keys.update(key for key, _ in batch)
        self.count += len(batch)
        self._note(batch, rows, made.task_ids)

    def _note(
        self, batch: Sequence[tuple[str, Candidates]], rows: Sequence[Any], ids: Sequence[int]
    ) -> None:
        """What was sent is there as if it had been listed."""
        if len(ids) != len(batch):
            self.is_listed = False
            return
        for (key, _), row, id_ in zip(batch, rows, ids, strict=True):
            given = row.get("annotations", ())
            answers = sum(not annotation["was_cancelled"] for annotation in given)
            now = datetime.now(UTC)
            self.listed.append(
                Listed(id_, key, now, bool(given), self.project.overlap, total_annotations=answers)
            )

    def _import(self, rows: Sequence[Any]) -> Imported:
        return self.server.ask(lambda: self.server.import_tasks(self.project.id, rows))

    def _rows(self, batch: Sequence[tuple[str, Candidates]]) -> list[Any]:
        rows: list[Any] = []
        for key, task in batch:
            row: dict[str, Any] = {"data": page.task_data(task)}
            if key in self.known:
                row["annotations"] = []
                for place, exported in enumerate(self.known[key].annotations):
                    if (annotation := self._annotation(exported)) is None:
                        self.left_out.add((key, place))
                    else:
                        row["annotations"].append(annotation)
            rows.append(row)
        return rows

    def _account(self, email: str) -> int | dict[str, str] | None:
        """The labeler as an import takes it: by id, or by email; None: not at all.

        The server blanks the email of an account that was removed from the organization, and makes
        no other with it; but it knows it when an import names it.
        """
        if email not in self._accounts:
            is_known = any(email.lower() == one.email for one in accounts(self.server))
            try:
                self._accounts[email] = ensure_account(self.server, email)
            except InputError:
                self._accounts[email] = {"email": email}
            else:
                if not is_known and not email.lower().endswith(SIMULATED):
                    self.new_accounts.append(email)
        return self._accounts[email]

    def _annotation(self, exported: Mapping[str, Any]) -> dict[str, Any] | None:
        """An exported annotation as an import takes it."""
        if (account := self._account(_email(exported))) is None:
            return None
        return {
            "result": exported.get("result") or [],
            "completed_by": account,
            "was_cancelled": bool(exported.get("was_cancelled")),
            "ground_truth": bool(exported.get("ground_truth")),
            "lead_time": exported.get("lead_time"),
        }


def _email(annotation: Mapping[str, Any]) -> str:
    account = annotation.get("completed_by")
    return str(account.get("email") or "") if isinstance(account, Mapping) else ""
