"""Runs a stage: takes it from the store, or makes it in a child process (flows/stage.py)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import BaseModel

from flows import databases, guard, processes
from flows.inputs import resolve_inputs
from flows.stage import MARK
from flows.stages import Stage
from flows.store import Damage, Entry, Store, make_key
from labeling.errors import InputError

# Secrets of the servers are no business of a stage.
_HIDDEN = ("LABEL_STUDIO_", "PREFECT_", *databases.VARIABLE.values())
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Line:
    """One log record of a stage. `progress` is (done, total)."""

    level: int
    logger: str
    message: str
    progress: tuple[int, int] | None = None
    metrics: dict[str, float] | None = None


@dataclass(frozen=True)
class StageResult:
    """A whole entry. `seconds` is what this call took, `made_seconds` what the stage took when
    the entry was made; `output` is the file or folder that later stages take."""

    stage: str
    key: str
    path: Path
    output: Path
    reused: bool
    seconds: float
    made_seconds: float
    metrics: dict[str, Any] = field(hash=False)


class StageError(RuntimeError):
    """A stage failed and it is not the user's input. `log` holds the whole story; `retriable`
    says whether a second try can help (the machine killed it, the network broke)."""

    def __init__(self, message: str, log: Path, retriable: bool) -> None:
        super().__init__(message)
        self.log = log
        self.retriable = retriable


def run_stage(
    stage: Stage,
    config: BaseModel,
    inputs: Mapping[str, Any],
    home: Path,
    on_line: Callable[[Line], None],
    *,
    slot: AbstractContextManager[int | None] | None = None,
    noted: str | None = None,
    verify: bool = False,
) -> StageResult:
    """The stage's entry in `home/store`, made now unless a whole one is there.

    Args:
        inputs: by name; paths, hub names, or `module_or_file:function`, as the stage declares.
        on_line: called with every log record of the child, in order.
        slot: entered only when a child has to run, and left when it and all that it started are
            gone. Gives a file descriptor that the child inherits, or None.
        noted: the key of an entry to stay with while it is whole, whatever config, inputs and
            version would give now.
        verify: digest the files of an existing entry in place of trusting sizes and times.

    Raises:
        InputError: the stage, or the look at its inputs, found something a person can mend.
        StageError: it failed otherwise.
    """
    clock = time.monotonic()
    store = Store(home / "store")
    if noted and isinstance(kept := store.find(stage.name, noted, verify), Entry):
        return _result(stage, noted, kept, reused=True, since=clock)
    given, digests = resolve_inputs(stage, inputs, store)
    key = make_key(stage.name, stage.version, config, digests)
    found = store.find(stage.name, key, verify)
    if isinstance(found, Damage):
        on_line(
            Line(
                logging.WARNING,
                __name__,
                f"{stage.name} {key} in the store is damaged ({found.reason}): made anew",
            )
        )
    reused = True
    if not isinstance(found, Entry):
        job = {
            "store": str(store.folder),
            "stage": stage.name,
            "version": stage.version,
            "key": key,
            "config": config.model_dump(mode="json"),
            "inputs": given,
            "digests": digests,
            "resumable": stage.resumable,
            "verify": verify,
        }
        try:
            with slot or contextlib.nullcontext() as descriptor:
                reused = _run_child(stage, job, home, on_line, descriptor)
        except BaseException:
            if not stage.resumable:
                _remove_partial(store, stage.name, key)
            raise
        found = store.find(stage.name, key)
        if not isinstance(found, Entry):
            raise RuntimeError(f"{stage.name} ended well but left no whole entry: {found}")
    return _result(stage, key, found, reused=reused, since=clock)


def _result(stage: Stage, key: str, found: Entry, *, reused: bool, since: float) -> StageResult:
    return StageResult(
        stage=stage.name,
        key=key,
        path=found.path,
        output=found.path / stage.output,
        reused=reused,
        seconds=time.monotonic() - since,
        made_seconds=found.seconds,
        metrics=found.metrics,
    )


def _remove_partial(store: Store, stage: str, key: str) -> None:
    """Remove what a child that failed or was ended left, unless another run is making it now."""
    partial = store.partial_path(stage, key)
    if partial.exists():
        with contextlib.suppress(Timeout), FileLock(store.lock_path(stage, key), timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def stage_environment() -> dict[str, str]:
    """Our environment without the servers' secrets."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_HIDDEN)}


