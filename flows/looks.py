"""Looks at a round that waits, each perhaps by another process: one at a time, and what one leaves
for the next. No Prefect."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ValidationError

from flows.store import write_json
from labeling.withdrawn import Pair

logger = logging.getLogger(__name__)

FILE = "looks.json"
_PATIENCE_S = 600.0


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else publishes or looks at the round in `folder` meanwhile: the round itself, one that
    was resumed and a watcher may all do so at the same moment. A killed process lets go.

    Raises ConnectionError when another one does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".looking", timeout=_PATIENCE_S)
    try:
        lock.acquire()
    except Timeout:
        raise ConnectionError(
            f"another process has been at work on the answers of {folder} for "
            f"{_PATIENCE_S / 60:.0f} minutes"
        ) from None
    try:
        yield
    finally:
        lock.release()


class Seen(BaseModel, frozen=True):
    """What the newest snapshot holds: the project as the server told it just before that export."""

    project: int
    tasks: int
    answers: int
    skipped: int
    changed: str
    snapshot: str = ""


class Notes(BaseModel, frozen=True):
    """`looks.json` in the round's folder. To lose it costs an export and some lines told twice.

    `told`: how many labelers each task was given when it came back into the queue, by its id in
    the project of `seen`. `withdrawn`: answers that were gone at the last look, by task and
    labeler. `restored`: when deleted tasks were put back, in the last day. `reminded`: when it was
    said last that nobody answers.
    """

    seen: Seen | None = None
    told: dict[int, int] = {}
    withdrawn: frozenset[Pair] = frozenset()
    restored: tuple[AwareDatetime, ...] = ()
    reminded: AwareDatetime | None = None

    @classmethod
    def read(cls, folder: Path) -> Notes:
        path = folder / FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            logger.warning("%s cannot be read (%s): begun anew", path, type(error).__name__)
            return cls()

    @classmethod
    def forget_told(cls, folder: Path) -> None:
        """Whoever publishes gives each task its first number again."""
        if (notes := cls.read(folder)).told:
            notes.model_copy(update={"told": {}}).write(folder)

    def write(self, folder: Path) -> None:
        """It names labelers: so only the owner may read it."""
        write_json(folder / FILE, self.model_dump(mode="json"), is_private=True)
