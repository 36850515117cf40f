"""The gate, against the real Label Studio."""

from __future__ import annotations

import contextlib
import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk.core.api_error import ApiError

from flows import answers, freezing, gate, lookout, publication
from flows.answers import Look
from flows.gate import Opened, wait_for_rankings
from flows.lookout import Lookout
from flows.publication import Published
from flows.servers import Servers
from labeling import page, snapshots
from labeling.accounts import Labeler, sign_in
from labeling.config import Labeling, SimulatedLabeler
from labeling.connection import Gone
from labeling.errors import InputError
from labeling.goal import goal_of
from labeling.label_studio import Counts, LabelStudio, Project
from labeling.project_tasks import keys, list_tasks
from labeling.rankings import Answer
from labeling.records import (
    Candidates,
    Completion,
    Prompt,
    Ranking,
    read_rankings,
    write_candidates,
)
from labeling.tally import Tally
from tests.flows.ranked_round import (
    ANN,
    LABELER,
    answer,
    exported,
    publish_round,
    rank,
    round_folder,
    tasks,
    until,
    write_tasks,
)
from tests.labeling.test_overlap import next_task

NOW = datetime.now(UTC)


@pytest.fixture
def published(label_studio: LabelStudio, tmp_path: Path) -> Published:
    return publish_round(label_studio, tmp_path)


class Waiting:
    """The gate in a thread of its own."""

    def __init__(self, label_studio: LabelStudio, published: Published, config: Labeling) -> None:
        self.opened: Opened | None = None
        self.failed: InputError | None = None
        self.told: list[tuple[Tally, str]] = []

        def wait() -> None:
            try:
                self.opened = wait_for_rankings(
                    label_studio, published, config, on_wait=lambda *state: self.told.append(state)
                )
            except InputError as error:
                self.failed = error

        self.thread = threading.Thread(target=wait, daemon=True)
        self.thread.start()

    def end(self) -> Opened | None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.opened


def test_the_gate_opens_when_there_are_enough_rankings_and_not_before(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=2)
    waiting = Waiting(label_studio, published, Labeling(wanted=3, poll_seconds=0.05))
    waiting.thread.join(1.0)
    assert waiting.opened is None
    answer(label_studio, published, limit=1)
    assert waiting.end() == Opened(3)


def test_an_open_gate_is_passed_at_once(label_studio: LabelStudio, published: Published) -> None:
    answer(label_studio, published, limit=4)
    opened = wait_for_rankings(label_studio, published, Labeling(poll_seconds=1e6))
    assert (opened, opened.where) == (Opened(4), published.project.url)


def test_the_gate_hands_on_the_kept_export_that_opened_it(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=4)
    opened = wait_for_rankings(label_studio, published, Labeling())
    assert opened.snapshot == snapshots.kept(published.snapshots)[0]
    kept = {task["data"]["key"]: task["annotations"] for task in opened.snapshot.tasks()}
    there = exported(label_studio, published)
    assert kept == {key: task["annotations"] for key, task in there.items()}


def test_rankings_of_simulated_labelers_that_cannot_be_enough_are_an_input_error(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=4)
    config = Labeling(wanted=5, poll_seconds=1e6, simulated=(LABELER,))
    with pytest.raises(InputError, match=r"4 of 5 rankings.*lower labeling\.wanted"):
        wait_for_rankings(label_studio, published, config)
    seen = answers.look(label_studio, published, tasks())
    people = Look([Answer("key", ANN, ranking=Ranking("key", ANN, ((0,), (1,))))], seen.snapshot)
    goal = goal_of(config, [])
    gate._refuse_to_wait_for_nobody(people, goal, people.tally(goal, NOW), config)


