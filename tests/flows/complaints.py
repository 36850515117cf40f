"""What every mistake must end with: one line that names it, exit code 2, nothing left behind."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.embedded import Launch

CONFIG = """\
name: demo
model: model
prompts: {path: prompts.jsonl}
ppo: {iterations: 5}
"""
RUBRIC = """\
def score(prompts, completions):
    return [0.0 for _ in completions]
"""


def rows(*values: Any) -> str:
    """JSON Lines."""
    return "".join(json.dumps(value) + "\n" for value in values)


def make_project(folder: Path) -> Path:
    """A project without mistakes, its model aside: the config names one on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.replace("model: model", "model: gpt2"))
    (folder / "prompts.jsonl").write_text(rows(*({"prompt": f"prompt {n}"} for n in range(4))))
    (folder / "rubric.py").write_text(RUBRIC)
    return folder


def files_below(folder: Path) -> set[Path]:
    """Everything there but logs, bytecode and locks."""
    return {
        path
        for path in folder.rglob("*")
        if not {"logs", "__pycache__"} & {part.name for part in (path, *path.parents)}
        and path.suffix != ".lock"
        and path.name != ".rankloop"
    }


def complaint_of(folder: Path, *arguments: str) -> str:
    """What `rankloop ARGUMENTS` in `folder` complains of; fails unless it is one line with exit
    code 2 that leaves no file behind. No server is started."""
    before = files_below(folder)
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(Launch, "start", lambda launch: pytest.fail(f"{launch.title} was started"))
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
    assert end.value.code == 2, err.getvalue()
    assert files_below(folder) == before
    return one_line(err.getvalue())


def one_line(text: str, start: str = "rankloop: ") -> str:
    """The line, when the text is one, without a traceback."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith(start)
    assert "Traceback (most recent" not in text
    assert len(lines[0]) < 700
    return lines[0].removeprefix(start)


def assert_says(line: str, expected: Iterable[str]) -> None:
    missing = [part for part in expected if part not in line]
    assert not missing, line
