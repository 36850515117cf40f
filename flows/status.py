"""`rankloop status`: what each round is at, and what a round that waits for people waits for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import history, lineage
from flows.config import project_title
from flows.round_folder import is_locked
from labeling import tally
from labeling.errors import InputError

if TYPE_CHECKING:
    from labeling.label_studio import LabelStudio

logger = logging.getLogger(__name__)

Connect = Callable[[], "LabelStudio | None"]
Ended = Callable[[str], str | None]


def describe_rounds(
    runs: Path, connect: Connect = lambda: None, ended: Ended = lambda _: None
) -> list[str]:
    """Lines for each round below `runs`: what it is at, or how it ended; of one that waits for
    people, how far they are.

    A round that is at work has just looked at Label Studio. Of one that is not, `connect` gives the
    server to look at now; without one, what was seen last is told, and when that was. `ended` says
    how a Prefect run ended, if it did: one that waits may have been cancelled.
    """
    lines = []
    for run in sorted({path.parent.parent.parent for path in runs.glob("*/rounds/*/round.json")}):
        for path in sorted(run.glob("rounds/*/round.json")):
            lines += _describe(path, connect, ended)
        lines += _incumbent(run)
    return lines


def _describe(path: Path, connect: Connect, ended: Ended) -> list[str]:
    try:
        document = json.loads(path.read_text())
        name = f"{document['name']} round {document['round']}"
        look = partial(_look, path, document, connect)
        state, *more = _state(document, is_locked(path.parent), look, ended)
        return [f"{name}: {state}", *(f"  {line}" for line in more)]
    except (OSError, ValueError, KeyError, TypeError) as trouble:
        return [f"{path} cannot be read ({type(trouble).__name__})"]


def _incumbent(run: Path) -> list[str]:
    """`demo: round 1's policy is promoted (by the gate)`; nothing before the first decision."""
    try:
        known = history.read(run)
    except InputError as error:
        return [str(error)]
    if not known.decisions:
        return []
    last = next((d for d in reversed(known.decisions) if d.what != "refused"), None)
    how = f" ({last.what} by {'the gate' if last.by == 'gate' else 'hand'})" if last else ""
    return [f"{run.name}: {lineage.named(known.incumbent)} is promoted{how}"]


def _state(
    document: dict[str, Any],
    is_at_work: bool,
    look: Callable[[], dict[str, Any] | None],
    ended: Ended,
) -> list[str]:
    """`complete`; `running 'reward'`; `waits for people` with what there is."""
    status, step, waiting = document["status"], document.get("step"), document.get("waiting")
    if status == "complete":
        stop, gate = document.get("stopped_after"), document.get("promotion")
        if gate is not None:
            return [f"{status}, {gate['what']}: {gate['reason']}"]
        return [f"complete, up to {stop} as configured" if stop else status]
    if status == "running" and not is_at_work:
        status = "killed"  # it had no time to write it down
    said = status if step is None else f"{status} at '{step}'"
    if document["error"]:
        said += f": {document['error']}"
    if not waiting:
        return [said]
    if status == "waiting" and (end := _end(document, ended)):
        return [f"its run is {end}, and nobody waits any more; `rankloop submit` takes it up again"]
    seen = None if is_at_work else look()
    first, *more = tally.describe(seen or waiting)
    when = "" if seen or is_at_work else f" (as of {tally.for_people(waiting['taken'])})"
    again = "; `rankloop run` goes on"
    if is_at_work or status == "waiting":  # or `watch-rankings` resumes it
        again = ""
    return [said + again, first + when, *more, f"rank at {waiting['page']}"]


def _end(document: dict[str, Any], ended: Ended) -> str | None:
    runs = document.get("flow_runs", [])
    return ended(runs[-1]) if runs else None


def _look(path: Path, document: dict[str, Any], connect: Connect) -> dict[str, Any] | None:
    """What is in Label Studio now; None where nobody answers. Nothing is kept: the round does that
    when it goes on."""
    try:
        server = connect()
        if server is None:
            return None
        from flows import answers  # noqa: PLC0415 - loads the SDK
        from labeling.config import Labeling  # noqa: PLC0415

        title = project_title(document["name"], document["round"])
        config = Labeling.model_validate(document["config"]["labeling"])
        return answers.stands_now(server, title, config, path.parent).document()
    except (ConnectionError, InputError) as error:
        logger.warning("%s", error)
        return None
