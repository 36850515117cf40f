"""Detached processes that are found again later, and ended without ever hitting a stranger.

A process is known by its id together with its creation time, because ids are reused.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# The kernel counts creation times from boot; a corrected clock moves them a little.
_CREATED_WITHIN_S = 2.0
_KERNEL_S = 10.0


@dataclass(frozen=True)
class Detached:
    """A process that outlives us: its id, when it was created (s since the epoch), and the value
    of its `RANKLOOP_PROCESS` variable, by which its orphaned children are still known as ours."""

    pid: int
    created: float
    mark: str


def start(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, mark: str
) -> Detached:
    """Start `command` in a session of its own, both outputs appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**environment, "RANKLOOP_PROCESS": mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_hear_sigint,  # noqa: PLW1509 - it takes no lock
        )
    return Detached(process.pid, psutil.Process(process.pid).create_time(), mark)


def _hear_sigint() -> None:
    """A shell starts what it puts into the background deaf to SIGINT, and children inherit that;
    but SIGINT is how Prefect's server is asked to end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def find(process: Detached) -> psutil.Process | None:
    """The running process, or None when it ended (even if something else has its id now)."""
    try:
        found = psutil.Process(process.pid)
        if abs(found.create_time() - process.created) > _CREATED_WITHIN_S:
            return None
        if found.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    return found


def members(process: Detached) -> list[psutil.Process]:
    """The process and everything of its process group that still runs, also after it died."""
    found = []
    for other in psutil.process_iter():
        try:
            if os.getpgid(other.pid) != process.pid or other.status() == psutil.STATUS_ZOMBIE:
                continue
            if other.pid == process.pid:
                if find(process) is not None:
                    found.append(other)
            elif other.environ().get("RANKLOOP_PROCESS") == process.mark:
                found.append(other)
        except (psutil.Error, OSError):
            continue
    return found


def stop(process: Detached, patience_s: float = 15.0) -> bool:
    """End the process and its group: SIGINT, then SIGTERM, then SIGKILL, each after a while.

    Returns False when there was nothing of ours to end.
    """
    alive = members(process)
    if not alive:
        return False
    for ask, wait in (
        (signal.SIGINT, patience_s),
        (signal.SIGTERM, patience_s / 3),
        (signal.SIGKILL, patience_s),
    ):
        for member in alive:
            try:
                member.send_signal(ask)  # psutil checks that the id was not reused meanwhile
            except psutil.Error:
                continue
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            reap(process)
            alive = members(process)
            if not alive:
                return True
            time.sleep(0.1)
    raise RuntimeError(f"process {process.pid} did not end, not even after SIGKILL")


def end_marked(variable: str, mark: str, patience_s: float = 2.0) -> None:
    """End every process that has `mark` in that variable of its environment, this one excepted:
    what we started and all that came of it, in whatever session. SIGTERM first, and SIGKILL for
    those that are left after the patience; does not return before they are gone, unless the kernel
    itself holds one back.
    """
    ask, deadline = signal.SIGTERM, time.monotonic() + patience_s + _KERNEL_S
    while (alive := _marked(variable, mark)) and time.monotonic() < deadline:
        for each in alive:
            with contextlib.suppress(psutil.Error):
                each.send_signal(ask)
        psutil.wait_procs(alive, timeout=patience_s if ask == signal.SIGTERM else 1.0)
        ask = signal.SIGKILL  # also for those that were started meanwhile


def _marked(variable: str, mark: str) -> list[psutil.Process]:
    found = []
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it ended, or is somebody else's
            if other.status() == psutil.STATUS_ZOMBIE or other.pid == os.getpid():
                continue
            if other.environ().get(variable) == mark:
                found.append(other)
    return found


def reap(process: Detached) -> int | None:
    """Collect the exit status if the process is our own child and ended; else None."""
    try:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if pid else None


def listening_ports(process: Detached) -> set[int]:
    """TCP ports on which the process or its group listens."""
    ports = set()
    for member in members(process):
        try:
            connections = member.net_connections(kind="tcp")
        except psutil.Error:
            continue
        ports |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return ports


def memory_mb(process: Detached) -> float:
    """Resident memory of the process and its group in MB (10⁶ bytes)."""
    total = 0
    for member in members(process):
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e6