def _run_child(
    stage: Stage,
    job: dict[str, Any],
    home: Path,
    on_line: Callable[[Line], None],
    inherited: int | None,
) -> bool:
    """Whether another run had made the entry meanwhile."""
    log_path = home / "logs" / "stages" / f"{stage.name}-{job['key']}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    environment = stage_environment()
    mark = f"{stage.name}-{job['key']}-{uuid4()}"
    environment |= {guard.PARENT: str(os.getpid()), guard.MARK: mark}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    last: dict[str, Any] = {}
    with log_path.open("a") as log:
        print(f"--- {stage.name} {job['key']} {time.strftime('%F %T')}", file=log, flush=True)
        process = subprocess.Popen(
            (sys.executable, "-m", "flows.stage", stage.function),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
            errors="replace",
            pass_fds=() if inherited is None else (inherited,),
        )
        cleaner = threading.Thread(target=_clean_after, args=(process, mark), daemon=True)
        cleaner.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died: its exit code tells
                json.dump(job, process.stdin)
                process.stdin.close()
            last = _follow(process.stdout, log, on_line)
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            cleaner.join()
    if code == 0 and "result" in last:
        return bool(last["result"]["reused"])
    if code == 2 and "error" in last:
        where = f" (traceback in {log_path})" if last.get("traceback") else ""
        raise InputError(f"{last['error']}{where}")
    raise _failure(stage, code, last, log_path)


def _clean_after(process: subprocess.Popen[str], mark: str) -> None:
    """End what a killed child left. Its guard does that in every other case (flows/guard.py). In a
    thread of its own, because what is left keeps the child's output open."""
    if process.wait() < 0:
        processes.end_marked(guard.MARK, mark)


def _follow(lines: IO[str], log: IO[str], on_line: Callable[[Line], None]) -> dict[str, Any]:
    """Pass on log records and write all lines to the log; returns the closing message."""
    last: dict[str, Any] = {}
    for raw in lines:
        text = raw.rstrip("\n")
        if not text.strip():
            continue
        message = parse(text)
        if message is None:  # somebody's print
            line = Line(logging.INFO, "stdout", text)
        elif "level" in message:
            progress = message["progress"]
            line = Line(
                message["level"],
                message["logger"],
                message["message"],
                (progress[0], progress[1]) if progress else None,
                message["metrics"],
            )
        else:
            last = message
            continue
        print(f"{time.strftime('%T')} {line.logger}: {line.message}", file=log, flush=True)
        on_line(line)
    return last


def parse(text: str) -> dict[str, Any] | None:
    """The child's message, or None for what a user's function or a library prints, JSON or not."""
    if not text.startswith("{"):
        return None
    try:
        message = json.loads(text)
    except ValueError:
        return None
    return message if isinstance(message, dict) and message.items() >= MARK.items() else None


def _failure(stage: Stage, code: int, last: Mapping[str, Any], log: Path) -> StageError:
    if code < 0:
        killed = signal.Signals(-code)
        hint = ", perhaps for want of memory" if killed == signal.SIGKILL else ""
        # SIGINT and SIGTERM come from a person or from an orderly shutdown: no second try.
        retriable = killed not in (signal.SIGINT, signal.SIGTERM)
        return StageError(f"{stage.name} was killed by {killed.name}{hint}: {log}", log, retriable)
    reason = last.get("error", f"exit code {code}")
    return StageError(f"{stage.name} failed with {reason}: {log}", log, bool(last.get("retriable")))


def _end(process: subprocess.Popen[str]) -> None:
    """End the child, and do not leave before it has ended."""
    process.terminate()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
