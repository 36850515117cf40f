"""Single looks of the gate, each as by a new process, against the real Label Studio."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows import answers, lookout, publication
from flows.gate import Opened, Pending, look_once
from flows.publication import Published
from labeling import snapshots
from labeling.accounts import sign_in
from labeling.config import Labeling
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.project_tasks import keys, list_tasks
from labeling.tally import Tally
from tests.flows.ranked_round import answer, exported, publish_round, rank, tasks
from tests.labeling.test_overlap import next_task

BOB = "bob@example.org"


@pytest.fixture
def published(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Published:
    """No request is under way that nobody waits for: so what is put back need not wait either."""
    monkeypatch.setattr(label_studio, "wait_until_stable", lambda _: None)
    return publish_round(label_studio, tmp_path)


def look(
    label_studio: LabelStudio,
    published: Published,
    config: Labeling | None = None,
    hours: float = 0.0,
) -> Opened | Pending:
    """`hours` after the publishing."""
    return look_once(label_studio, published, config or Labeling(), after(published, hours))


def after(published: Published, hours: float) -> datetime:
    assert published.first is not None
    return published.first + timedelta(hours=hours)


def pending(found: Opened | Pending) -> Tally:
    assert isinstance(found, Pending)
    return found.tally


def said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if what in r.getMessage()]


# --- what opens the gate -------------------------------------------------------------------------


def test_from_the_deadline_on_the_minimum_opens_the_gate(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flows.gate")
    config = Labeling(deadline_hours=48, minimum=2)
    answer(label_studio, published, limit=1)
    stands = pending(look(label_studio, published, config, hours=49))
    assert (stands.counting, stands.wanted, stands.is_after_deadline) == (1, 2, True)
    answer(label_studio, published, limit=1)
    stands = pending(look(label_studio, published, config, hours=47.9))
    assert (stands.counting, stands.wanted, stands.minimum) == (2, 4, 2)
    assert not said(caplog, "the deadline has passed")
    opened = look(label_studio, published, config, hours=48)
    assert opened == Opened(2)
    assert said(caplog, "the deadline has passed: the round goes on with 2 rankings, of 4")


def test_a_deadline_that_passes_while_nothing_changes_opens_the_gate_that_waits(
    label_studio: LabelStudio, published: Published
) -> None:
    config = Labeling(deadline_hours=1, minimum=0.25)
    answer(label_studio, published, limit=1)
    out = lookout.Lookout(published, config)
    assert not out.look(label_studio, after(published, 0.9))[1].is_enough
    assert out.look(label_studio, after(published, 1.0))[1].is_enough


def test_a_share_of_the_rankings_opens_the_gate(
    label_studio: LabelStudio, published: Published
) -> None:
    config = Labeling(wanted=0.5)
    rank(label_studio, published, tasks()[0])
    rank(label_studio, published, tasks()[0], email=BOB)
    assert pending(look(label_studio, published, config)).counting == 1
    rank(label_studio, published, tasks()[1])
    assert look(label_studio, published, config) == Opened(3)


# --- one look after the other ---------------------------------------------------------------------


def test_a_look_at_what_did_not_change_reads_the_newest_snapshot(
    label_studio: LabelStudio, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[int] = []
    real = answers.look

    def counting(*given: Any) -> answers.Look:
        exports.append(1)
        return real(*given)

    monkeypatch.setattr(answers, "look", counting)
    rank(label_studio, published, tasks()[0])
    first = pending(look(label_studio, published))
    assert pending(look(label_studio, published)) == first
    assert len(exports) == 1
    rank(label_studio, published, tasks()[1])
    assert pending(look(label_studio, published)).rankings == 2
    assert len(exports) == 2
    (newest, *_) = snapshots.kept(published.snapshots)
    newest.path.write_bytes(b"damaged")
    assert pending(look(label_studio, published)).rankings == 2
    assert len(exports) == 3


def test_deleted_tasks_and_projects_are_put_back_by_a_look(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    answer(label_studio, published, limit=3)
    look(label_studio, published)
    (task, *_), _ = list_tasks(label_studio, published.project)
    label_studio.client.tasks.delete(str(task.id))
    assert pending(look(label_studio, published)).rankings == 3
    assert dict(keys(label_studio, published.project)) == {t.key: 1 for t in tasks()}
    label_studio.client.projects.delete(published.project.id)
    found = look(label_studio, published)
    assert isinstance(found, Pending)
    assert (found.tally.rankings, found.page) == (3, found.published.project.url)
    assert len(said(caplog, "put back")) == 2
    answer(label_studio, found.published, limit=1)
    assert look(label_studio, published) == Opened(4), "by what was published first, too"


def test_who_deletes_again_and_again_is_told_once_by_looks_of_many_processes(
    label_studio: LabelStudio, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "_RESTORED_AT_MOST", 1)

    def delete_one() -> None:
        (task, *_), _ = list_tasks(label_studio, published.project)
        label_studio.client.tasks.delete(str(task.id))

    for hours in (0, 25):  # a day between
        delete_one()
        pending(look(label_studio, published, hours=hours))
    delete_one()
    with pytest.raises(InputError, match="2 times in a day"):
        look(label_studio, published, hours=26)
    assert dict(keys(label_studio, published.project)) == {t.key: 1 for t in tasks()}
    pending(look(label_studio, published, hours=26))


def test_a_task_goes_back_into_the_queue_once_and_stays_there(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = tasks()
    rank(label_studio, published, first, tiers=[[0]])
    for task in others:
        rank(label_studio, published, task)
    for _ in range(3):
        assert pending(look(label_studio, published)).refused == {"partial": 1}
    assert len(said(caplog, "back in the queue")) == 1
    bob = sign_in(label_studio, BOB)
    assert next_task(bob, published.project) is not None
    published = publication.publish(
        label_studio,
        published.project.title,
        Labeling(),
        published.completions,
        published.folder,
    )
    look(label_studio, published)
    assert next_task(bob, published.project) is not None, "a publishing closes it"


def test_answers_that_vanished_are_told_once(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    for task in tasks()[:3]:
        rank(label_studio, published, task)
    look(label_studio, published)
    for task in exported(label_studio, published).values():
        for mine in task["annotations"]:
            label_studio.client.annotations.delete(mine["id"])
    for _ in range(2):
        assert pending(look(label_studio, published)).refused == {"withdrawn": 3}
    assert len(said(caplog, "do not count any more")) == 1


def test_that_nobody_answers_is_told_once_a_day_whoever_looks(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    told = []
    for hours in (1, 23, 24, 30, 47, 48, 100, 101):
        stands = pending(look(label_studio, published, hours=hours))
        assert (stands.silent_since is not None) == (hours >= 24)
        told.append(len(said(caplog, "nobody has answered for")))
    assert told == [0, 0, 1, 1, 1, 2, 3, 3]
    line, *_ = said(caplog, "nobody has answered for")
    assert line.startswith("nobody has answered for 24 hours: 0 of 4 rankings are there; rank at h")
    rank(label_studio, published, tasks()[0], tiers=[[0]])  # not usable, and a sign all the same
    assert pending(look(label_studio, published, hours=23)).silent_since is None


# --- several at once ------------------------------------------------------------------------------


def test_looks_at_one_moment_put_everything_back_once(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    """The round that was resumed and a watcher, while tasks are gone and an answer is unusable."""
    answer(label_studio, published, limit=2)
    rank(label_studio, published, tasks()[0], tiers=[[0]], email=BOB)
    look(label_studio, published)
    for task in list_tasks(label_studio, published.project)[0]:
        label_studio.client.tasks.delete(str(task.id))
    found: list[Opened | Pending] = []
    threads = [
        threading.Thread(target=lambda: found.append(look(label_studio, published)), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    seen = [(pending(one).rankings, pending(one).refused) for one in found]
    assert seen == [(2, {"partial": 1})] * 3
    assert dict(keys(label_studio, published.project)) == {t.key: 1 for t in tasks()}
    assert len(said(caplog, "put back")) == 1
