from __future__ import annotations

import random
import uuid
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import page
from labeling.accounts import Labeler, sign_in
from labeling.config import Labeling, SimulatedLabeler
from labeling.label_studio import LabelStudio, Project
from labeling.overlap import of_labeler, overlaps, set_overlaps, usual
from labeling.publishing import publish
from labeling.records import Candidates, Completion, Prompt, Ranking, digest

KEYS = [digest(n) for n in range(1000)]


def config(labelers: int = 0, **given: Any) -> Labeling:
    simulated = tuple(SimulatedLabeler(name=f"labeler {n}", score="m:f") for n in range(labelers))
    return Labeling(simulated=simulated, **given)


def test_without_overlap_each_task_goes_to_one_labeler() -> None:
    assert set(overlaps(config(), KEYS).values()) == {1}


def test_a_share_of_the_tasks_goes_to_several_labelers() -> None:
    numbers = Counter(overlaps(config(overlap=3, overlap_share=0.2), KEYS).values())
    assert numbers.keys() == {1, 3}
    assert 160 < numbers[3] < 240
    assert set(overlaps(config(overlap=3), KEYS).values()) == {3}


def test_more_rankings_wanted_than_the_overlap_gives_raise_it_everywhere() -> None:
    numbers = overlaps(config(overlap=4, overlap_share=0.2, wanted=1900), KEYS)
    assert set(numbers.values()) == {2, 4}


@given(st.sets(st.sampled_from(KEYS), min_size=1), st.floats(0.05, 1.0), st.integers(1, 3))
def test_what_a_task_is_given_depends_on_its_key_alone(
    some: set[str], share: float, labelers: int
) -> None:
    settings = config(labelers, overlap=2, overlap_share=share)
    everything = overlaps(settings, KEYS)
    assert overlaps(settings, sorted(some)) == {key: everything[key] for key in some}
    for labeler in settings.simulated:
        own = of_labeler(labeler.name, settings, KEYS)
        assert of_labeler(labeler.name, settings, sorted(some)) == own & some


def test_each_task_is_answered_by_so_many_labelers_and_they_share_the_work() -> None:
    settings = config(3, overlap=2, overlap_share=0.2)
    own = {one.name: of_labeler(one.name, settings, KEYS) for one in settings.simulated}
    numbers = overlaps(settings, KEYS)
    assert Counter(key for keys in own.values() for key in keys) == Counter(numbers)
    assert all(340 < len(keys) < 460 for keys in own.values())


def test_one_labeler_answers_everything_and_none_answers_twice() -> None:
    settings = config(1, overlap=2, overlap_share=0.2)
    assert of_labeler("labeler 0", settings, KEYS) == set(KEYS)


def test_another_order_of_the_labelers_changes_nothing() -> None:
    there = config(3, overlap=2, overlap_share=0.5)
    back = there.model_copy(update={"simulated": there.simulated[::-1]})
    for labeler in there.simulated:
        assert of_labeler(labeler.name, there, KEYS) == of_labeler(labeler.name, back, KEYS)


# --- on the server -------------------------------------------------------------------------------


@pytest.fixture
def project(label_studio: LabelStudio) -> Project:
    return label_studio.ensure_project(f"overlap-{uuid.uuid4().hex[:8]}", "Rank them.")


def make_tasks(project: Project, count: int) -> list[Candidates]:
    return [
        Candidates(Prompt(text=f"{project.title} {n}"), (Completion("yes"), Completion("no")))
        for n in range(count)
    ]


def next_task(labeler: Labeler, project: Project) -> int | None:
    """What the page's queue puts before this labeler."""
    answer = labeler._http.get(f"/api/projects/{project.id}/next")
    return answer.json()["id"] if answer.status_code == 200 else None


def rank_next(labeler: Labeler, project: Project, at_most: int) -> list[int]:
    ranked: list[int] = []
    while len(ranked) < at_most and (task := next_task(labeler, project)) is not None:
        labeler.annotate(task, page.annotation_result(Ranking("", "", ((0,), (1,))), 2))
        ranked.append(task)
    return ranked


def test_two_people_who_follow_the_queue_rank_each_task_as_often_as_it_wants(
    label_studio: LabelStudio, project: Project
) -> None:
    """Published in two batches, with work between, in a random order of the two."""
    ann, bob = (sign_in(label_studio, f"{name}@example.org") for name in ("ann", "bob"))
    tasks, settings = make_tasks(project, 40), config(overlap=2, overlap_share=0.3)
    numbers, draw = overlaps(settings, [task.key for task in tasks]), random.Random(0)
    assert {1, 2} == set(numbers.values())
    ranked: list[int] = []
    for batch, turns in ((tasks[:25], 20), (tasks, 200)):
        publish(label_studio, project, batch)
        set_overlaps(label_studio, project, numbers)
        for _ in range(turns):
            ranked += rank_next(draw.choice((ann, bob)), project, at_most=1)
    assert next_task(ann, project) is None
    assert next_task(bob, project) is None
    exported = label_studio.export(project)
    assert {task["data"]["key"]: len(task["annotations"]) for task in exported} == numbers
    for task in exported:
        emails = [a["completed_by"]["email"] for a in task["annotations"]]
        assert len(set(emails)) == len(emails)
    assert len(ranked) == sum(numbers.values())


def test_a_task_whose_number_changes_comes_back_into_the_queue_or_leaves_it(
    label_studio: LabelStudio, project: Project
) -> None:
    ann, bob = (sign_in(label_studio, f"{name}@example.org") for name in ("ann", "bob"))
    (task,) = make_tasks(project, 1)
    publish(label_studio, project, [task])
    (id_,) = rank_next(ann, project, at_most=9)
    assert next_task(bob, project) is None
    set_overlaps(label_studio, project, {task.key: 2})
    assert next_task(ann, project) is None
    assert next_task(bob, project) == id_
    set_overlaps(label_studio, project, {task.key: 1})
    assert next_task(bob, project) is None


def test_the_server_is_told_once_and_again_when_the_config_changes(
    label_studio: LabelStudio, project: Project
) -> None:
    tasks = make_tasks(project, 12)
    keys = [task.key for task in tasks]
    publish(label_studio, project, tasks)
    for settings in (
        config(overlap=2, overlap_share=0.5),
        config(overlap=3, overlap_share=0.5),
        config(overlap=3),
        config(),
    ):
        numbers = overlaps(settings, keys)
        label_studio.ensure_project(project.title, "Rank them.", usual(numbers))
        set_overlaps(label_studio, project, numbers)
        there: Any = label_studio.client.tasks.list(project=project.id, fields="all")
        assert {task.data["key"]: task.overlap for task in there} == numbers
        assert set_overlaps(label_studio, project, numbers) == 0
