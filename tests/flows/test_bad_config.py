"""Every mistake in a config file or a flag: the real command says what, where and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.complaints import CONFIG, assert_says, complaint_of, make_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


GOOD = CONFIG.replace("model: model", "model: gpt2")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # what is no YAML, or no fields
        ((GOOD, ""), ["config.yaml is empty", "must hold fields"]),
        ((GOOD, "- a\n- b\n"), ["config.yaml must hold fields"]),
        ((GOOD, "just words\n"), ["config.yaml must hold fields"]),
        (("model:", "\tmodel:"), ["config.yaml, line 2", "not YAML", "indent with spaces"]),
        (("name: demo", "name: 'demo"), ["config.yaml, line", "not YAML"]),
        (("name: demo", "name: demo: 2"), ["config.yaml, line 1", "not YAML"]),
        (("name: demo", "name: \0"), ["config.yaml", "not YAML"]),
        (("ppo:", "---\nppo:"), ["config.yaml, line 4", "another document"]),
        (("name: demo", "name: !!python/name:os.system x"), ["line 1", "constructor"]),
        (("ppo:", "name: again\nppo:"), ["line 4", "'name' is here twice"]),
        (("iterations: 5", "iterations: 5, iterations: 6"), ["line 4", "'iterations' is here"]),
        (("iterations: 5", "7: 5"), ["config.yaml, line 4", "7 is no field's name"]),
        # names of fields
        (("iterations", "iteration"), ["no field 'iteration' in 'ppo'", "did you mean iterations"]),
        (("ppo:", "pppo:"), ["no field 'pppo'", "did you mean ppo"]),
        (("ppo:", "kl_coef: 1\nppo:"), ["no field 'kl_coef'", "did you mean ppo.kl_coef"]),
        (("name: demo\n", ""), ["'name' is missing", "add it", "folder under runs/"]),
        (("{path: prompts.jsonl}", "{}"), ["'prompts.path' is missing", "JSONL or Parquet"]),
        (("ppo:", "sft: {epochs: 1}\nppo:"), ["'sft.data' is missing"]),
        # values
        (("iterations: 5", "iterations: 0"), ["ppo.iterations", "greater than or equal to 1"]),
        (("iterations: 5", "iterations: -5"), ["ppo.iterations", "not -5"]),
        (("iterations: 5", "iterations: 1.5"), ["ppo.iterations", "integer", "not 1.5"]),
        (("iterations: 5", "kl_coef: high"), ["ppo.kl_coef", "valid number", "not 'high'"]),
        (("iterations: 5", "kl_coef: .nan"), ["ppo.kl_coef", "not nan"]),
        (("iterations: 5", "learning_rate: .inf"), ["ppo.learning_rate", "finite"]),
        (("iterations: 5", "critic: both"), ["ppo.critic", "'shared', 'separate'", "'both'"]),
        (("iterations: 5", "top_p: 0.9"), ["ppo", "top_p", "bias the probability ratio"]),
        (("iterations: 5", "critic_warmup: 100"), ["critic_warmup is 100 of 100", "lower it"]),
        (("ppo:", "device: gpu\nppo:"), ["device", "'auto', 'cpu' or 'cuda'", "'gpu'"]),
        (("ppo:", "seed: -1\nppo:"), ["config.yaml: seed", "greater than or equal to 0"]),
        (("ppo:", "seed: 99999999999\nppo:"), ["config.yaml: seed", "less than 4294967296"]),
        (("ppo:", "sampling: {top_p: 0}\nppo:"), ["sampling.top_p", "greater than 0"]),
        (("ppo:", "sampling: {completions_per_prompt: 10}\nppo:"), ["less than or equal to 9"]),
        (("ppo:", "labeling: {wanted: 0}\nppo:"), ["labeling.wanted", "from 1 on", "not 0"]),
        (("ppo:", "labeling: {wanted: 1.5}\nppo:"), ["labeling.wanted", "share", "not 1.5"]),
        (("ppo:", "labeling: {wanted: all}\nppo:"), ["labeling.wanted", "such as 0.8, not 'all'"]),
        (("ppo:", "labeling: {minimum: 1.0}\nppo:"), ["labeling.minimum: must be less than all"]),
        (("ppo:", "labeling: {wanted: 4, minimum: 5}\nppo:"), ["minimum is 5, and wanted is 4"]),
        (("ppo:", "labeling: {deadline_hours: 0}\nppo:"), ["labeling.deadline_hours", "than 0"]),
        (("name: demo", "name: My Run"), ["name: must be", "lower-case letters", "'My Run'"]),
        (("name: demo", "name:"), ["name", "valid string, not nothing"]),
        (("ppo: {iterations: 5}", "ppo: 5"), ["ppo: must be a section with fields", "not 5"]),
        (("ppo: {iterations: 5}", "ppo: [5]"), ["ppo: must be a section with fields"]),
        (("ppo: {iterations: 5}", "ppo:"), ["ppo: must be a section", "not nothing"]),
        (("ppo:", "labeling: {simulated: {name: x}}\nppo:"), ["simulated: must be a list"]),
        (("ppo:", "labeling: {bind: localhost}\nppo:"), ["labeling.bind: must be an IPv4 address"]),
        (("ppo:", "labeling: {public_url: rank}\nppo:"), ["labeling.public_url", "https://rank"]),
        (
            ("ppo:", "labeling: {simulated: [{score: 'a:b'}, {score: 'a:b'}]}\nppo:"),
            ["labeling.simulated: each must have a name of its own ('simulated' is there twice)"],
        ),
        (("ppo:", "labeling: {overlap_share: 0}\nppo:"), ["labeling.overlap_share", "than 0"]),
        # paths
        (("model: gpt2", "model: ''"), ["model: is empty"]),
        (("model: gpt2", "model: ./nowhere"), ["model", "nowhere does not exist", "correct"]),
        (("prompts.jsonl", "prompt.jsonl"), ["prompts.path", "prompt.jsonl does not exist"]),
        (("model: gpt2", "model: .\nrevision: main"), ["revision", "only for a model on the hub"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(
    change: tuple[str, str], expected: list[str], project: Path
) -> None:
    (project / "config.yaml").write_text(GOOD.replace(*change))
    line = complaint_of(project, "run", "config.yaml")
    assert_says(line, ["config.yaml", *expected])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--ppo.klcoef", "1"], ["--ppo.klcoef", "did you mean --ppo.kl_coef"]),
        (["--xyzzy", "1"], ["no field --xyzzy", "`rankloop run --fields`"]),
        (["--seed"], ["--seed has no value", "--seed VALUE"]),
        (["--ppo.kl_coef", "--seed", "7"], ["--ppo.kl_coef has no value"]),
        (["--ppo.kl_coef="], ["--ppo.kl_coef", "valid number"]),
        (["--ppo", "{bad"], ["--ppo: not JSON", "--ppo.field VALUE"]),
        (["stray"], ["unrecognized arguments: stray", "--section.field VALUE"]),
        (["-seed", "7"], ["unrecognized arguments: -seed 7", "--section.field VALUE"]),
        (["--prompts.path", "none.jsonl"], ["--prompts.path", "none.jsonl does not exist"]),
        (["--prompts.path", "."], ["is a folder", ".jsonl or .parquet"]),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(
    flags: list[str], expected: list[str], project: Path
) -> None:
    assert_says(complaint_of(project, "run", "config.yaml", *flags), expected)


def test_a_config_that_is_no_text_names_the_line(project: Path) -> None:
    (project / "config.yaml").write_bytes(b"name: demo\nmodel: \xff\n")
    assert "config.yaml, line 2: not UTF-8" in complaint_of(project, "run", "config.yaml")


def test_a_folder_and_nothing_are_no_config(project: Path) -> None:
    assert "is a folder" in complaint_of(project, "run", ".")
    assert "nowhere.yaml does not exist" in complaint_of(project, "run", "nowhere.yaml")
