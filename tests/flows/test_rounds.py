"""Two rounds in miniature, through the real command and servers: the second starts from what the
first one promoted, and says all that it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.lineage import Lineage
from flows.store import Store, digest_of_json, file_digest
from tests.flows.miniature import STAGES, TASKS, Project, run_id

NAME = "twice"
FLAGS = (
    *("--name", NAME, "--promotion.min_win_rate", "0"),
    *("--later_rounds.changes", '{"sampling": {"prompts": 6}, "reward": {"epochs": 2}}'),
)
LATER = tuple(stage for stage in STAGES if stage != "sft")


@pytest.fixture(scope="module")
def two(project: Project, finished: tuple[dict[str, Any], str]) -> tuple[dict[str, Any], ...]:
    """round.json of both rounds, of one undisturbed run."""
    for flag in ("--rounds", "--round"):  # the first round, then the one after it
        code, out, err = project.run(*FLAGS, flag, "1")
        assert code == 0, out + err
        assert "promoted: its win rate over" in out
    return project.round(NAME, 0), project.round(NAME, 1)


def store(project: Project) -> Store:
    return Store(project.folder / ".rankloop" / "store")


def manifest(document: dict[str, Any], stage: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(
        (Path(document["stages"][stage]["path"]) / "manifest.json").read_text()
    )
    return loaded


def output(document: dict[str, Any], stage: str, name: str) -> Path:
    return Path(document["stages"][stage]["path"]) / name


def test_the_second_round_starts_from_the_first_ones_promoted_policy(
    project: Project, two: tuple[dict[str, Any], ...]
) -> None:
    first, second = two
    policy = store(project).digest(output(first, "ppo", "policy"))
    initial = store(project).digest(output(first, "sft", "policy"))
    assert first["started_from"] is None
    assert second["started_from"] == {
        "round": 0,
        "key": first["stages"]["ppo"]["key"],
        "digest": policy,
    }
    assert "sft" not in second["stages"]
    for stage in ("completions", "ppo"):
        assert manifest(second, stage)["inputs"]["policy"] == policy
    inputs = manifest(second, "evaluate")["inputs"]
    assert (inputs["initial"], inputs["incumbent"]) == (initial, policy)
    assert "incumbent" not in manifest(first, "evaluate")["inputs"]
    assert project.ask_prefect(f"/flow_runs/{run_id(second)}")["name"] == f"{NAME}-001"


def test_the_second_reward_model_goes_on_with_the_first_and_the_pairs_of_both(
    project: Project, two: tuple[dict[str, Any], ...]
) -> None:
    first, second = two
    made = manifest(second, "reward")
    assert made["inputs"]["start"] == store(project).digest(output(first, "reward", "reward_model"))
    assert made["inputs"]["earlier"] == [
        store(project).digest(output(first, "pairs", "pairs.parquet"))
    ]
    assert (manifest(first, "reward")["config"]["epochs"], made["config"]["epochs"]) == (1, 2)
    pairs = sum(document["labels"]["pairs"] for document in two)
    metrics = made["metrics"]
    assert 0 < metrics["earlier_pairs"] < metrics["train_pairs"] < pairs
    assert 0 <= metrics["accuracy_before"] <= 1


def test_the_second_round_is_ranked_in_a_project_of_its_own(
    project: Project, two: tuple[dict[str, Any], ...]
) -> None:
    earlier = manifest(two[1], "completions")["inputs"]["earlier"]
    assert earlier == [file_digest(output(two[0], "completions", "completions.parquet"))]
    addresses = {document["addresses"]["labeling"] for document in two}
    assert len(addresses) == 2
    assert project.answers(f"{NAME}, round 1") == (6, 6)


def test_a_lineage_leads_back_to_everything(
    project: Project, two: tuple[dict[str, Any], ...]
) -> None:
    first, second = two
    (ancestor,) = second["lineage"]
    assert ancestor["stages"] == {n: s["key"] for n, s in first["stages"].items() if "key" in s}
    assert ancestor["config"] == digest_of_json(first["config"])
    assert ancestor["seed"] == 0
    assert ancestor["versions"]["torch"]
    assert ancestor["commits"]
    assert ancestor["labels"]["labelers"] == 1
    assert ancestor["labels"]["rankings"] == TASKS
    assert ancestor["promotion"] == "promoted"
    frozen = project.round_folder(NAME) / "labels.parquet"
    assert ancestor["data"]["rankings"] == file_digest(frozen)
    assert ancestor["data"]["prompts"] == file_digest(project.folder / "prompts.jsonl")
    assert {"model", "demonstrations for SFT", "judge"} <= set(ancestor["data"])
    assert second["data"]["rankings"] != ancestor["data"]["rankings"]
    pinned = project.round_folder(NAME, 1) / "lineage.json"
    assert Lineage.model_validate_json(pinned.read_bytes()).earlier[0].round == 0
    report = (project.round_folder(NAME, 1) / "report.html").read_text()
    for shown in (
        *ancestor["stages"].values(),
        *(digest[:16] for digest in ancestor["data"].values()),
        "Over round 0&#39;s policy, from which this round started",
        "<strong>Promoted</strong> by the gate",
        f"{TASKS} rankings of 1 labeler",
    ):
        assert shown in report, shown


def test_running_both_again_reuses_everything(
    project: Project, two: tuple[dict[str, Any], ...]
) -> None:
    assert not project.round_folder(NAME, 2).exists()
    reports = [project.round_folder(NAME, n) / "report.html" for n in (0, 1)]
    before = [report.read_bytes() for report in reports]
    history = (project.round_folder(NAME).parent.parent / "promotions.json").read_bytes()
    code, out, err = project.run(*FLAGS, "--rounds", "2")
    assert code == 0, out + err
    for number, stages in ((0, STAGES), (1, LATER)):
        made = project.round(NAME, number)["stages"]
        assert all(made[stage]["reused"] for stage in (*stages, "promote", "freeze"))
    assert [report.read_bytes() for report in reports] == before
    after = (project.round_folder(NAME).parent.parent / "promotions.json").read_bytes()
    assert after == history
    assert project.round(NAME, 1)["lineage"] == two[1]["lineage"]
    assert pq.read_table(output(two[1], "evaluate", "comparisons_vs_incumbent.parquet")).num_rows
    code, out, err = project.run(*FLAGS, "--dry-run", "--round", "1")
    assert code == 0, out + err
    assert "to make" not in out
    said = f"starts from: round 0's policy; its reward model learns from {TASKS} earlier rankings"
    assert said in out
