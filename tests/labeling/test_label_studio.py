from __future__ import annotations

from typing import Any

import pytest
from label_studio_sdk.core.api_error import ApiError

import labeling.label_studio
from flows.embedded import free_port
from labeling import connection, page
from labeling.accounts import sign_in
from labeling.connection import Gone
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.publishing import publish
from labeling.rankings import Refusal, rankings_from_export
from labeling.records import Ranking
from tests.labeling.two_answers import make_tasks, task_ids


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


def test_changed_instructions_reach_the_project_as_markdown(
    label_studio: LabelStudio,
) -> None:
    label_studio.ensure_project("instructions", "first")
    project = label_studio.ensure_project("instructions", "<i>best</i> **first**", overlap=3)
    stored: Any = label_studio.client.projects.get(project.id)
    shown = "<p>&lt;i&gt;best&lt;/i&gt; <strong>first</strong></p>"
    assert stored.expert_instruction == f'<div class="rl-instructions">{shown}</div>'
    assert stored.maximum_annotations == 3


def test_an_unchanged_project_is_not_written_again(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    rich = "# a <b>\n\n3. c\n\n| a |\n|--:|\n| `\"1\"` |\n\n[l](https://a.b?c=1&d=2 'e')"
    project = label_studio.ensure_project("unchanged", rich)
    default = label_studio.ensure_project("unchanged default", None)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("updated")

    monkeypatch.setattr(label_studio.client.projects, "update", refuse)
    assert label_studio.ensure_project("unchanged", rich) == project
    assert label_studio.ensure_project("unchanged default", None) == default


@pytest.mark.parametrize("title", ["x", "y" * 64])
def test_titles_that_label_studio_refuses_are_made_to_fit(
    label_studio: LabelStudio, title: str
) -> None:
    project = label_studio.ensure_project(title, "Rank them.")
    assert label_studio.ensure_project(title, "Rank them.") == project


def test_a_deleted_project_is_told_apart(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("deleted", "Rank them.")
    label_studio.client.projects.delete(project.id)
    with pytest.raises(Gone, match="gone"):
        label_studio.count(project)
    with pytest.raises(Gone, match="deleted"):
        label_studio.export(project)


def test_rankings_come_back_under_the_labelers_email(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("come back", "Rank them.")
    tasks = make_tasks("back", 3)
    publish(label_studio, project, tasks)
    ids = task_ids(label_studio, project)
    ann, bob = (sign_in(label_studio, f"{name}@example.org") for name in ("Ann", "bob"))
    sent = [
        Ranking(tasks[0].key, "ann@example.org", ((1,), (0,)), reason="kinder"),
        Ranking(tasks[0].key, "bob@example.org", ((0, 1),)),
        Ranking(tasks[1].key, "bob@example.org", ((0,), (1,)), none_acceptable=True),
    ]
    for ranking in sent:
        who = ann if ranking.labeler.startswith("ann") else bob
        who.annotate(ids[ranking.task], page.annotation_result(ranking, 2))
    rankings, refused = rankings_from_export(label_studio.export(project), tasks)
    assert rankings == sorted(sent, key=lambda r: (r.task, r.labeler))
    assert not refused


def test_the_count_holds_answers_and_skips_apart(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("count", "Rank them.")
    tasks = make_tasks("count", 3)
    publish(label_studio, project, tasks)
    ids = task_ids(label_studio, project)
    me = sign_in(label_studio, "ann@example.org")
    result = page.annotation_result(Ranking(tasks[0].key, "", ((0,), (1,))), 2)
    me.annotate(ids[tasks[0].key], result)
    label_studio.client.annotations.create(ids[tasks[1].key], result=[], was_cancelled=True)
    counts = label_studio.count(project)
    assert (counts.tasks, counts.answers, counts.skipped) == (3, 1, 1)
    rankings, refused = rankings_from_export(label_studio.export(project), tasks)
    assert len(rankings) == 1
    assert refused == {Refusal.SKIPPED: 1}


def test_a_token_stays_out_of_representations(label_studio: LabelStudio, servers: Any) -> None:
    assert servers.label_studio.token not in repr(label_studio) + repr(servers)


def test_the_export_has_what_somebody_marked_as_ground_truth(label_studio: LabelStudio) -> None:
    """One star on the page, and the server's filter for usual answers leaves the answer out."""
    project = label_studio.ensure_project("starred", "Rank them.")
    tasks = make_tasks("starred", 1)
    publish(label_studio, project, tasks)
    label_studio.client.annotations.create(
        task_ids(label_studio, project)[tasks[0].key],
        result=page.annotation_result(Ranking(tasks[0].key, "", ((0,), (1,))), 2),
        ground_truth=True,
    )
    assert len(rankings_from_export(label_studio.export(project), tasks)[0]) == 1


def test_the_last_change_moves_with_every_change(label_studio: LabelStudio) -> None:
    project = label_studio.ensure_project("changes", "Rank them.")
    assert label_studio.last_change(project) == ""
    tasks = make_tasks("changes", 2)
    publish(label_studio, project, tasks)
    seen = [label_studio.last_change(project)]
    assert label_studio.last_change(project) == seen[0]
    annotations, id_ = (
        label_studio.client.annotations,
        task_ids(label_studio, project)[tasks[0].key],
    )
    made = annotations.create(id_, result=[])
    seen.append(label_studio.last_change(project))
    annotations.update(made.id, result=[], was_cancelled=True)
    seen.append(label_studio.last_change(project))
    annotations.delete(made.id)
    seen.append(label_studio.last_change(project))
    assert len(set(seen)) == 4


def test_a_failed_export_is_no_export(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ATTEMPTS", 1)
    project = label_studio.ensure_project("failed export", "Rank them.")
    exports = label_studio.client.projects.exports
    real = exports.create

    def fail(*arguments: Any, **given: Any) -> Any:
        made: Any = real(*arguments, **given)
        return made.model_copy(update={"status": "failed"})

    monkeypatch.setattr(exports, "create", fail)
    with pytest.raises(ConnectionError, match="failed to export"):
        label_studio.export_bytes(project)
    assert list(exports.list(project.id)) == []


def test_an_export_that_a_worker_of_the_server_makes_is_waited_for(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeling.label_studio, "_EXPORT_POLL_S", 0.01)
    project = label_studio.ensure_project("slow export", "Rank them.")
    publish(label_studio, project, make_tasks("slow export", 1))
    exports, answers = label_studio.client.projects.exports, ["created", "in_progress"]
    create, get, download = exports.create, exports.get, exports.download

    def unfinished(made: Any) -> Any:
        return made.model_copy(update={"status": answers.pop(0)}) if answers else made

    def refuse_unfinished(*arguments: Any, **given: Any) -> Any:
        if answers:
            raise ApiError(status_code=404, body="Export is not completed")
        return download(*arguments, **given)

    monkeypatch.setattr(exports, "create", lambda *a, **given: unfinished(create(*a, **given)))
    monkeypatch.setattr(exports, "get", lambda *a, **given: unfinished(get(*a, **given)))
    monkeypatch.setattr(exports, "download", refuse_unfinished)
    assert len(label_studio.export(project)) == 1
    assert answers == []


def test_an_export_that_is_gone_is_no_deleted_project(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = label_studio.ensure_project("lost export", "Rank them.")

    def lose(*_: Any, **__: Any) -> Any:
        raise ApiError(status_code=404, body="Export is not completed")

    monkeypatch.setattr(label_studio.client.projects.exports, "download", lose)
    with pytest.raises(ConnectionError, match="lost an export"):
        label_studio.export_bytes(project)


def test_a_runs_project_is_found_under_another_title(label_studio: LabelStudio) -> None:
    first = label_studio.ensure_project("before it", "mine", run="renamed_000")
    second = label_studio.ensure_project("before it, round 1", "mine", run="renamed_001")
    label_studio.client.projects.update(first.id, title="after it")
    again = label_studio.ensure_project("before it", "mine", run="renamed_000")
    assert (again.id, again.is_new, again.is_shared) == (first.id, False, False)
    assert label_studio.find_project("before it", "renamed_000") == again
    assert label_studio.find_project("before it, round 1", "renamed_001") == second
    stranger = label_studio.ensure_project("before it", "theirs", run="anothers_000")
    assert stranger.id not in (first.id, second.id)


def test_a_project_of_nobodys_run_becomes_this_runs_and_anothers_does_not(
    label_studio: LabelStudio,
) -> None:
    project = label_studio.ensure_project("whose", "first")
    assert not label_studio.ensure_project("whose", "mine", run="aaa").is_shared
    anothers = label_studio.ensure_project("whose", "theirs", run="bbb")
    assert (anothers.id, anothers.is_shared) == (project.id, True)
    stored: Any = label_studio.client.projects.get(project.id)
    assert "mine" in stored.expert_instruction
    assert "run aaa" in stored.description
