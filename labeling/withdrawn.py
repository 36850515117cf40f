"""Answers that were there once and are gone now, though their task is still there: somebody deleted
them. They are not used, but counted.

`answered.json` beside the snapshots remembers every answer that an export had: snapshots are
thinned and could not tell for ever.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labeling.rankings import annotations_of
from labeling.snapshots import write_private

logger = logging.getLogger(__name__)

FILE = "answered.json"

Pair = tuple[str, str]


def note_answers(folder: Path, export: Iterable[Mapping[str, Any]]) -> None:
    """Remember the answers of this export; skips are none."""
    before = _noted(folder)
    noted = before | {
        (key, labeler): str(annotation.get("unique_id"))
        for key, labeler, annotation in annotations_of(export)
        if key and labeler and not annotation.get("was_cancelled")
    }
    if noted != before:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows = sorted([*pair, id_] for pair, id_ in noted.items())
        write_private(folder / FILE, json.dumps(rows).encode())


def withdrawn(folder: Path, export: Iterable[Mapping[str, Any]]) -> set[Pair]:
    """(task key, labeler) of the answers that are gone from this export. A task that is gone itself
    is none of them: it is put back. Nor is the answer of an account that is gone: it stands in the
    export, without a name."""
    tasks = list(export)
    keys = {(task.get("data") or {}).get("key") for task in tasks}
    there, ids = set(), set()
    for key, labeler, annotation in annotations_of(tasks):
        there.add((key, labeler))
        ids.add(str(annotation.get("unique_id")))
    return {
        pair
        for pair, id_ in _noted(folder).items()
        if pair[0] in keys and pair not in there and id_ not in ids
    }


def _noted(folder: Path) -> dict[Pair, str]:
    path = folder / FILE
    try:
        return {(key, labeler): id_ for key, labeler, id_ in json.loads(path.read_bytes())}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read (%s): begun anew", path, type(error).__name__)
        return {}
