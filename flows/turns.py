"""Which round a Prefect run is at. A run that is suspended and resumed, or retried, stays at the
round that it began. No Prefect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.config import StopAfter
from flows.lineage import next_round


def round_of(run: Path, flow_run: str) -> int | None:
    """The round below the run's folder that this Prefect run was at work on last, if any."""
    return next((n for n, ids in sorted(_flow_runs(run).items())[::-1] if flow_run in ids), None)


def is_newest(run: Path, number: int, flow_run: str) -> bool:
    """Whether no other Prefect run was at work on the round after this one."""
    return _flow_runs(run).get(number, [])[-1:] == [flow_run]


def take(
    run: Path, flow_run: str, stop_after: StopAfter | None, is_alive: Callable[[str], bool]
) -> int | None:
    """The round that falls to a Prefect run that was told none: the one it began, else the newest
    that is not complete or was stopped before `stop_after`, else a new one. None when that is
    another's, which `is_alive`: at work, or waiting for people.

    Raises InputError when the newest round cannot be read.
    """
    if (own := round_of(run, flow_run)) is not None:
        return own
    number = next_round(run, stop_after)
    others = _flow_runs(run).get(number, [])
    return None if others and is_alive(others[-1]) else number


def _flow_runs(run: Path) -> dict[int, list[str]]:
    found = {}
    for path in run.glob("rounds/[0-9]*/round.json"):
        if not path.parent.name.isdecimal():
            continue  # somebody's copy
        try:
            document: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # `next_round` says so of the one that matters
        found[int(path.parent.name)] = list(document.get("flow_runs", []))
    return found
