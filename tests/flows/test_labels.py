"""The gate and the freezing of labels, against the real Label Studio."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import labels
from flows.labels import Published
from flows.servers import Servers
from labeling import page, simulated
from labeling.config import Labeling, SimulatedLabeler
from labeling.errors import InputError
from labeling.label_studio import Counts, LabelStudio, Project
from labeling.records import (
    Candidates,
    Completion,
    Prompt,
    Ranking,
    read_rankings,
    write_candidates,
)

LABELER = SimulatedLabeler(score="unused.py:score")


def by_length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def tasks(prefix: str) -> list[Candidates]:
    return [
        Candidates(Prompt(text=f"{prefix} {n}"), (Completion("a" * (n + 1)), Completion("b")))
        for n in range(1, 5)
    ]


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    path = tmp_path / "completions.parquet"
    write_candidates(tasks("question"), path)
    return path


@pytest.fixture
def published(label_studio: LabelStudio, completions: Path) -> Published:
    """Four tasks in a project of their own."""
    name = f"gate-{uuid.uuid4().hex[:8]}"
    return labels.publish(label_studio, name, Labeling(), completions)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def answer(label_studio: LabelStudio, published: Published, limit: int) -> None:
    simulated.answer_tasks(
        LABELER, by_length, label_studio, published.project, tasks("question"), limit=limit
    )


def test_the_gate_opens_when_there_are_enough_rankings_and_not_before(
    label_studio: LabelStudio, published: Published
) -> None:
    config = Labeling(wanted=3, poll_seconds=0.05)
    opened: list[labels.Opened] = []
    waiting = threading.Thread(
        target=lambda: opened.append(labels.wait_for_rankings(label_studio, published, config)),
        daemon=True,
    )
    answer(label_studio, published, limit=2)
    waiting.start()
    waiting.join(1.0)
    assert opened == []
    answer(label_studio, published, limit=1)
    waiting.join(30)
    assert opened == [labels.Opened(3)]


def test_an_open_gate_is_passed_at_once(label_studio: LabelStudio, published: Published) -> None:
    answer(label_studio, published, limit=4)
    config = Labeling(poll_seconds=1e6)
    assert labels.wait_for_rankings(label_studio, published, config) == labels.Opened(4)


def test_publishing_twice_creates_nothing(label_studio: LabelStudio, published: Published) -> None:
    again = labels.publish(label_studio, published.project.title, Labeling(), published.completions)
    assert (again.created, again.tasks, again.project) == (0, 4, published.project)
    assert label_studio.count(published.project).tasks == 4


def test_frozen_labels_stay_whatever_is_answered_later(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    path = tmp_path / "labels.parquet"
    assert labels.find_frozen(path, published.completions) is None
    answer(label_studio, published, limit=2)
    frozen = labels.freeze(label_studio, published, path)
    assert (frozen.rankings, frozen.labelers, frozen.reused) == (2, 1, False)
    before = path.read_bytes()
    answer(label_studio, published, limit=2)
    found = labels.find_frozen(path, published.completions)
    assert found is not None
    assert (found.rankings, found.reused) == (2, True)
    assert path.read_bytes() == before
    assert {r.tiers for r in read_rankings(path)} == {((0,), (1,))}


def test_labels_of_other_completions_are_refused(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    path, others = tmp_path / "labels.parquet", tmp_path / "others.parquet"
    answer(label_studio, published, limit=2)
    labels.freeze(label_studio, published, path)
    write_candidates(tasks("another question"), others)
    with pytest.raises(InputError, match="2 of 2 rankings are of other completions"):
        labels.find_frozen(path, others)


def test_frozen_labels_that_cannot_be_read_are_an_input_error(
    completions: Path, tmp_path: Path
) -> None:
    path = tmp_path / "labels.parquet"
    path.write_text("no parquet")
    with pytest.raises(InputError, match="remove it to freeze the labels anew"):
        labels.find_frozen(path, completions)


def test_rankings_of_simulated_labelers_that_cannot_be_enough_are_an_input_error(
    label_studio: LabelStudio, published: Published
) -> None:
    answer(label_studio, published, limit=4)
    config = Labeling(wanted=5, poll_seconds=1e6, simulated=(LABELER,))
    with pytest.raises(InputError, match=r"4 of 5 rankings.*lower labeling\.wanted"):
        labels.wait_for_rankings(label_studio, published, config)
    labels._refuse_to_wait_for_nobody(
        [Ranking("key", "ann@example.org", ((0,), (1,)))], Counter(), 5, config
    )


def test_the_gate_says_which_answers_are_not_usable(
    label_studio: LabelStudio, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    answer(label_studio, published, limit=3)
    (last,) = (t for t in label_studio.export(published.project) if not t["annotations"])
    partial = page.annotation_result(Ranking(last["data"]["key"], "", ((0,),)), 2)
    label_studio.annotate(last["id"], partial, label_studio.ensure_labeler("ann@example.org"))
    caplog.set_level("INFO", "flows.labels")
    told: list[tuple[int, int, str]] = []
    waiting = threading.Thread(
        target=labels.wait_for_rankings,
        args=(label_studio, published, Labeling(poll_seconds=0.05)),
        kwargs={"on_wait": lambda *state: told.append(state)},
        daemon=True,
    )
    waiting.start()
    until(lambda: "3 of 4 rankings are there; not usable: 1 partial" in caplog.text)
    assert told[0] == (3, 4, published.project.url)
    answer(label_studio, published, limit=1)
    waiting.join(30)
    assert not waiting.is_alive()


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
    opened = labels.wait_for_rankings(leaving, published, config, reconnect)
    assert opened == labels.Opened(4)


def test_nobody_is_asked_to_rank_tasks_of_other_completions(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    foreign = page.task_data(tasks("somebody's own")[0])
    del foreign["key"]
    rows: Any = [{"data": foreign}]
    label_studio.client.projects.import_tasks(published.project.id, request=rows)
    others, name = tmp_path / "others.parquet", published.project.title
    write_candidates([*tasks("another")[:2], *tasks("question")[:1]], others)
    again = labels.publish(label_studio, name, Labeling(), others)
    assert again.created == 2
    keys = {task.key for task in (*tasks("another")[:2], *tasks("question")[:1])}
    assert set(label_studio.keys(again.project)) == keys
    assert label_studio.count(again.project).tasks == 4


def test_ranked_tasks_of_other_completions_stop_the_round(
    label_studio: LabelStudio, published: Published, tmp_path: Path
) -> None:
    answer(label_studio, published, limit=1)
    others, name = tmp_path / "others.parquet", published.project.title
    write_candidates(tasks("another"), others)
    with pytest.raises(InputError, match=r"1 tasks that are ranked already .* --name"):
        labels.publish(label_studio, name, Labeling(), others)
    assert dict(label_studio.keys(published.project)) == {t.key: 1 for t in tasks("question")}


def test_with_frozen_labels_nothing_is_put_before_anybody(
    label_studio: LabelStudio, completions: Path
) -> None:
    name = f"frozen-{uuid.uuid4().hex[:8]}"
    published = labels.publish(label_studio, name, Labeling(), completions, is_frozen=True)
    assert (published.tasks, published.created) == (4, 0)
    assert label_studio.count(published.project).tasks == 0


def test_more_rankings_than_tasks_need_several_labelers_for_each(
    label_studio: LabelStudio, completions: Path
) -> None:
    name = f"overlap-{uuid.uuid4().hex[:8]}"
    published = labels.publish(label_studio, name, Labeling(wanted=9), completions)
    raw = label_studio.client.projects.get(published.project.id)
    assert raw.maximum_annotations == 3
