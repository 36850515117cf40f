from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import accounts
from labeling.config import SimulatedLabeler
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.publishing import publish
from labeling.rankings import rankings_from_export
from labeling.records import Candidates, Completion, Prompt, read_candidates, write_candidates
from labeling.scoring import ScoreFunction
from labeling.simulated import answer_tasks, labeler_email, rank


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def make_tasks(name: str, count: int) -> list[Candidates]:
    texts = ("a", "bb" * 4, "ccc" * 9, "dddd" * 16)
    return [
        Candidates(Prompt(text=f"{name} {n}"), tuple(Completion(f"{t}{n}") for t in texts))
        for n in range(count)
    ]


def make_labeler(**given: Any) -> SimulatedLabeler:
    return SimulatedLabeler(**({"name": "sim", "score": "m:f"} | given))


TASK = make_tasks("one", 1)[0]


def test_without_noise_the_order_is_that_of_the_scores() -> None:
    ranking = rank(make_labeler(), TASK, [0.1, 3.0, -1.0, 2.0])
    assert ranking.tiers == ((1,), (3,), (0,), (2,))
    assert ranking.task == TASK.key


def test_scores_within_the_tie_share_a_tier() -> None:
    assert rank(make_labeler(), TASK, [1.0, 2.0, 1.0, 5.0]).tiers == ((3,), (1,), (0, 2))
    assert rank(make_labeler(tie_within=1.0), TASK, [1.0, 2.0, 0.9, 5.0]).tiers == ((3,), (0, 1, 2))


def test_nine_different_answers_get_nine_tiers() -> None:
    task = Candidates(Prompt(text="nine"), tuple(Completion(str(i)) for i in range(9)))
    ranking = rank(make_labeler(), task, [float(i) for i in range(9)])
    assert ranking.tiers == tuple((i,) for i in reversed(range(9)))


@given(
    scores=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    noise=st.floats(0, 3),
    tie=st.floats(0, 2),
)
def test_every_answer_ranks_each_completion_once(
    scores: list[float], noise: float, tie: float
) -> None:
    ranking = rank(make_labeler(noise=noise, tie_within=tie), TASK, scores)
    assert sorted(i for tier in ranking.tiers for i in tier) == [0, 1, 2, 3]


def test_noise_follows_from_seed_name_and_task_alone() -> None:
    tasks = make_tasks("noise", 50)

    def all_ranked(**given: Any) -> dict[str, Any]:
        labeler = make_labeler(noise=1.0, **given)
        return {task.key: rank(labeler, task, [0.0] * 4).tiers for task in tasks}

    first = all_ranked()
    assert all_ranked() == first
    assert all_ranked(seed=1) != first
    assert all_ranked(name="other") != first
    assert len(set(first.values())) > 10


def test_more_noise_agrees_less_with_the_scores() -> None:
    tasks = make_tasks("agree", 200)

    def agreement(noise: float) -> float:
        labeler = make_labeler(noise=noise)
        best = [rank(labeler, task, [0.0, 1.0, 2.0, 3.0]).tiers[0] for task in tasks]
        return best.count((3,)) / len(best)

    assert agreement(0.0) == 1.0
    assert 0.6 < agreement(1.0) < 0.9
    assert agreement(50.0) < 0.45


def test_labelers_of_different_names_have_different_accounts() -> None:
    names = ("ann", "Ann", "Änn", "a b", "a-b")
    emails = {labeler_email(make_labeler(name=name)) for name in names}
    assert len(emails) == len(names)
    assert "ann@simulated.rankloop.local" in emails