def test_the_gate_says_which_answers_are_not_usable(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    answer(label_studio, published, limit=3)
    (last,) = (t for t in tasks() if not exported(label_studio, published)[t.key]["annotations"])
    rank(label_studio, published, last, tiers=[[0]])
    caplog.set_level("INFO", "flows.gate")
    waiting = Waiting(label_studio, published, Labeling(poll_seconds=0.05))
    until(lambda: "3 of 4 rankings are there; not usable: 1 partial" in caplog.text)
    stands, page = waiting.told[0]
    assert (stands.rankings, stands.wanted, page) == (3, 4, published.project.url)
    answer(label_studio, published, limit=1)
    assert waiting.end() == Opened(4)


def test_the_gate_waits_for_a_label_studio_that_is_away_and_finds_it_elsewhere(
    label_studio: LabelStudio,
    servers: Servers,
    published: Published,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaving = LabelStudio(label_studio.url, servers.label_studio.token)
    counts = iter([leaving.count(published.project)])

    def count(project: Project) -> Counts:
        for known in counts:
            return known
        raise ConnectionError("it is away")

    troubles = iter([ConnectionError("not ready"), InputError("cannot be reached")])

    def reconnect() -> LabelStudio:
        for trouble in troubles:
            raise trouble
        answer(label_studio, published, limit=4)
        return label_studio

    monkeypatch.setattr(leaving, "count", count)
    config = Labeling(poll_seconds=0.01)
    opened = wait_for_rankings(leaving, published, config, reconnect)
    assert opened == Opened(4)


# --- snapshots while it waits ---------------------------------------------------------------------


def test_while_nothing_changes_nothing_is_exported_again(
    label_studio: LabelStudio, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(lookout, "_SHARE_OF_TIME", 1e9)
    looks: list[float] = []
    real = answers.look

    def look(*arguments: Any) -> Look:
        looks.append(1)
        return real(*arguments)

    monkeypatch.setattr(answers, "look", look)
    rank(label_studio, published, tasks()[0])
    waiting = Waiting(label_studio, published, Labeling(wanted=2, poll_seconds=0.01))
    until(lambda: len(waiting.told) > 5)
    assert len(looks) == 1
    rank(label_studio, published, tasks()[1])
    assert waiting.end() == Opened(2)
    assert len(looks) == 2


def test_an_answer_that_cannot_be_used_does_not_keep_its_task_out_of_the_queue(
    label_studio: LabelStudio, published: Published
) -> None:
    """To the server a partial ranking is an answer, and the task is done."""
    first, *others = tasks()
    rank(label_studio, published, first, tiers=[[0]])
    for task in others:
        rank(label_studio, published, task)
    bob = sign_in(label_studio, "bob@example.org")
    assert next_task(bob, published.project) is None
    waiting = Waiting(label_studio, published, Labeling(poll_seconds=0.05))
    until(lambda: next_task(bob, published.project) is not None)
    rank(label_studio, published, first, email="bob@example.org")
    assert waiting.end() == Opened(4)
    assert next_task(bob, published.project) is None


def test_an_edit_is_seen_although_it_changes_no_count(
    label_studio: LabelStudio, published: Published
) -> None:
    task = tasks()[0]
    rank(label_studio, published, task, tiers=[[0]])
    config = Labeling(wanted=1, poll_seconds=0.05, snapshot_minutes=0.01)
    waiting = Waiting(label_studio, published, config)
    until(lambda: waiting.told)
    (partial,) = exported(label_studio, published)[task.key]["annotations"]
    whole = page.annotation_result(Ranking(task.key, ANN, ((0,), (1,))), 2)
    label_studio.client.annotations.update(partial["id"], result=whole)
    assert waiting.end() == Opened(1)


def test_what_changes_while_the_gate_waits_is_kept_on_a_schedule(
    label_studio: LabelStudio, published: Published
) -> None:
    config = Labeling(wanted=4, poll_seconds=0.05, snapshot_minutes=0.01)
    waiting = Waiting(label_studio, published, config)
    until(lambda: len(snapshots.kept(published.snapshots)) == 1)
    rank(label_studio, published, tasks()[0])
    until(lambda: len(snapshots.kept(published.snapshots)) == 2)
    answer(label_studio, published, limit=4)
    assert waiting.end() == Opened(5)


def test_a_withdrawn_answer_is_counted_and_not_used(
    label_studio: LabelStudio, published: Published
) -> None:
    first, second = tasks()[:2]
    rank(label_studio, published, first)
    rank(label_studio, published, second)
    answers.look(label_studio, published, tasks())
    (mine,) = exported(label_studio, published)[first.key]["annotations"]
    label_studio.client.annotations.delete(mine["id"])
    seen = answers.look(label_studio, published, tasks())
    assert [ranking.task for ranking in seen.rankings] == [second.key]
    assert seen.refused == {"withdrawn": 1}
    rank(label_studio, published, first)
    assert not answers.look(label_studio, published, tasks()).refused


# --- somebody deletes while it waits --------------------------------------------------------------


def delete_project(label_studio: LabelStudio, project: Project) -> None:
    """Label Studio refuses while an export of the project is at work."""

    def deleted() -> bool:
        with contextlib.suppress(ApiError):
            label_studio.client.projects.delete(project.id)
        found = label_studio.client.projects.list_counts(ids=str(project.id)).results
        return not found

    until(deleted)


def test_a_project_deleted_while_the_gate_waits_comes_back_with_its_answers(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    answer(label_studio, published, limit=2)
    rank(label_studio, published, tasks()[0], tiers=[[1], [0]])
    before = answers.look(label_studio, published, tasks())
    waiting = Waiting(label_studio, published, Labeling(wanted=4, poll_seconds=0.05))
    until(lambda: waiting.told)
    delete_project(label_studio, published.project)
    until(lambda: waiting.told[-1][1] != published.project.url)
    anew = label_studio.find_project(published.project.title)
    assert anew is not None
    stands, page = waiting.told[-1]
    assert (stands.rankings, stands.wanted, page) == (3, 4, anew.url)
    (line,) = [r.getMessage() for r in caplog.records if "put back" in r.getMessage()]
    assert "4 tasks had been deleted" in line
    assert "with 3 answers" in line
    published = replace(published, project=anew)
    again = answers.look(label_studio, published, tasks())
    assert (again.rankings, again.refused) == (before.rankings, before.refused)
    answer(label_studio, published, limit=1)
    opened = waiting.end()
    assert opened == Opened(4)
    assert opened.where == anew.url


def test_single_tasks_deleted_while_the_gate_waits_come_back_once(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=3)
    waiting = Waiting(label_studio, published, Labeling(wanted=4, poll_seconds=0.05))
    until(lambda: waiting.told)
    for task in list_tasks(label_studio, published.project)[0][:2]:
        label_studio.client.tasks.delete(str(task.id))
    until(lambda: label_studio.count(published.project) == Counts(4, 3, 0))
    answer(label_studio, published, limit=4)
    assert waiting.end() == Opened(4)
    assert dict(keys(label_studio, published.project)) == {task.key: 1 for task in tasks()}


def test_a_task_that_was_exchanged_for_another_comes_back(
    label_studio: LabelStudio, published: Published
) -> None:
    """The number of tasks tells nothing."""
    answer(label_studio, published, limit=1)
    (first, *_), _ = list_tasks(label_studio, published.project)
    stranger: Any = [{"data": page.task_data(tasks("somebody's own")[0])}]
    del stranger[0]["data"]["key"]
    label_studio.client.projects.import_tasks(published.project.id, request=stranger)
    label_studio.client.tasks.delete(str(first.id))
    waiting = Waiting(label_studio, published, Labeling(wanted=4, poll_seconds=0.05))
    until(lambda: waiting.told)
    assert dict(keys(label_studio, published.project)) == {task.key: 1 for task in tasks()}
    answer(label_studio, published, limit=4)
    waiting.end()


def test_a_project_that_is_gone_at_every_look_is_not_looked_at_for_ever(
    label_studio: LabelStudio, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> Look:
        raise Gone("gone")

    monkeypatch.setattr(answers, "look", lose)
    with pytest.raises(ConnectionError, match="as often as it is put right"):
        Lookout(published, Labeling()).look(label_studio, NOW)


def delete_answers(label_studio: LabelStudio, published: Published) -> None:
    """By Label Studio's own menu, which any account can open: everybody's."""
    label_studio.client.actions.create(
        id="delete_tasks_annotations", project=published.project.id, selected_items={"all": True}
    )


def test_answers_deleted_at_one_stroke_are_told_and_come_back_as_the_handbook_says(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    """docs/labeling.md: move the newer snapshots away, delete the tasks without answers, and let
    the gate put them back."""
    for task in tasks()[:2]:
        rank(label_studio, published, task)
    rank(label_studio, published, tasks()[0], email="bob@example.net")
    config = Labeling(wanted=4, poll_seconds=0.05, snapshot_minutes=0.005)
    waiting = Waiting(label_studio, published, config)
    until(lambda: waiting.told and waiting.told[-1][0].rankings == 3)
    before = answers.look(label_studio, published, tasks())
    delete_answers(label_studio, published)
    until(lambda: waiting.told[-1][0].rankings == 0)
    (line,) = [r.getMessage() for r in caplog.records if "do not count any more" in r.getMessage()]
    assert "3 answers of 2 labelers were deleted" in line
    assert str(before.snapshot.path) in line

    for snapshot in snapshots.kept(published.snapshots):
        if snapshot.taken_at > before.snapshot.taken_at:
            snapshot.path.unlink()
    for listed in list_tasks(label_studio, published.project)[0]:
        label_studio.client.tasks.delete(str(listed.id))
    until(lambda: waiting.told[-1][0].rankings == 3)
    again = answers.look(label_studio, published, tasks())
    assert (again.rankings, again.refused) == (before.rankings, before.refused)
    rank(label_studio, published, tasks()[2])
    assert waiting.end() == Opened(4)


def test_what_arrives_twice_while_the_gate_waits_is_taken_away(
    label_studio: LabelStudio, published: Published
) -> None:
    """A request whose client gave up long ago."""
    answer(label_studio, published, limit=1)
    waiting = Waiting(label_studio, published, Labeling(wanted=4, poll_seconds=0.05))
    until(lambda: waiting.told)
    rows: Any = [{"data": page.task_data(task)} for task in tasks()]
    label_studio.client.projects.import_tasks(published.project.id, request=rows)
    until(lambda: label_studio.count(published.project) == Counts(4, 1, 0))
    answer(label_studio, published, limit=4)
    assert waiting.end() == Opened(4)


def test_who_deletes_again_and_again_is_not_followed_for_ever(
    label_studio: LabelStudio, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "_RESTORED_AT_MOST", 1)
    waiting = Waiting(label_studio, published, Labeling(wanted=4, poll_seconds=0.05))
    until(lambda: waiting.told)
    for _ in range(2):
        until(lambda: label_studio.count(published.project).tasks == 4)
        (task, *_), _ = list_tasks(label_studio, published.project)
        label_studio.client.tasks.delete(str(task.id))
    waiting.end()
    line = str(waiting.failed)
    assert "deleted in Label Studio 2 times in a day while this round waited" in line
    assert str(published.snapshots) in line


# --- several simulated labelers -------------------------------------------------------------------


def noisily(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0 for _ in completions]  # the order is the noise's


def test_what_several_simulated_labelers_say_does_not_depend_on_interruptions(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three labelers on 12 tasks, two of them on about half: once undisturbed, once with a server
    that fails again and again, published in two parts, and with other rankings between."""
    monkeypatch.setattr(answers, "load_score_function", lambda _: noisily)
    everything = [
        Candidates(Prompt(text=f"{n}"), tuple(Completion(f"{n} {i}") for i in range(4)))
        for n in range(12)
    ]
    names = ("one", "two", "three")
    config = Labeling(
        overlap=2,
        overlap_share=0.5,
        simulated=tuple(SimulatedLabeler(name=name, score="m:f", noise=1.0) for name in names),
    )
    all_tasks, some = tmp_path / "all.parquet", tmp_path / "some.parquet"
    write_candidates(everything, all_tasks)
    write_candidates(everything[:5], some)
    run = uuid.uuid4().hex[:8]

    calm_folder, crash_folder = round_folder(tmp_path / "calm"), round_folder(tmp_path / "crash")
    undisturbed = publication.publish(label_studio, f"calm-{run}", config, all_tasks, calm_folder)
    answers.simulate(label_studio, undisturbed, config)
    opened = wait_for_rankings(label_studio, undisturbed, config)
    assert opened.snapshot is not None
    frozen = freezing.freeze(undisturbed, opened.snapshot, tmp_path / "calm.parquet")
    assert 12 < frozen.rankings < 24
    assert frozen.labelers == 3

    disturbed = publication.publish(label_studio, f"crash-{run}", config, some, crash_folder)
    real, calls = Labeler.annotate, iter(range(1000))

    def fail_at_times(me: Labeler, task_id: int, *arguments: Any) -> None:
        call = next(calls)
        if call % 7 == 2:
            raise ConnectionError("before it arrived")
        real(me, task_id, *arguments)
        if call % 7 == 5:
            raise ConnectionError("after it was committed")

    monkeypatch.setattr(Labeler, "annotate", fail_at_times)
    monkeypatch.setattr(label_studio, "wait_until_stable", lambda _: None)
    answers.simulate(label_studio, disturbed, config)
    disturbed = publication.publish(label_studio, f"crash-{run}", config, all_tasks, crash_folder)
    last_first = config.model_copy(update={"simulated": config.simulated[::-1]})
    answers.simulate(label_studio, disturbed, last_first)
    assert answers.simulate(label_studio, disturbed, config) == answers.Answered(0)
    opened = wait_for_rankings(label_studio, disturbed, config)
    assert opened.snapshot is not None
    freezing.freeze(disturbed, opened.snapshot, tmp_path / "crash.parquet")
    calm, crash = (read_rankings(tmp_path / f"{n}.parquet") for n in ("calm", "crash"))
    assert crash == calm


def test_simulated_labelers_that_are_fewer_than_the_overlap_do_not_open_the_gate(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    completions = write_tasks(tmp_path / "completions.parquet", tasks())
    config = Labeling(overlap=2, poll_seconds=1e6, simulated=(LABELER,))
    name = f"few-{uuid.uuid4().hex[:8]}"
    published = publication.publish(label_studio, name, config, completions, round_folder(tmp_path))
    answer(label_studio, published, limit=4)
    with pytest.raises(InputError, match=r"4 of 8 rankings.*labeling\.overlap"):
        wait_for_rankings(label_studio, published, config)
