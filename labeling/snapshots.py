"""Exports of Label Studio, kept as they came, before anything is made of them.

In the community edition every account may delete every project, task and answer. What was exported
stays: a round's folder has `snapshots/2026-11-21T20-15-03.123Z-<digest>.json.gz`, one for each
change that was seen, and `frozen.json.gz`, a link to the one that the labels were made of. They
hold the labelers' addresses, so only their owner may read them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from labeling.durable import put_in_place
from labeling.errors import InputError

logger = logging.getLogger(__name__)

FROZEN = "frozen.json.gz"
NEWEST_KEPT = 20
_ENDING, _TIME = ".json.gz", "%Y-%m-%dT%H-%M-%S.%f"

Tasks = list[dict[str, Any]]


@dataclass(frozen=True)
class Snapshot:
    """One kept export. `digest`: 16 hex digits of SHA-256 over the JSON (`zcat FILE | sha256sum`);
    `taken_at` is in UTC."""

    path: Path
    taken_at: datetime
    digest: str

    def content(self) -> bytes:
        """The export as the server wrote it.

        Raises InputError when the file is damaged or gone.
        """
        try:
            content = gzip.decompress(self.path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self.path} cannot be read ({type(error).__name__})") from error
        if _digest(content) != self.digest:
            raise InputError(f"{self.path} is damaged: it is not what its name says")
        return content

    def tasks(self) -> Tasks:
        """Tasks with their annotations, for `rankings_from_export`.

        Raises InputError when the file is damaged or gone.
        """
        return parse(self.content())


def parse(content: bytes) -> Tasks:
    """Raises InputError when it is no export."""
    try:
        tasks = json.loads(content)
    except ValueError:
        tasks = None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InputError("that is no export of Label Studio: no list of tasks")
    return tasks


def keep(folder: Path, content: bytes, taken_at: datetime | None = None) -> Snapshot:
    """Write an export into `folder`, whole or not at all, unless the newest there is the same.

    Of old ones the newest 20 stay, the last of each day, and the one that labels were frozen from.
    """
    newest, digest = next(iter(kept(folder)), None), _digest(content)
    taken_at = taken_at or datetime.now(UTC)
    taken_at = taken_at.replace(microsecond=taken_at.microsecond // 1000 * 1000)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for scrap in folder.glob("*.partial"):  # of a killed process
        scrap.unlink(missing_ok=True)
    if newest is not None and newest.digest == digest and _is_whole(newest):
        return newest
    if newest is not None and taken_at <= newest.taken_at:  # a clock that was set back
        taken_at = newest.taken_at + timedelta(milliseconds=1)
    made = Snapshot(folder / _name(taken_at, digest), taken_at, digest)
    # Level 1: a tenth of the size in a third of the time; level 9 would gain little.
    write_private(made.path, gzip.compress(content, compresslevel=1, mtime=0))
    _thin(folder)
    return made


def kept(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, newest first; whether they are whole is not looked at."""
    found = (_read_name(path) for path in folder.glob(f"*{_ENDING}"))
    return sorted(filter(None, found), key=lambda snapshot: snapshot.path.name, reverse=True)


def whole(folder: Path) -> Iterator[tuple[Snapshot, Tasks]]:
    """Newest first; a damaged one is passed over, with one line."""
    for snapshot in kept(folder):
        try:
            tasks = snapshot.tasks()
        except InputError as error:
            logger.warning("%s: passed over", error)
            continue
        yield snapshot, tasks


def latest(folder: Path) -> tuple[Snapshot, Tasks] | None:
    """The newest snapshot that can be read, and its tasks."""
    return next(whole(folder), None)


def last_seen(folder: Path, keys: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Each of these tasks as the newest snapshot that has it has it."""
    found: dict[str, Mapping[str, Any]] = {}
    missing = set(keys)
    for _, tasks in whole(folder):
        here: dict[str, Mapping[str, Any]] = {}
        for task in tasks:
            key = str((task.get("data") or {}).get("key"))
            # Of two copies in one snapshot, the one that was answered.
            if key in missing and not (key in here and here[key].get("annotations")):
                here[key] = task
        found |= here
        missing -= here.keys()
        if not missing:
            break
    return found


def pin(snapshot: Snapshot) -> None:
    """Say that labels are frozen from this one: it stays for ever."""
    link = snapshot.path.with_name(FROZEN)
    partial = link.with_name(f"{FROZEN}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(snapshot.path.name)
    put_in_place(partial, link)


def pinned(folder: Path) -> Snapshot | None:
    """The snapshot that labels were frozen from, if any."""
    try:
        return _read_name(folder / os.readlink(folder / FROZEN))
    except OSError:
        return None


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        put_in_place(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _thin(folder: Path) -> None:
    frozen, days = pinned(folder), set()
    for place, snapshot in enumerate(kept(folder)):
        day = snapshot.taken_at.date()
        if place >= NEWEST_KEPT and day in days and snapshot != frozen:
            snapshot.path.unlink(missing_ok=True)
        days.add(day)


def _is_whole(snapshot: Snapshot) -> bool:
    try:
        snapshot.content()
    except InputError:
        return False
    return True


def _name(taken_at: datetime, digest: str) -> str:
    return f"{taken_at.astimezone(UTC).strftime(_TIME)[:-3]}Z-{digest}{_ENDING}"


def _read_name(path: Path) -> Snapshot | None:
    time, _, digest = path.name.removesuffix(_ENDING).rpartition("Z-")
    try:
        taken_at = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
    except ValueError:  # not one of ours
        return None
    return Snapshot(path, taken_at, digest)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
