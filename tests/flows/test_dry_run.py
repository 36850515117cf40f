"""`rankloop run --dry-run`: it tells what a run would do, and does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.config import RoundConfig
from flows.lengths import measure
from flows.load import load_config
from flows.plan import look
from flows.runner import run_stage
from flows.stages import PROMPTS
from flows.store import Store
from tests import tiny

CONFIG = """\
name: dry
model: model
max_new_tokens: 8
prompts: {path: prompts.jsonl}
sampling: {prompts: 5}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.save(tmp_path / "model")
    rows = [{"prompt": f"hello the desk {word}"} for word in tiny.WORDS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def dry_run(folder: Path, *flags: str, then: str = "") -> subprocess.CompletedProcess[str]:
    hidden = ("PREFECT", "LABEL", "RANKLOOP")
    code = (
        f"from flows.cli import main; main({['run', 'config.yaml', '--dry-run', *flags]!r}); {then}"
    )
    return subprocess.run(
        (sys.executable, "-c", code),
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith(hidden)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def listing(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_nothing_is_written_and_torch_is_not_loaded(folder: Path) -> None:
    before = listing(folder)
    loaded = (
        "import sys; print('loaded', sorted({'torch', 'prefect', 'transformers'} & {*sys.modules}))"
    )
    done = dry_run(folder, then=loaded)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert listing(folder) == before
    for said in (
        "needs people",
        "after completions",
        "one each wanted of at most 5 tasks; Label Studio is not running",
        "policy: optimizer",
        "8,816 × 8 bytes",
    ):
        assert said in done.stdout, said


def test_the_config_that_is_shown_can_be_run(folder: Path) -> None:
    done = dry_run(folder, "--seed", "7", "--ppo.kl_coef", "0.3", "--stop_after", "reward")
    assert done.returncode == 0, done.stderr
    text = done.stdout.partition("\ndry-seed-7: what")[0]
    assert "\n│ ppo" not in done.stdout
    (folder / "again.yaml").write_text(text)
    flags = ("--seed", "7", "--ppo.kl_coef", "0.3", "--stop_after", "reward")
    assert load_config(folder / "again.yaml") == load_config(folder / "config.yaml", flags)
    assert yaml.safe_load(text)["name"] == "dry-seed-7"


def test_what_is_wanted_and_what_will_do_after_the_deadline_is_told(folder: Path) -> None:
    flags = ("--labeling.wanted", "0.8", "--labeling.deadline_hours", "48")
    done = dry_run(folder, *flags, "--labeling.minimum", "0.5")
    assert done.returncode == 0, done.stderr
    assert "80% of all wanted of at most 5 tasks; after 48 hours 50% of all will do" in done.stdout


def test_a_wrong_config_ends_in_one_line(folder: Path) -> None:
    done = dry_run(folder, "--ppo.kl", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def config_of(folder: Path) -> RoundConfig:
    return load_config(folder / "config.yaml")


def test_what_is_made_is_reused_and_gives_the_next_key(folder: Path) -> None:
    home, labels = folder / ".rankloop", folder / "labels.parquet"
    config = config_of(folder)
    before = look(config, Store(home / "store"), labels)
    assert before["completions"].key is None
    assert before["completions"].after == "prompts"
    assert config.prompts is not None
    inputs = {"source": config.prompts.path, "evaluation": None}
    made = run_stage(PROMPTS, config.prompts, inputs, home, lambda _: None)
    after = look(config, Store(home / "store"), labels)
    assert before["prompts"].key == after["prompts"].key == made.key
    assert before["prompts"].entry is None
    assert after["prompts"].entry is not None
    assert after["completions"].key
    done = dry_run(folder)
    assert made.key in done.stdout
    assert "reused" in done.stdout


def test_lengths_are_those_of_the_longest_texts(folder: Path) -> None:
    lengths = measure(config_of(folder), context=64)
    assert (lengths.prompt, lengths.pair, lengths.how) == (4, 12, "")
    assert measure(config_of(folder), context=10).prompt == 2
    flags = ("--sampling.max_new_tokens", "3")
    shorter = measure(load_config(folder / "config.yaml", flags), context=10)
    assert (shorter.prompt, shorter.pair) == (2, 7), "pairs are of what sampling draws"
    (folder / "model" / "tokenizer.json").unlink()
    assert measure(config_of(folder), context=64).how == " (a token every three characters)"