def test_answers_arrive_as_ranked_with_progress(
    label_studio: LabelStudio, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = make_tasks("arrive", 12)
    project = label_studio.ensure_project("sim arrive", "x")
    publish(label_studio, project, tasks)
    labeler = make_labeler(noise=5.0, tie_within=3.0)
    with caplog.at_level(logging.INFO, "labeling.simulated"):
        assert answer_tasks(labeler, length, label_studio, project, tasks) == 12
    rankings, refused = rankings_from_export(label_studio.export(project), tasks)
    by_key = {task.key: task for task in tasks}
    assert len(rankings) == 12
    assert not refused
    for ranking in rankings:
        task = by_key[ranking.task]
        assert ranking == rank(labeler, task, [len(c.text) for c in task.completions])
    assert (12, 12) in [getattr(record, "progress", None) for record in caplog.records]


def test_a_restart_answers_only_what_is_left(label_studio: LabelStudio) -> None:
    tasks = make_tasks("restart", 9)
    project = label_studio.ensure_project("sim restart", "x")
    publish(label_studio, project, tasks)
    labeler = make_labeler(name="restarted")
    assert answer_tasks(labeler, length, label_studio, project, tasks, limit=4) == 4
    assert answer_tasks(labeler, length, label_studio, project, tasks) == 5
    assert answer_tasks(labeler, length, label_studio, project, tasks) == 0
    assert answer_tasks(make_labeler(name="second"), length, label_studio, project, tasks) == 9
    assert label_studio.count(project).answers == 18


def test_a_lost_reply_does_not_double_an_answer(
    label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_tasks("lost reply", 6)
    project = label_studio.ensure_project("sim lost reply", "x")
    publish(label_studio, project, tasks)
    real, calls = accounts.Labeler.annotate, []

    def lose_some(me: accounts.Labeler, task_id: int, *args: Any) -> None:
        calls.append(task_id)
        if len(calls) == 2:
            raise ConnectionError("refused before it arrived")
        real(me, task_id, *args)
        if len(calls) == 4:
            raise ConnectionError("lost after it was committed")

    monkeypatch.setattr(accounts.Labeler, "annotate", lose_some)
    monkeypatch.setattr("labeling.simulated.THREADS", 1)
    answer_tasks(make_labeler(), length, label_studio, project, tasks)
    exported = label_studio.export(project)
    assert [len(task["annotations"]) for task in exported] == [1] * 6


def test_a_killed_labeler_goes_on_without_doubling(
    label_studio: LabelStudio, servers: Any, tmp_path: Path
) -> None:
    tasks = make_tasks("killed", 60)
    project = label_studio.ensure_project("sim killed", "x")
    publish(label_studio, project, tasks)
    write_candidates(tasks, tmp_path / "tasks.parquet")
    labeler = make_labeler(name="killed", noise=2.0)
    job = {"url": label_studio.url, "labeler": labeler.model_dump(), "title": project.title}
    (tmp_path / "job.json").write_text(json.dumps(job))
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "TOKEN": servers.label_studio.token},
        cwd=Path(__file__).parents[2],
    )
    deadline = time.monotonic() + 60
    while label_studio.count(project).answers < 5:
        assert time.monotonic() < deadline, "the labeler gave no answers"
    child.send_signal(signal.SIGKILL)
    child.wait()
    label_studio.wait_until_stable(project, seconds=1)
    before = label_studio.count(project).answers
    assert 5 <= before < 60
    assert answer_tasks(labeler, length, label_studio, project, tasks) == 60 - before
    exported = label_studio.export(project)
    assert [len(task["annotations"]) for task in exported] == [1] * 60
    rankings, _ = rankings_from_export(exported, tasks)
    expected = [rank(labeler, t, [len(c.text) for c in t.completions]) for t in tasks]
    assert rankings == sorted(expected, key=lambda r: r.task)


def test_a_score_function_that_fails_posts_nothing(label_studio: LabelStudio) -> None:
    tasks = make_tasks("bad score", 3)
    project = label_studio.ensure_project("sim bad score", "x")
    publish(label_studio, project, tasks)
    broken = ScoreFunction("my:score", lambda prompts, completions: [float("nan")] * 3)
    with pytest.raises(InputError, match="my:score"):
        answer_tasks(make_labeler(), broken, label_studio, project, tasks)
    assert label_studio.count(project).answers == 0


def _answer_in_a_child(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    server = LabelStudio(job["url"], os.environ["TOKEN"])
    answer_tasks(
        SimulatedLabeler(**job["labeler"]),
        length,
        server,
        server.ensure_project(job["title"], "x"),
        read_candidates(folder / "tasks.parquet"),
    )


if __name__ == "__main__":
    _answer_in_a_child(Path(sys.argv[1]))
