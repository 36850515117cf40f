"""Looks at what was answered, against the real Label Studio."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from flows import answers
from flows.publication import Published
from labeling.config import Labeling
from labeling.errors import disk_refusal
from labeling.label_studio import LabelStudio
from tests.flows.ranked_round import (
    publish_round,
    round_folder,
    tasks,
    write_tasks,
)


@pytest.fixture
def published(label_studio: LabelStudio, tmp_path: Path) -> Published:
    return publish_round(label_studio, tmp_path)


def test_a_full_disk_is_told_and_leaves_no_half_of_a_snapshot(
    label_studio: LabelStudio, published: Published
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large") as caught:
            answers.look(label_studio, published, tasks())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ulimit -f" in str(disk_refusal(caught.value))
    assert list(published.snapshots.iterdir()) == []
    assert answers.look(label_studio, published, tasks()).rankings == []


def test_asking_where_the_ranking_stands_writes_nothing(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    folder = round_folder(tmp_path)
    folder.mkdir(parents=True)
    write_tasks(folder / "completions.parquet", tasks())
    before = sorted(tmp_path.rglob("*"))
    assert answers.stands_now(label_studio, "nobody's", Labeling(), folder).rankings == 0
    assert sorted(tmp_path.rglob("*")) == before
