"""Checkpoints between iterations: a killed run goes on as if nothing had happened.

Everything random comes from counters (ppo.order), so a checkpoint is the tensors of model and
optimizer, in safetensors, and a few numbers, in JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from labeling.durable import put_in_place, sync
from labeling.errors import InputError

logger = logging.getLogger(__name__)

KEPT = 2
COMPLETE = "complete.json"
# What it raises when a checkpoint's content is not what was written. Another OSError says nothing
# of the content.
_BAD_CONTENT = (
    *(ValueError, LookupError, TypeError, AttributeError, SafetensorError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
)
_STATE = "state.json"
_TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The state after so many iterations."""

    iterations: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of its own."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        """`run` tells what run they are of: a checkpoint of another one is refused."""
        self.folder = folder
        self.run = json.loads(json.dumps(run))

    def save(
        self, iterations: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """Write one, whole or not at all, and keep the newest few."""
        path = self.folder / f"{iterations:06d}"
        partial = self.folder / f"{iterations:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # Tied parameters are one tensor, which safetensors refuses to write twice.
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / _TENSORS
        )
        state = {
            "run": self.run,
            "iterations": iterations,
            "numbers": dict(numbers),
            "sha256": _digest(partial / _TENSORS),
        }
        (partial / _STATE).write_text(json.dumps(state))
        for file in (partial / _TENSORS, partial / _STATE):
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
        put_in_place(partial, path)
        for old in self._there()[KEPT:]:
            shutil.rmtree(old)

    def newest(self, rows: int | None = None) -> Checkpoint | None:
        """The newest whole one, or None. A damaged one is passed over, with a line that says why;
        so is one with fewer `rows` of metrics than iterations, where they are told.

        Raises:
            InputError: it is of another run, or cannot be read though it may be whole.
        """
        for path in self._there():
            try:
                return self._load(path, rows)
            except InputError:  # of another run
                raise
            except _BAD_CONTENT as error:
                logger.warning(
                    "%s cannot be used (%s): going on from the one before it, if there is one",
                    path,
                    error or type(error).__name__,
                )
                shutil.rmtree(path)  # or it would count as the newest when the next is written
            except OSError as error:
                raise InputError(
                    f"the checkpoint {path} cannot be read ({error.strerror}): mend that, or "
                    "remove the folder to go on without it"
                ) from None
        return None

    def complete(self, metrics: Mapping[str, Any]) -> None:
        """The run's files are written: these figures of it take the place of all checkpoints, so
        that a kill before somebody takes the files away does not cost the run."""
        partial = self.folder / f"{COMPLETE}.partial"
        partial.write_text(json.dumps({"run": self.run, "metrics": dict(metrics)}))
        put_in_place(partial, self.folder / COMPLETE)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def completed(self) -> dict[str, Any] | None:
        """What `complete` was given, if this run came so far; that of another run is removed."""
        path = self.folder / COMPLETE
        try:
            found = json.loads(path.read_text())
            if found["run"] == self.run:
                return dict(found["metrics"])
        except FileNotFoundError:
            return None
        except _BAD_CONTENT:
            pass
        path.unlink()
        return None

    def _there(self) -> list[Path]:
        """Whole ones by name, newest first."""
        if not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if re.fullmatch(r"\d+", path.name))
        return sorted(named, reverse=True)

    def _load(self, path: Path, rows: int | None) -> Checkpoint:
        state = json.loads((path / _STATE).read_text())
        for name, value in self.run.items():
            if (theirs := state["run"].get(name)) != value:
                raise InputError(
                    f"{path} is of another run: its {name} is {_short(theirs)}, here it is "
                    f"{_short(value)}; work in another folder, or remove this one"
                )
        if rows is not None and rows < state["iterations"]:
            raise ValueError(f"metrics.jsonl has {rows} rows, and it is of {state['iterations']}")
        if _digest(path / _TENSORS) != state["sha256"]:
            raise ValueError(f"{_TENSORS} is torn")
        return Checkpoint(state["iterations"], load_file(path / _TENSORS), state["numbers"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
