"""What a person finds in `runs/<name>/rounds/NNN/` besides round.json: the report, links into the
store. And whether a process is at work there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from flows.runner import StageResult
from labeling.durable import put_in_place
from labeling.errors import InputError

# The folder's name for each stage's output; `evaluate`'s is its whole entry.
LINKS = {
    "prompts": "prompts.parquet",
    "sft": "initial_policy",
    "completions": "completions.parquet",
    "preferences": "pairs.parquet",
    "pairs": "pairs.parquet",
    "reward": "reward_model",
    "ppo": "policy",
    "evaluate": "evaluation",
}
LOCK = ".lock"  # held by the process that is at work on the round


def show(folder: Path, result: StageResult) -> Path:
    """Put a stage's output where a person looks for it; where that is."""
    output = result.output
    if result.stage == "report":  # a copy: it is sent to others
        shown = folder / output.name
        partial = _partial(shown)
        shutil.copyfile(output, partial)
        put_in_place(partial, shown)
        return shown
    shown = folder / LINKS[result.stage]
    partial = _partial(shown)
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(output, folder))
    os.replace(partial, shown)
    return shown


def clear(folder: Path) -> None:
    """Take away all that was shown; the store keeps it."""
    for name in (*LINKS.values(), "report.html"):
        (folder / name).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def is_locked(folder: Path) -> bool:
    """Whether a process of this host is at work on the round of this folder."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def newest_report(runs: Path, name: str | None = None) -> Path:
    """The report written last: of the run `name`, or of all.

    Raises:
        InputError: there is none.
    """
    reports = list(runs.glob(f"{name or '*'}/rounds/*/report.html"))
    if not reports:
        there = sorted({path.parents[2].name for path in runs.glob("*/rounds/*/report.html")})
        hint = f"; there are reports of {', '.join(there)}" if there and name else ""
        raise InputError(f"no report in {runs / (name or '')}{hint}: `rankloop run` writes one")
    return max(reports, key=lambda path: path.stat().st_mtime)
