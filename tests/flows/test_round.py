"""The whole way in miniature: the real command, real Prefect, real Label Studio, real training of
a tiny model. What becomes of it when it is killed on the way is in test_crashes.py."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.load import load_config
from flows.plan import look
from flows.store import Store
from tests.flows.miniature import PATIENCE_S, STAGES, TASKS, Project, run_id, until


def test_round_json_holds_what_a_person_asks_for(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    document = finished[0]
    assert document["status"] == "complete"
    assert document["error"] is None
    evaluation = document["evaluation"]
    low, high = evaluation["win_rate_interval"]
    assert 0 <= low <= evaluation["win_rate"] <= high <= 1
    assert abs(evaluation["kl"]) < 5  # an estimate from samples: it may fall below 0
    assert 0 <= evaluation["guards"]["valid"] <= 1
    assert 0 <= evaluation["initial"]["guards"]["valid"] <= 1
    assert 0 <= document["reward"]["held_out_accuracy"] <= 1
    assert document["labels"]["pairs"] > 0
    assert document["promotion"]["what"] == "refused"  # eight prompts prove nothing
    assert (document["started_from"], document["lineage"]) == (None, [])
    for name in STAGES:
        stage = document["stages"][name]
        assert stage["made_seconds"] > 0
        assert Path(stage["path"]).name == stage["key"]
    assert document["seed"] == document["config"]["seed"] == 0
    assert document["versions"]["torch"]
    assert set(document["addresses"]) == {"dashboard", "labeling", "report"}


def test_the_rounds_folder_leads_to_everything(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    folder = project.round_folder()
    for name in ("policy", "initial_policy"):
        assert (folder / name / "model.safetensors").is_file()
    assert (folder / "reward_model").is_dir()
    for name in ("prompts", "completions", "labels", "pairs"):
        assert (folder / f"{name}.parquet").is_file()
    assert (folder / "evaluation" / "evaluation.json").is_file()
    report = folder / "report.html"
    assert not report.is_symlink()
    assert "mini" in report.read_text()


def test_the_terminal_ends_with_a_table_and_three_addresses(
    finished: tuple[dict[str, Any], str],
) -> None:
    document, out = finished
    for name in STAGES:
        assert f"│ {name} " in out
    closing = out.rstrip().splitlines()[-3:]
    assert [line.split()[1] for line in closing] == [*document["addresses"].values()]
    assert "Flow run" not in out  # Prefect's own logging is for the dashboard


def test_the_dashboard_has_short_names_one_graph_and_artifacts(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    run = run_id(finished[0])
    assert project.ask_prefect(f"/flow_runs/{run}")["name"] == "mini-000"
    nodes = project.ask_prefect(f"/flow_runs/{run}/graph-v2")["nodes"]
    label = {id_: node["label"] for id_, node in nodes}
    before = {node["label"]: {label[p["id"]] for p in node["parents"]} for _, node in nodes}
    assert before["sft"] == set()
    assert before["completions"] == {"sft", "prompts"}
    assert before["freeze labels"] == {"publish", "gate"}
    assert before["pairs"] == {"completions", "freeze labels"}
    assert before["ppo"] == {"sft", "prompts", "reward"}
    body = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    artifacts = {a["key"]: a for a in project.ask_prefect("/artifacts/filter", body)}
    assert {"mini-steps", "mini-summary"} <= set(artifacts)
    summary = artifacts["mini-summary"]["data"]
    assert "data:image/png;base64," in summary
    assert len(summary) < 200_000
    assert {task["state_type"] for task in project.task_runs(run).values()} == {"COMPLETED"}


def test_the_next_run_reuses_everything(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    code, out, err = project.run()
    assert code == 0, out + err
    again, document = project.round(), finished[0]
    assert {name: again["stages"][name]["reused"] for name in STAGES} == dict.fromkeys(STAGES, True)
    states = {n: t["state_name"] for n, t in project.task_runs(run_id(again)).items()}
    assert Counter(states.values())["Reused"] == len(STAGES) + 2  # and labels and promotion
    assert states["prompts"] == "Reused"
    for part in ("evaluation", "reward", "ppo", "labels"):
        assert again[part] == document[part]
    assert project.answers() == (TASKS, TASKS)


def test_a_dry_run_tells_the_keys_of_the_run_and_the_rankings_that_are_there(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    config = load_config(project.folder / "config.yaml")
    labels = project.folder / "runs" / "mini" / "rounds" / "000" / "labels.parquet"
    plan = look(config, Store(project.folder / ".rankloop" / "store"), labels)
    keys = {name: step.key for name, step in plan.items() if step.is_stage}
    assert keys == {name: finished[0]["stages"][name]["key"] for name in STAGES}
    assert all(plan[name].entry for name in STAGES)
    code, out, err = project.run("--dry-run")
    assert code == 0, out + err
    assert f"labels: {TASKS} rankings of 1 labelers are frozen" in out
    code, out, err = project.run("--dry-run", "--name", "unheard-of")
    assert code == 0, out + err
    assert f"one each wanted of {TASKS} tasks; nothing is published yet" in out


def test_labels_of_other_completions_stop_the_round_before_anything_is_published(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    code, _, err = project.run("--sampling.seed", "5")
    assert code == 2
    (line,) = err.splitlines()
    assert "rankings are of other completions" in line
    assert "--name" in line
    assert project.answers() == (TASKS, TASKS)


def test_a_users_error_fails_the_round_at_once_and_is_written_down(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    code, _, err = project.run("--evaluation.judge", "rubric.py:broken")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("rankloop: ")
    assert "no luck" in line
    document = project.round()
    assert document["status"] == "failed"
    assert "no luck" in document["error"]
    assert document["stages"]["ppo"]["reused"]
    runs = project.task_runs(run_id(document))
    assert (runs["evaluate"]["state_type"], runs["evaluate"]["run_count"]) == ("FAILED", 1)


def test_a_round_that_waits_for_people_can_be_stopped_and_says_how_to_go_on(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    process = project.start("--labeling.simulated", "[]", "--name", "by-people")
    try:
        until(lambda: "publish" in project.round("by-people")["stages"], process)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.splitlines()[-1].endswith("goes on from there")
    document = project.round("by-people")
    assert document["status"] == "interrupted"
    assert document["stages"]["completions"]["reused"]
    assert project.answers("by-people") == (TASKS, 0)


# --- starting and stopping anywhere ---------------------------------------------------------------


def without_label_studio(project: Project) -> Project:
    """The project where any word to Label Studio would fail."""
    nowhere = {"LABEL_STUDIO_URL": "http://127.0.0.1:9", "LABEL_STUDIO_API_KEY": "none"}
    return replace(project, environment=project.environment | nowhere)


def test_a_round_that_stopped_where_it_was_told_to_goes_on_from_there(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    code, out, err = project.run("--name", "stops", "--stop_after", "labels")
    assert code == 0, out + err
    assert "stopped after labels, as configured; without `stop_after` the next run" in out
    stopped = project.round("stops")
    assert (stopped["status"], stopped["stopped_after"]) == ("complete", "labels")
    assert list(stopped["stages"])[-2:] == ["freeze", "summary"]
    code, out, err = project.run("--name", "stops")
    assert code == 0, out + err
    whole = project.round("stops")
    assert whole["stopped_after"] is None
    made_before = [name for name in stopped["stages"] if name in ("freeze", *STAGES)]
    assert all(whole["stages"][name]["reused"] for name in made_before)
    assert whole["evaluation"]
    summary = project.task_runs(run_id(stopped))["summary"]
    assert summary["state_type"] == "COMPLETED"


def test_an_own_sft_model_and_given_preferences_need_no_labels(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    folder = project.folder / "runs" / "mini" / "rounds" / "000"
    pairs = pq.read_table(folder / "pairs.parquet").select(["prompt", "chosen", "rejected"])
    given = project.folder / "given.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in pairs.to_pylist()))
    model = str(folder / "initial_policy")
    flags = ("--name", "given", "--model", model, "--sft", "null", "--preferences.data", str(given))
    project = without_label_studio(project)
    code, out, err = project.run(*flags, "--stop_after", "reward", "--prompts", "null")
    assert code == 0, out + err
    stopped = project.round("given")
    assert list(stopped["stages"]) == ["preferences", "reward", "summary"]
    assert stopped["labels"]["given"] == str(given)
    assert stopped["labels"]["pairs"] == len(pairs)
    code, out, err = project.run(*flags, "--labeling.simulated", "[]")
    assert code == 0, out + err
    whole = project.round("given")
    end = ["ppo", "evaluate", "promote", "report", "summary"]
    steps = ["prompts", "preferences", "reward", *end]
    assert list(whole["stages"]) == steps
    assert all(whole["stages"][name]["reused"] for name in steps[:3])
    assert "given.jsonl" in (project.folder / "runs/given/rounds/000/report.html").read_text()


def test_a_reward_function_and_a_judge_need_neither_labels_nor_a_reward_model(
    project: Project, finished: tuple[dict[str, Any], str]
) -> None:
    project = without_label_studio(project)
    function = ("--ppo.reward_function", "rubric.py:score", "--ppo.iterations", "1")
    code, out, err = project.run("--name", "function", *function)
    assert code == 0, out + err
    assert "no reward model is made" in out
    steps = ["prompts", "sft", "ppo", "evaluate", "promote", "report", "summary"]
    document = project.round("function")
    assert list(document["stages"]) == steps
    assert document["evaluation"]["reward"] is None
    code, out, err = project.run("--name", "samples", "--stop_after", "completions")
    assert code == 0, out + err
    assert list(project.round("samples")["stages"]) == ["prompts", "sft", "completions", "summary"]
