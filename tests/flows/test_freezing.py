"""Freezing, against the real Label Studio."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import answers, freezing
from flows.freezing import FrozenLabels
from flows.publication import Published
from labeling import snapshots
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.records import read_rankings
from tests.flows.ranked_round import (
    answer,
    publish_round,
    tasks,
    write_tasks,
)


@pytest.fixture
def published(label_studio: LabelStudio, tmp_path: Path) -> Published:
    return publish_round(label_studio, tmp_path)


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "completions.parquet", tasks())


def freeze(label_studio: LabelStudio, published: Published) -> FrozenLabels:
    seen = answers.look(label_studio, published, tasks())
    return freezing.freeze(published, seen.snapshot, published.folder / "labels.parquet")


def test_frozen_labels_stay_whatever_is_answered_later(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    path = published.folder / "labels.parquet"
    assert freezing.find_frozen(path, published.completions) is None
    answer(label_studio, published, limit=2)
    frozen = freeze(label_studio, published)
    assert (frozen.rankings, frozen.labelers, frozen.reused) == (2, 1, False)
    before = path.read_bytes()
    answer(label_studio, published, limit=2)
    found = freezing.find_frozen(path, published.completions)
    assert found is not None
    assert (found.rankings, found.reused) == (2, True)
    assert path.read_bytes() == before
    assert {r.tiers for r in read_rankings(path)} == {((0,), (1,))}


def test_labels_of_other_completions_are_refused(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    path, others = published.folder / "labels.parquet", tmp_path / "others.parquet"
    answer(label_studio, published, limit=2)
    freeze(label_studio, published)
    write_tasks(others, tasks("another question"))
    with pytest.raises(InputError, match="2 of 2 rankings are of other completions"):
        freezing.find_frozen(path, others)


def test_frozen_labels_that_cannot_be_read_are_an_input_error(
    completions: Path, tmp_path: Path
) -> None:
    path = tmp_path / "labels.parquet"
    path.write_text("no parquet")
    with pytest.raises(InputError, match="remove it to freeze the labels anew"):
        freezing.find_frozen(path, completions)


def test_what_was_exported_is_kept_and_frozen_from_though_the_project_is_deleted(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=3)
    seen = answers.look(label_studio, published, tasks())
    label_studio.client.projects.delete(published.project.id)
    path = published.folder / "labels.parquet"
    frozen = freezing.freeze(published, seen.snapshot, path)
    assert (frozen.rankings, frozen.snapshot) == (3, seen.snapshot.path.name)
    assert snapshots.pinned(published.snapshots) == seen.snapshot
    found = freezing.find_frozen(path, published.completions)
    assert found is not None
    assert found.snapshot == frozen.snapshot


def test_a_damaged_snapshot_is_not_frozen_from(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=3)
    snapshot = answers.look(label_studio, published, tasks()).snapshot
    snapshot.path.write_bytes(snapshot.path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        freezing.freeze(published, snapshot, published.folder / "labels.parquet")
    assert not (published.folder / "labels.parquet").exists()
