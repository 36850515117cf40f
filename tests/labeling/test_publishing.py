"""Publishing: whatever goes wrong, each task is there once, with its answers."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_studio_sdk.core.api_error import ApiError

from labeling import connection, page, publishing, snapshots
from labeling.accounts import SIMULATED, ensure_account, sign_in
from labeling.errors import InputError
from labeling.label_studio import LabelStudio, Project
from labeling.project_tasks import keys, list_tasks
from labeling.publishing import KnownTask, PublishReport, publish
from labeling.rankings import rankings_from_export
from labeling.records import Candidates, Ranking
from tests.labeling.two_answers import make_tasks, task_ids


def send(server: LabelStudio, project: Project, tasks: list[Candidates]) -> None:
    rows: Any = [{"data": page.task_data(task)} for task in tasks]
    server.client.projects.import_tasks(project.id, request=rows)


def answer(
    server: LabelStudio, project: Project, task: Candidates, email: str, **given: Any
) -> None:
    result = page.annotation_result(Ranking(task.key, email, ((1,), (0,))), 2)
    id_ = task_ids(server, project)[task.key]
    server.client.annotations.create(
        id_, result=result, completed_by=ensure_account(server, email), **given
    )


def once(tasks: list[Candidates]) -> dict[str, int]:
    return {task.key: 1 for task in tasks}


def known(server: LabelStudio, project: Project) -> dict[str, KnownTask]:
    return {task["data"]["key"]: KnownTask.of(task) for task in server.export(project)}


def test_publishing_twice_creates_nothing_the_second_time(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("publish twice", "Rank them.")
    tasks = make_tasks("twice", 7)
    assert publish(label_studio, project, tasks[:3]) == PublishReport(3, 0)
    assert publish(label_studio, project, [*tasks, tasks[0]]) == PublishReport(4, 3)
    assert publish(label_studio, project, tasks) == PublishReport(0, 7)
    assert dict(keys(label_studio, project)) == {task.key: 1 for task in tasks}


@pytest.mark.parametrize("committed", [True, False])
def test_a_failed_request_neither_doubles_nor_loses_a_task(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    project = label_studio.ensure_project(f"lost answer {committed}", "Rank them.")
    tasks = make_tasks("lost", 25)
    real = label_studio.import_tasks
    calls = 0

    def fail_second(*args: Any, **given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != 2:
            return real(*args, **given)
        if committed:
            real(*args, **given)
        raise httpx.ReadTimeout("lost")

    monkeypatch.setattr(publishing, "BATCH", 10)
    monkeypatch.setattr(label_studio, "import_tasks", fail_second)
    assert publish(label_studio, project, tasks) == PublishReport(25, 0)
    assert dict(keys(label_studio, project)) == {task.key: 1 for task in tasks}
    assert calls == (3 if committed else 4)


def test_what_a_killed_run_sent_last_is_not_sent_again(label_studio: LabelStudio) -> None:
    """Its request arrives when the next run has found nothing there yet."""
    label_studio.ensure_project("arrives late", "Rank them.")
    project = label_studio.ensure_project("arrives late", "Rank them.")
    tasks = make_tasks("late", 5)
    late = threading.Timer(0.5, send, (label_studio, project, tasks))
    late.start()
    assert publish(label_studio, project, tasks) == PublishReport(0, 5)
    late.join()
    assert dict(keys(label_studio, project)) == {task.key: 1 for task in tasks}


def test_a_reused_task_id_does_not_confuse_tasks(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("reused id", "Rank them.")
    old, new = make_tasks("reused", 2)
    publish(label_studio, project, [old])
    label_studio.client.tasks.delete(str(task_ids(label_studio, project)[old.key]))
    publish(label_studio, project, [new])
    me = sign_in(label_studio, "ann@example.org")
    ranking = Ranking(new.key, "ann@example.org", ((1,), (0,)))
    ids = task_ids(label_studio, project)
    me.annotate(ids[new.key], page.annotation_result(ranking, 2))
    assert rankings_from_export(label_studio.export(project), [old, new])[0] == [ranking]


# --- tasks that are there twice -------------------------------------------------------------------


def test_what_two_publishers_sent_is_there_once_and_no_answer_is_lost(
    label_studio: LabelStudio,
) -> None:
    project = label_studio.ensure_project("two publishers", "Rank them.")
    tasks = make_tasks("two publishers", 6)
    send(label_studio, project, tasks)
    answer(label_studio, project, tasks[0], "ann@example.org")
    send(label_studio, project, tasks)
    copies = [task for task in list_tasks(label_studio, project)[0] if task.key == tasks[1].key]
    result = page.annotation_result(Ranking(tasks[1].key, "", ((0,), (1,))), 2)
    label_studio.client.annotations.create(copies[-1].id, result=result)  # the younger copy
    assert publish(label_studio, project, tasks) == PublishReport(0, 6)
    assert dict(keys(label_studio, project)) == once(tasks)
    assert label_studio.count(project).answers == 2


def test_a_task_that_was_answered_in_both_copies_keeps_both(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("both copies", "Rank them.")
    tasks = make_tasks("both copies", 2)
    for _ in range(2):
        send(label_studio, project, tasks)
    for copy in list_tasks(label_studio, project)[0]:
        if copy.key == tasks[0].key:
            result = page.annotation_result(Ranking(tasks[0].key, "", ((0,), (1,))), 2)
            label_studio.client.annotations.create(copy.id, result=result)
    publish(label_studio, project, tasks)
    assert dict(keys(label_studio, project)) == {tasks[0].key: 2, tasks[1].key: 1}
    rankings, refused = rankings_from_export(label_studio.export(project), tasks)
    assert (len(rankings), refused) == (1, {"duplicate": 1})


def test_two_who_publish_at_once_leave_each_task_once(
    label_studio: LabelStudio, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "BATCH", 40)
    project = label_studio.ensure_project("at once", "Rank them.")
    tasks = make_tasks("at once", 200)
    publishers = [
        threading.Thread(
            target=publish,
            args=(LabelStudio(label_studio.url, servers.label_studio.token), project, tasks),
        )
        for _ in range(2)
    ]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    assert dict(keys(label_studio, project)) == once(tasks)


# --- answers that come back -----------------------------------------------------------------------


def test_a_deleted_task_comes_back_with_who_answered_what_and_in_which_order(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    project = label_studio.ensure_project("comes back", "Rank them.")
    tasks = make_tasks("comes back", 3)
    publish(label_studio, project, tasks)
    answer(label_studio, project, tasks[0], "ann@example.org", was_cancelled=True)
    answer(label_studio, project, tasks[0], "ann@example.org", lead_time=12.5)
    answer(label_studio, project, tasks[0], "bob@example.org", ground_truth=True)
    answer(label_studio, project, tasks[1], "bob@example.org", was_cancelled=True)
    before = rankings_from_export(label_studio.export(project), tasks)
    snapshots.keep(tmp_path, label_studio.export_bytes(project))
    seen = snapshots.last_seen(tmp_path, {task.key for task in tasks})
    for task in list_tasks(label_studio, project)[0]:
        label_studio.client.tasks.delete(str(task.id))
    report = publish(
        label_studio, project, tasks, {key: KnownTask.of(task) for key, task in seen.items()}
    )
    assert (report, report.restored, report.answers) == (PublishReport(3, 0), 3, 4)
    assert rankings_from_export(label_studio.export(project), tasks) == before
    assert len(before[0]) == 2
    lead_times = [a["lead_time"] for t in label_studio.export(project) for a in t["annotations"]]
    assert 12.5 in lead_times


def test_an_answer_that_its_labeler_withdrew_does_not_come_back(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("withdrawn", "Rank them.")
    tasks = make_tasks("withdrawn", 2)
    publish(label_studio, project, tasks)
    answer(label_studio, project, tasks[0], "ann@example.org")
    seen = known(label_studio, project)
    for task in label_studio.export(project):
        for annotation in task["annotations"]:
            label_studio.client.annotations.delete(annotation["id"])
    report = publish(label_studio, project, tasks, seen)
    assert (report, report.restored) == (PublishReport(0, 2), 0)
    assert label_studio.count(project).answers == 0


def publish_after_a_deletion(
    server: LabelStudio, project: Project, tasks: list[Candidates], seen: dict[str, KnownTask]
) -> PublishReport:
    for task in list_tasks(server, project)[0]:
        server.client.tasks.delete(str(task.id))
    return publish(server, project, tasks, seen)


def remove_from_organization(server: LabelStudio, id_: int) -> None:
    me = server.client.users.whoami()
    httpx.delete(
        f"{server.url}/api/organizations/{me.active_organization}/memberships/{id_}/",
        headers={"Authorization": f"Token {server._token}"},
    ).raise_for_status()


@pytest.mark.parametrize("domain", ["@example.org", SIMULATED])
def test_answers_of_somebody_who_was_removed_from_the_organization_come_back(
    label_studio: LabelStudio, domain: str
) -> None:
    """The server lists such an account without its email, and makes no other with it."""
    project = label_studio.ensure_project(f"removed {domain}", "Rank them.")
    tasks, removed = make_tasks("removed", 2), f"removed-{uuid.uuid4().hex[:8]}{domain}"
    publish(label_studio, project, tasks)
    answer(label_studio, project, tasks[0], removed)
    answer(label_studio, project, tasks[1], "ann@example.org")
    remove_from_organization(label_studio, ensure_account(label_studio, removed))
    before = rankings_from_export(label_studio.export(project), tasks)
    report = publish_after_a_deletion(label_studio, project, tasks, known(label_studio, project))
    assert (report.answers, report.left_out, report.new_accounts) == (2, 0, ())
    after = rankings_from_export(label_studio.export(project), tasks)
    assert after == before
    assert removed in {ranking.labeler for ranking in after[0]}


def test_answers_of_a_deleted_account_come_back_to_a_new_one_that_is_told(
    label_studio: LabelStudio,
) -> None:
    project = label_studio.ensure_project("deleted account", "Rank them.")
    tasks, deleted = make_tasks("deleted account", 1), f"{uuid.uuid4().hex[:8]}@example.org"
    publish(label_studio, project, tasks)
    answer(label_studio, project, tasks[0], deleted)
    before, seen = label_studio.export(project), known(label_studio, project)
    label_studio.client.users.delete(ensure_account(label_studio, deleted))
    report = publish_after_a_deletion(label_studio, project, tasks, seen)
    assert (report.answers, report.new_accounts) == (1, (deleted,))
    after = label_studio.export(project)
    assert rankings_from_export(after, tasks) == rankings_from_export(before, tasks)


def test_tasks_come_back_without_the_answers_whose_labeler_the_server_refuses(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = label_studio.ensure_project("refused labeler", "Rank them.")
    tasks, refused = make_tasks("refused labeler", 2), f"{uuid.uuid4().hex[:8]}@example.org"
    publish(label_studio, project, tasks)
    answer(label_studio, project, tasks[0], "ann@example.org")
    answer(label_studio, project, tasks[0], refused)
    seen = known(label_studio, project)
    label_studio.client.users.delete(ensure_account(label_studio, refused))

    def refuse(**_: Any) -> None:
        raise ApiError(status_code=400, body="no")

    monkeypatch.setattr(label_studio.client.users, "create", refuse)
    report = publish_after_a_deletion(label_studio, project, tasks, seen)
    assert (report, report.answers, report.left_out) == (PublishReport(2, 0), 1, 1)
    assert dict(keys(label_studio, project)) == once(tasks)
    (ranking,) = rankings_from_export(label_studio.export(project), tasks)[0]
    assert ranking.labeler == "ann@example.org"


def test_the_answers_of_an_account_that_is_gone_are_not_given_to_ours() -> None:
    exported = {
        "created_at": "2026-01-01T00:00:00Z",
        "annotations": [{"id": 1, "completed_by": None}, {"id": 2, "completed_by": {"id": 3}}],
    }
    assert KnownTask.of(exported).annotations == []


@pytest.fixture
def database(servers_home: Path) -> Iterator[sqlite3.Connection]:
    """Label Studio's own."""
    path = servers_home / "label-studio" / "label_studio.sqlite3"
    connection_ = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield connection_
    connection_.close()


