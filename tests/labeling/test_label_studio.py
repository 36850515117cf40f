from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from flows.embedded import free_port
from labeling import label_studio as module
from labeling import page
from labeling.errors import InputError
from labeling.label_studio import LabelStudio, Project, PublishReport
from labeling.rankings import Refusal, rankings_from_export
from labeling.records import Candidates, Completion, Prompt, Ranking


def make_tasks(name: str, count: int) -> list[Candidates]:
    return [
        Candidates(Prompt(text=f"{name} {n}"), (Completion(f"yes {n}"), Completion(f"no {n}")))
        for n in range(count)
    ]


def task_ids(server: LabelStudio, project: Project) -> dict[str, int]:
    return {task["data"]["key"]: task["id"] for task in server.export(project)}


def test_a_refused_token_is_one_clear_line(label_studio: LabelStudio) -> None:
    with pytest.raises(InputError, match="refuses the token") as error:
        LabelStudio(label_studio.url, "0" * 40).check()
    assert "\n" not in str(error.value)
    assert "0" * 40 not in str(error.value)


def test_a_server_that_is_down_is_one_clear_line() -> None:
    url = f"http://127.0.0.1:{free_port([])}"
    with pytest.raises(InputError, match=f"{url} cannot be reached") as error:
        LabelStudio(url, "0" * 40).check()
    assert "\n" not in str(error.value)


def test_something_that_is_no_label_studio_is_an_input_error(servers: Any) -> None:
    with pytest.raises(InputError):
        LabelStudio(servers.prefect.ui_url, "0" * 40).check()


def test_check_tells_whose_token_it_is(label_studio: LabelStudio) -> None:
    assert label_studio.check() == "labeler@rankloop.local"


def test_ensuring_a_project_twice_gives_one_project(label_studio: LabelStudio) -> None:
    first = label_studio.ensure_project("twice", "Rank them.")
    assert label_studio.ensure_project("twice", "Rank them.") == first


def test_a_project_of_the_same_or_a_longer_title_is_not_taken_for_ours(
    label_studio: LabelStudio,
) -> None:
    longer = label_studio.ensure_project("alpha 2", "Rank them.")
    foreign = label_studio.client.projects.create(title="alpha")
    ours = label_studio.ensure_project("alpha", "Rank them.")
    assert len({longer.id, foreign.id, ours.id}) == 3


def test_changed_instructions_reach_the_project_and_are_shown_literally(
    label_studio: LabelStudio,
) -> None:
    label_studio.ensure_project("instructions", "first")
    project = label_studio.ensure_project("instructions", "<i>best</i>\nfirst", overlap=3)
    stored: Any = label_studio.client.projects.get(project.id)
    assert stored.expert_instruction == "&lt;i&gt;best&lt;/i&gt;<br>first"
    assert stored.maximum_annotations == 3


