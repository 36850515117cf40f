"""When a round's tasks were first before labelers, against the real Label Studio."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows import publication
from flows.first_published import FILE, first_published, note_first
from labeling.config import Labeling
from labeling.label_studio import LabelStudio
from tests.flows.ranked_round import publish_again, publish_round, rank, tasks, write_tasks

PAST = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def test_it_stays_whatever_is_run_again_or_deleted(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    published = publish_round(label_studio, tmp_path)
    assert published.first is not None
    assert timedelta(0) <= datetime.now(UTC) - published.first < timedelta(minutes=1)
    note = published.folder / FILE
    written = json.loads(note.read_text()) | {"first": PAST.isoformat()}
    note.write_text(json.dumps(written))
    assert publish_again(label_studio, published).first == PAST
    label_studio.client.projects.delete(published.project.id)
    assert publish_again(label_studio, published).first == PAST


def test_without_its_note_the_server_and_the_snapshots_know(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    """A round of an earlier version, or somebody removed `runs`."""
    published = publish_round(label_studio, tmp_path)
    (published.folder / FILE).write_text("{")
    again = publish_again(label_studio, published)
    assert published.first is not None
    assert again.first is not None
    assert abs(again.first - published.first) <= timedelta(seconds=2)
    assert first_published(published.folder, [task.key for task in tasks()]) == again.first


def test_other_completions_are_published_anew(label_studio: LabelStudio, tmp_path: Path) -> None:
    published = publish_round(label_studio, tmp_path)
    note = published.folder / FILE
    note.write_text(json.dumps(json.loads(note.read_text()) | {"first": PAST.isoformat()}))
    others = write_tasks(tmp_path / "others.parquet", tasks("another"))
    again = publish_again(label_studio, published, others)
    assert again.first is not None
    assert again.first > PAST


def test_of_what_is_known_the_oldest_counts_and_nothing_lies_in_the_future(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    unknown = datetime.min.replace(tzinfo=UTC)
    later = PAST + timedelta(days=1)
    assert note_first(tmp_path, ["a", "b"], [later, unknown, PAST]) == PAST
    assert note_first(tmp_path, ["b", "a"], [later]) == PAST, "it is noted"
    assert note_first(tmp_path, ["c"], [now + timedelta(days=1)]) <= datetime.now(UTC)


def test_a_look_from_outside_lists_and_sends_nothing(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish_round(label_studio, tmp_path)
    folder, title = published.folder, published.project.title
    write_tasks(folder / "completions.parquet", tasks())
    rank(label_studio, published, tasks()[0])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("published")

    with monkeypatch.context() as patch:
        patch.setattr(publication, "put_there", refuse)
        found = publication.published_before(label_studio, title, Labeling(), folder)
    assert (found.project, found.tasks, found.in_project) == (published.project, 4, 4)
    assert found.first == published.first
    label_studio.client.projects.delete(published.project.id)
    anew = publication.published_before(label_studio, title, Labeling(), folder)
    assert anew.created == 4
    assert anew.first == published.first
