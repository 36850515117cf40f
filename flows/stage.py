"""One stage in a process of its own: `python -m flows.stage MODULE:FUNCTION`.

The child reads its job, a JSON object, from stdin (a file would outlive a killed run), takes the
entry's lock, calls the function, writes the manifest and renames the folder into the store. It
speaks to its parent in JSON lines on stdout, all marked with MARK: log records with `level`,
`logger`, `message`, `progress`, `metrics`; at the end one line with `result` or `error`. Lines
without the mark are somebody's print.
Exit codes: 0 done, 1 a failure (its traceback is in the log), 2 what a person can mend.
`run_stage` in flows/runner.py is the parent.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from flows.guard import stand_guard
from flows.retriable import may_pass
from flows.store import Entry, Store, finite
from labeling.errors import InputError, disk_refusal

logger = logging.getLogger("flows.stage")  # also when it runs as __main__

MARK = {"rankloop": 1}
OURS = ("labeling", "reward", "ppo", "flows")
_LIBRARIES = ("rankloop", "torch", "transformers", "trl", "tokenizers", "datasets", "numpy")


def main(function: str, job: dict[str, Any]) -> int:
    """Make the entry that the job describes. Returns the exit code."""
    try:
        say({"result": {"reused": _make(function, job)}})
    except InputError as error:
        if error.__cause__ is not None:
            traceback.print_exc()
        say({"error": str(error), "traceback": error.__cause__ is not None})
        return 2
    except Exception as error:
        traceback.print_exc()
        if refusal := disk_refusal(error):
            say({"error": f"{job['stage']}: {refusal}", "traceback": True})
            return 2
        message = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        say({"error": message, "retriable": may_pass(error)})
        return 1
    return 0


def _make(reference: str, job: dict[str, Any]) -> bool:
    """Whether the entry was there already; else it is now."""
    store = Store(Path(job["store"]))
    stage, key = job["stage"], job["key"]
    store.lock_path(stage, key).parent.mkdir(parents=True, exist_ok=True)
    with _locked(store.lock_path(stage, key)):
        if isinstance(store.find(stage, key, verify=job["verify"]), Entry):
            return True
        out = store.begin(stage, key, resumable=job["resumable"])
        started, clock = datetime.now(UTC), time.monotonic()
        function, config, inputs = _load(reference, job)
        metrics = function(config, **inputs, out=out)
        seconds = time.monotonic() - clock
        manifest = {
            "version": job["version"],
            "function": reference,
            "config": job["config"],
            "inputs": job["digests"],
            "given": job["inputs"],
            "metrics": dataclasses.asdict(metrics),
            "seeds": {"seed": config.seed} if hasattr(config, "seed") else {},
            "device": _device(config),
            "libraries": _libraries(),
            "commit": _commit(),
            "times": {"started": started.isoformat(), "finished": datetime.now(UTC).isoformat()},
        }
        timings = out / "timings.json"  # a stage may leave its own there
        own = json.loads(timings.read_text()) if timings.exists() else {}
        store.finish(stage, key, manifest, own | {"seconds": seconds})
    return False


def _locked(path: Path) -> Any:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info("another run is making this; waiting for it")
        return lock.acquire()


def _load(reference: str, job: dict[str, Any]) -> tuple[Callable[..., Any], BaseModel, dict]:
    """The function, its config in the type that it asks for, and its inputs as str, Path, list of
    Path, or what JSON can say."""
    module, _, name = reference.partition(":")
    function = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(function)
    config = hints["config"].model_validate(job["config"])
    inputs: dict[str, Any] = {}
    for name, value in job["inputs"].items():
        if isinstance(value, list):
            inputs[name] = [Path(item) for item in value]
            continue
        wants_path = Path in (hints[name], *typing.get_args(hints[name]))
        inputs[name] = Path(value) if wants_path else value
    return function, config, inputs


# --- what the manifest says about where this ran --------------------------------------------------


def _device(config: BaseModel) -> str | None:
    asked = getattr(config, "device", None)
    torch = sys.modules.get("torch")  # never imported here: the stage did, or needs none
    if asked is None or torch is None:
        return None
    device = ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked
    return f"{device} ({torch.cuda.get_device_name(device)})" if "cuda" in device else device


def _libraries() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """This code's git commit, with `+changes` when the working tree differs; None without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(Path(__file__).parent), *arguments),
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


# --- the line to the parent -----------------------------------------------------------------------


def say(message: dict[str, Any]) -> None:
    """One JSON line, in one write, on a line of its own even after somebody's unfinished print."""
    sys.stdout.flush()
    os.write(1, b"\n" + json.dumps(finite(MARK | message)).encode() + b"\n")


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(
                {
                    "level": record.levelno,
                    "logger": record.name,
                    "message": record.getMessage(),
                    "progress": getattr(record, "progress", None),
                    "metrics": getattr(record, "metrics", None),
                }
            )
        except OSError:
            raise  # the parent is gone, and with it the reason to go on
        except Exception:
            self.handleError(record)


if __name__ == "__main__":
    stand_guard()
    logging.basicConfig(level=logging.WARNING, handlers=[_LineHandler()])
    for ours in OURS:
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        sys.exit(main(sys.argv[1], json.load(sys.stdin)))
    except KeyboardInterrupt:
        sys.exit(130)
