"""Every mistake in a user's function: told before the servers start where loading shows it, else
by the stage that asks it, with the line of the user's file and a log with the traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.check import check_inputs
from flows.config import RoundConfig
from flows.runner import run_stage
from labeling.errors import InputError
from tests.flows.complaints import (
    assert_says,
    complaint_of,
    files_below,
    make_project,
    one_line,
    rows,
)
from tests.flows.toy_stages import JUDGE, Toy


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("rubric.py", ["--evaluation.judge", "does not name a function", "file:function"]),
        ("none.py:score", ["--evaluation.judge", "none.py does not exist"]),
        ("no_module:score", ["evaluation.judge", "no module no_module"]),
        ("../outside.py:score", ["--evaluation.judge", "outside the project"]),
    ],
)
def test_a_function_that_is_nowhere_is_named_with_its_flag(
    reference: str, expected: list[str], project: Path
) -> None:
    (project.parent / "outside.py").touch()
    line = complaint_of(project, "run", "config.yaml", "--evaluation.judge", reference)
    assert_says(line, expected)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def other(p, c): ...\n", ["has no function 'score'"]),
        ("score = 3\n", ["has no function 'score'"]),
        ("def score(p, c:\n", ["cannot import", "SyntaxError", "rubric.py, line 1"]),
        ("\nimport not_installed\n", ["cannot import", "not_installed", "rubric.py, line 2"]),
        ("raise SystemExit('bye')\n", ["cannot import", "SystemExit: bye", "line 1"]),
        ("def score(prompts): ...\n", ["cannot be called as score(prompts, completions)"]),
        ("def score(p, c, scale): ...\n", ["cannot be called", "'scale'"]),
        ("async def score(p, c): ...\n", ["is async", "plain `def`"]),
    ],
)
def test_a_file_that_cannot_be_used_is_told_before_anything_starts(
    source: str, expected: list[str], project: Path
) -> None:
    (project / "rubric.py").write_text(source)
    line = complaint_of(project, "run", "config.yaml", "--ppo.reward_function", "rubric.py:score")
    assert_says(line, ["ppo.reward_function: ", "rubric.py", *expected])


def test_what_a_file_prints_at_its_end_does_not_hide_the_complaint(project: Path) -> None:
    (project / "rubric.py").write_text(
        "import atexit, sys\natexit.register(lambda: print('bye', file=sys.stderr, flush=True))\n"
        "print('loading', end='')\n"
    )
    line = complaint_of(project, "run", "config.yaml", "--ppo.reward_function", "rubric.py:score")
    assert_says(line, ["ppo.reward_function: ", "rubric.py has no function 'score'"])


def test_a_file_that_ends_the_process_is_named(project: Path) -> None:
    (project / "rubric.py").write_text("import os\nos._exit(3)\n")
    line = complaint_of(project, "run", "config.yaml", "--ppo.reward_function", "rubric.py:score")
    assert_says(line, ["rubric.py:score ended with exit code 3"])


def test_functions_that_no_step_asks_are_not_loaded(project: Path) -> None:
    (project / "pairs.jsonl").write_text(rows({"prompt": "Q", "chosen": "a", "rejected": "b"}))
    given = {
        "model": "gpt2",
        "stop_after": "reward",
        "preferences": {"data": str(project / "pairs.jsonl")},
        "labeling": {"simulated": [{"score": "none.py:score"}]},
        "ppo": {"reward_function": "none.py:score"},
        "evaluation": {"judge": "none.py:score", "guards": {"valid": "none.py:score"}},
    }
    check_inputs(RoundConfig(name="demo", **given))
    whole = given | {"stop_after": None, "prompts": {"path": str(project / "prompts.jsonl")}}
    with pytest.raises(InputError, match=r"none\.py does not exist"):
        check_inputs(RoundConfig(name="demo", **whole))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [1.0]", ["returned 1 scores for 2 completions"]),
        ("return None", ["returned None", "a list"]),
        ("return ['high', 'low']", ["returned 'high' for completion 0", "finite number"]),
        ("return [1.0, float('nan')]", ["returned nan for completion 1"]),
        ("return [1.0, float('inf')]", ["returned inf for completion 1"]),
        ("print('so\\nfar'); raise KeyError('k')", ["raised KeyError", "rubric.py, line 2"]),
        ("raise ValueError('two\\nlines')", ["raised ValueError: two (rubric.py, line 2)"]),
        ("import sys; sys.exit(0)", ["raised SystemExit: 0 (rubric.py, line 2)"]),
        ("return (1 / 0 for _ in completions)", ["raised ZeroDivisionError", "line 2"]),
    ],
)
def test_a_function_that_misbehaves_in_a_stage_is_one_line_and_leaves_nothing(
    body: str, expected: list[str], tmp_path: Path
) -> None:
    rubric, home = tmp_path / "rubric.py", tmp_path / "home"
    rubric.write_text(f"def score(prompts, completions):\n    {body}\n")
    with pytest.raises(InputError) as caught:
        run_stage(JUDGE, Toy(), {"function": f"{rubric}:score"}, home, lambda _: None)
    line = one_line(str(caught.value), "")
    assert_says(line, [str(rubric), *expected])
    assert {path.suffix for path in files_below(home / "store") if path.is_file()} <= {".json"}
    assert not list((home / "store").rglob("half.txt"))
    if "raised" in line:
        log = re.search(r"\(traceback in (.+)\)$", line)
        assert log
        assert "Traceback (most recent call last)" in Path(log[1]).read_text()
