"""Answers that were there once and are gone now, though their task is still there: somebody deleted
them. They are not used, but counted.

`answered.json` beside the snapshots remembers every answer that an export had: snapshots are
thinned and could not tell for ever.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from labeling.rankings import annotations_of
from labeling.snapshots import Snapshot, whole, write_private

logger = logging.getLogger(__name__)

FILE = "answered.json"
_MANY, _MANY_SHARE = 3, 0.1

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


def is_suspicious(gone: Collection[Pair], of: int) -> bool:
    """Whether so many answers of `of` that went at one time are more than somebody's second
    thoughts: at least three, and a tenth of all or those of several labelers."""
    is_many = len(gone) >= _MANY_SHARE * of or len({labeler for _, labeler in gone}) > 1
    return is_many and len(gone) >= _MANY


def holding(folder: Path, pairs: Collection[Pair]) -> Snapshot | None:
    """The newest snapshot that has one of these answers, and so had them before they went."""
    for snapshot, tasks in whole(folder):
        if any((key, labeler) in pairs for key, labeler, _ in annotations_of(tasks)):
            return snapshot
    return None


def _noted(folder: Path) -> dict[Pair, str]:
    path = folder / FILE
    try:
        return {(key, labeler): id_ for key, labeler, id_ in json.loads(path.read_bytes())}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read (%s): begun anew", path, type(error).__name__)
        return {}