def test_answers_that_a_locked_database_makes_the_server_forget_are_sent_again(
    label_studio: LabelStudio, database: sqlite3.Connection
) -> None:
    """It tries the import again by itself, without the annotations, and reports success."""
    project = label_studio.ensure_project("locked", "Rank them.")
    tasks = make_tasks("locked", 3)
    publish(label_studio, project, tasks)
    answer(label_studio, project, tasks[0], "ann@example.org")
    before, there = rankings_from_export(label_studio.export(project), tasks), known(
        label_studio, project
    )  # fmt: skip
    for task in list_tasks(label_studio, project)[0]:
        label_studio.client.tasks.delete(str(task.id))
    label_studio.wait_until_stable(project, seconds=1)
    database.execute("BEGIN IMMEDIATE")
    # Longer than the server waits for the lock, counted from the import.
    release = threading.Timer(6.5 + 3.0, database.execute, ("COMMIT",))
    release.start()
    report = publish(label_studio, project, tasks, there)
    release.join()
    assert report == PublishReport(3, 0)
    assert dict(keys(label_studio, project)) == once(tasks)
    assert rankings_from_export(label_studio.export(project), tasks) == before


# --- what a person must mend ----------------------------------------------------------------------


def test_a_token_that_is_revoked_half_way_is_one_line(
    label_studio: LabelStudio,
    servers: Any,
    database: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "BATCH", 5)
    project = label_studio.ensure_project("revoked", "Rank them.")
    tasks, real = make_tasks("revoked", 12), label_studio.import_tasks
    valid, revoked = servers.label_studio.token, "0" * 40
    change = "UPDATE authtoken_token SET key = ? WHERE key = ?"

    def revoke_after_the_first(*arguments: Any, **given: Any) -> Any:
        made = real(*arguments, **given)
        database.execute(change, (revoked, valid))
        return made

    monkeypatch.setattr(label_studio, "import_tasks", revoke_after_the_first)
    try:
        with pytest.raises(InputError, match="refuses the token") as caught:
            publish(label_studio, project, tasks)
    finally:
        database.execute(change, (valid, revoked))
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert publish(label_studio, project, tasks) == PublishReport(7, 5)
    assert dict(keys(label_studio, project)) == once(tasks)


@pytest.mark.parametrize("failures", [2, 99])
def test_a_server_that_fails_is_tried_again_and_not_for_ever(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(connection, "ATTEMPTS", 3)
    monkeypatch.setattr(label_studio, "wait_until_stable", lambda _: None)
    project = label_studio.ensure_project(f"fails {failures}", "Rank them.")
    tasks, left = make_tasks("fails", 3), iter(range(failures))
    real = label_studio.import_tasks

    def fail(*arguments: Any, **given: Any) -> Any:
        for _ in left:
            raise ApiError(status_code=500, body="<!doctype html>\n<p>Uh oh")
        return real(*arguments, **given)

    monkeypatch.setattr(label_studio, "import_tasks", fail)
    if failures == 2:
        assert publish(label_studio, project, tasks) == PublishReport(3, 0)
        assert dict(keys(label_studio, project)) == once(tasks)
        return
    with pytest.raises(ConnectionError, match="HTTP 500: its log tells why") as caught:
        publish(label_studio, project, tasks)
    assert "\n" not in str(caught.value)
