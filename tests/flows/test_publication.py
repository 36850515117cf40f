"""Publishing a round, against the real Label Studio."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from flows import answers, publication
from flows.publication import Published
from labeling import page
from labeling.config import Labeling
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.overlap import overlaps
from labeling.project_tasks import keys
from tests.flows.ranked_round import (
    ANN,
    answer,
    publish_again,
    publish_round,
    rank,
    round_folder,
    tasks,
    write_tasks,
)


@pytest.fixture
def published(label_studio: LabelStudio, tmp_path: Path) -> Published:
    return publish_round(label_studio, tmp_path)


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "completions.parquet", tasks())


def test_publishing_twice_creates_nothing(label_studio: LabelStudio, published: Published) -> None:
    again = publish_again(label_studio, published)
    assert (again.created, again.tasks, again.project) == (0, 4, published.project)
    assert label_studio.count(published.project).tasks == 4


def test_nobody_is_asked_to_rank_tasks_of_other_completions(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    foreign = page.task_data(tasks("somebody's own")[0])
    del foreign["key"]
    rows: Any = [{"data": foreign}]
    label_studio.client.projects.import_tasks(published.project.id, request=rows)
    others = tmp_path / "others.parquet"
    write_tasks(others, [*tasks("another")[:2], *tasks()[:1]])
    again = publish_again(label_studio, published, others)
    assert again.created == 2
    wanted = {task.key for task in (*tasks("another")[:2], *tasks()[:1])}
    assert set(keys(label_studio, again.project)) == wanted
    assert label_studio.count(again.project).tasks == 4


def test_ranked_tasks_of_other_completions_stop_the_round(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    answer(label_studio, published, limit=1)
    others = tmp_path / "others.parquet"
    write_tasks(others, tasks("another"))
    with pytest.raises(InputError, match=r"1 tasks that are ranked already .* --name"):
        publish_again(label_studio, published, others)
    assert dict(keys(label_studio, published.project)) == {t.key: 1 for t in tasks("question")}


def test_with_frozen_labels_nothing_is_put_before_anybody(
    label_studio: LabelStudio, completions: Path, tmp_path: Path
) -> None:
    name = f"frozen-{uuid.uuid4().hex[:8]}"
    published = publication.publish(
        label_studio, name, Labeling(), completions, round_folder(tmp_path), is_frozen=True
    )
    assert (published.tasks, published.created) == (4, 0)
    assert label_studio.count(published.project).tasks == 0


def test_more_rankings_than_tasks_need_several_labelers_for_each(
    label_studio: LabelStudio, completions: Path, tmp_path: Path
) -> None:
    name = f"overlap-{uuid.uuid4().hex[:8]}"
    published = publication.publish(
        label_studio, name, Labeling(wanted=9), completions, round_folder(tmp_path)
    )
    raw = label_studio.client.projects.get(published.project.id)
    assert raw.maximum_annotations == 3


def test_the_number_of_labelers_costs_no_request_where_it_is_the_projects(
    label_studio: LabelStudio, completions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(label_studio.client.tasks, "list", refuse)
    monkeypatch.setattr(label_studio.client.tasks, "update", refuse)
    name, config = f"free-{uuid.uuid4().hex[:8]}", Labeling(overlap=2)
    publication.publish(label_studio, name, config, completions, round_folder(tmp_path))


def test_each_new_task_is_given_its_number_of_labelers_without_a_listing(
    label_studio: LabelStudio, completions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Labeling(overlap=2, overlap_share=0.5)
    numbers = overlaps(config, [task.key for task in tasks()])
    assert set(numbers.values()) == {1, 2}
    real = label_studio.client.tasks.list
    listings: list[Any] = []

    def listing(**given: Any) -> Any:
        listings.append(given)
        return real(**given)

    monkeypatch.setattr(label_studio.client.tasks, "list", listing)
    name, folder = f"share-{uuid.uuid4().hex[:8]}", round_folder(tmp_path)
    published = publication.publish(label_studio, name, config, completions, folder)
    assert listings == []
    there: Any = list(real(project=published.project.id, fields="all"))
    assert {task.data["key"]: task.overlap for task in there} == numbers
    label_studio.client.tasks.update(str(there[0].id), overlap=7)
    publication.publish(label_studio, name, config, completions, folder)
    assert len(listings) == 1
    there = list(real(project=published.project.id, fields="all"))
    assert {task.data["key"]: task.overlap for task in there} == numbers


def test_a_renamed_project_is_still_the_rounds(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=1)
    label_studio.client.projects.update(published.project.id, title="somebody's own title")
    again = publish_again(label_studio, published)
    assert (again.project.id, again.created) == (published.project.id, 0)
    assert label_studio.count(again.project).answers == 1
    title = published.project.title
    assert publication.find_project(label_studio, title, published.folder) == again.project


# --- two folders, one name ------------------------------------------------------------------------


def test_another_folders_run_of_one_name_is_refused_before_it_changes_anything(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    others = write_tasks(tmp_path / "others.parquet", tasks("another"))
    with pytest.raises(InputError, match=r"another folder, with other completions.* --name"):
        publication.publish(
            label_studio,
            published.project.title,
            Labeling(instructions="other", wanted=9),
            others,
            round_folder(tmp_path / "elsewhere"),
        )
    assert dict(keys(label_studio, published.project)) == {t.key: 1 for t in tasks()}
    raw = label_studio.client.projects.get(published.project.id)
    assert (raw.maximum_annotations, raw.expert_instruction) != (3, "other")


def test_another_folders_run_shares_the_same_tasks(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    """So does the run itself, after somebody removed its folder `runs`."""
    again = publication.publish(
        label_studio,
        published.project.title,
        Labeling(),
        published.completions,
        round_folder(tmp_path / "elsewhere"),
    )
    assert (again.project.id, again.created) == (published.project.id, 0)
    assert dict(keys(label_studio, published.project)) == {t.key: 1 for t in tasks()}


def test_a_project_deleted_while_it_is_published_to_is_created_anew(
    label_studio: LabelStudio, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank(label_studio, published, tasks()[0])
    answers.look(label_studio, published, tasks())
    deleted: list[int] = []
    real = label_studio.client.tasks.list

    def delete_first(**given: Any) -> Any:
        if not deleted:
            deleted.append(published.project.id)
            label_studio.client.projects.delete(published.project.id)
        return real(**given)

    monkeypatch.setattr(label_studio.client.tasks, "list", delete_first)
    again = publish_again(label_studio, published)
    assert again.project.id != published.project.id
    assert dict(keys(label_studio, again.project)) == {t.key: 1 for t in tasks()}
    seen = answers.look(label_studio, again, tasks())
    assert [(r.task, r.labeler) for r in seen.rankings] == [(tasks()[0].key, ANN)]