def test_an_unchanged_project_is_not_written_again(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = label_studio.ensure_project("unchanged", "a <b>\nc")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("updated")

    monkeypatch.setattr(label_studio.client.projects, "update", refuse)
    assert label_studio.ensure_project("unchanged", "a <b>\nc") == project


@pytest.mark.parametrize("title", ["x", "y" * 64])
def test_titles_that_label_studio_refuses_are_made_to_fit(
    label_studio: LabelStudio, title: str
) -> None:
    project = label_studio.ensure_project(title, "Rank them.")
    assert label_studio.ensure_project(title, "Rank them.") == project


def test_publishing_twice_creates_nothing_the_second_time(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("publish twice", "Rank them.")
    tasks = make_tasks("twice", 7)
    assert label_studio.publish(project, tasks[:3]) == PublishReport(3, 0)
    assert label_studio.publish(project, [*tasks, tasks[0]]) == PublishReport(4, 3)
    assert label_studio.publish(project, tasks) == PublishReport(0, 7)
    assert dict(label_studio.keys(project)) == {task.key: 1 for task in tasks}


@pytest.mark.parametrize("committed", [True, False])
def test_a_failed_request_neither_doubles_nor_loses_a_task(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    project = label_studio.ensure_project(f"lost answer {committed}", "Rank them.")
    tasks = make_tasks("lost", 25)
    real = label_studio.client.projects.import_tasks
    calls = 0

    def fail_second(*args: Any, **given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != 2:
            return real(*args, **given)
        if committed:
            real(*args, **given)
        raise httpx.ReadTimeout("lost")

    monkeypatch.setattr(module, "_BATCH", 10)
    monkeypatch.setattr(label_studio.client.projects, "import_tasks", fail_second)
    assert label_studio.publish(project, tasks) == PublishReport(25, 0)
    assert dict(label_studio.keys(project)) == {task.key: 1 for task in tasks}
    assert calls == (3 if committed else 4)


def test_what_a_killed_run_sent_last_is_not_sent_again(label_studio: LabelStudio) -> None:
    """Its request arrives when the next run has found nothing there yet."""
    label_studio.ensure_project("arrives late", "Rank them.")
    project = label_studio.ensure_project("arrives late", "Rank them.")
    tasks = make_tasks("late", 5)
    late = threading.Timer(0.5, label_studio._import, (project, tasks))
    late.start()
    assert label_studio.publish(project, tasks) == PublishReport(0, 5)
    late.join()
    assert dict(label_studio.keys(project)) == {task.key: 1 for task in tasks}


def test_publishing_to_a_deleted_project_is_an_input_error(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("deleted", "Rank them.")
    label_studio.client.projects.delete(project.id)
    with pytest.raises(InputError, match="gone"):
        label_studio.publish(project, make_tasks("deleted", 1))
    with pytest.raises(InputError, match="deleted"):
        label_studio.export(project)


def test_rankings_come_back_under_the_labelers_email(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("come back", "Rank them.")
    tasks = make_tasks("back", 3)
    label_studio.publish(project, tasks)
    ids = task_ids(label_studio, project)
    ann, bob = (label_studio.ensure_labeler(f"{name}@example.org") for name in ("Ann", "bob"))
    assert label_studio.ensure_labeler("ann@example.org") == ann
    sent = [
        Ranking(tasks[0].key, "ann@example.org", ((1,), (0,)), reason="kinder"),
        Ranking(tasks[0].key, "bob@example.org", ((0, 1),)),
        Ranking(tasks[1].key, "bob@example.org", ((0,), (1,)), none_acceptable=True),
    ]
    for ranking in sent:
        who = ann if ranking.labeler.startswith("ann") else bob
        label_studio.annotate(ids[ranking.task], page.annotation_result(ranking, 2), who)
    rankings, refused = rankings_from_export(label_studio.export(project), tasks)
    assert rankings == sorted(sent, key=lambda r: (r.task, r.labeler))
    assert not refused


def test_the_count_holds_answers_and_skips_apart(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("count", "Rank them.")
    tasks = make_tasks("count", 3)
    label_studio.publish(project, tasks)
    ids = task_ids(label_studio, project)
    me = label_studio.ensure_labeler("labeler@rankloop.local")
    result = page.annotation_result(Ranking(tasks[0].key, "", ((0,), (1,))), 2)
    label_studio.annotate(ids[tasks[0].key], result, me)
    label_studio.client.annotations.create(
        ids[tasks[1].key], result=[], was_cancelled=True, completed_by=me
    )
    counts = label_studio.count(project)
    assert (counts.tasks, counts.answers, counts.skipped) == (3, 1, 1)
    rankings, refused = rankings_from_export(label_studio.export(project), tasks)
    assert len(rankings) == 1
    assert refused == {Refusal.SKIPPED: 1}


def test_a_reused_task_id_does_not_confuse_tasks(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("reused id", "Rank them.")
    old, new = make_tasks("reused", 2)
    label_studio.publish(project, [old])
    label_studio.client.tasks.delete(str(task_ids(label_studio, project)[old.key]))
    label_studio.publish(project, [new])
    me = label_studio.ensure_labeler("ann@example.org")
    ranking = Ranking(new.key, "ann@example.org", ((1,), (0,)))
    ids = task_ids(label_studio, project)
    label_studio.annotate(ids[new.key], page.annotation_result(ranking, 2), me)
    assert rankings_from_export(label_studio.export(project), [old, new])[0] == [ranking]


def test_a_token_stays_out_of_representations(label_studio: LabelStudio, servers: Any) -> None:
    assert servers.label_studio.token not in repr(label_studio) + repr(servers)
