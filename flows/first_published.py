"""`published.json` in a round's folder says when its tasks were first before labelers. The deadline
counts from there, whatever is restarted, run again or deleted since. No Prefect."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flows.store import write_json
from labeling.records import digest

logger = logging.getLogger(__name__)

FILE = "published.json"


def first_published(folder: Path, keys: Sequence[str]) -> datetime | None:
    """When these tasks of the round in `folder` were first before labelers, if that is noted."""
    path = folder / FILE
    try:
        noted = json.loads(path.read_text())
        first = datetime.fromisoformat(noted["first"])
        return first.astimezone(UTC) if noted["tasks"] == _digest(keys) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s)", path, type(error).__name__)
        return None


def note_first(folder: Path, keys: Sequence[str], created: Iterable[datetime]) -> datetime:
    """Note it for these tasks, once; for one writer at a time. Where there is no note, or not any
    more, the oldest task knows: they were `created` on the server, or in a snapshot, then."""
    if (noted := first_published(folder, keys)) is not None:
        return noted
    known = [moment for moment in created if moment.year > 1]  # else it is not known
    first = min([datetime.now(UTC), *known]).astimezone(UTC).replace(microsecond=0)
    write_json(folder / FILE, {"first": first.isoformat(), "tasks": _digest(keys)})
    return first


def _digest(keys: Sequence[str]) -> str:
    return digest(sorted(keys))
