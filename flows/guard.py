"""The guard of a stage's process, which leaves nothing behind.

A stage starts processes of its own: loaders, what a user's function runs, ranks of torchrun. Some
live in sessions of their own and hear of no signal. When the flow's process is killed, somebody
must be left to end them. So the process that the runner starts forks before it does anything else:
its child does the work, and it waits, and ends all that carries the run's mark in its environment
once the work is over, was killed, or lost its flow. Whoever kills the guard itself leaves that to
the runner. Linux only: elsewhere the stage's process has no guard.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PARENT = "RANKLOOP_PARENT"  # process id of who started the stage
MARK = "RANKLOOP_STAGE"  # of all that belongs to one run of a stage
_PR_SET_PDEATHSIG = 1


def stand_guard() -> None:
    """Returns in a child of this process, which does the work. This process itself never returns:
    it exits as the child does."""
    parent, mark = os.environ.get(PARENT), os.environ.get(MARK)
    if parent is None or mark is None or sys.platform != "linux":
        return  # started by hand
    _die_with(int(parent), signal.SIGTERM)
    guard = os.getpid()
    worker = os.fork()
    if worker == 0:
        _die_with(guard, signal.SIGKILL)
        return
    _exit_as(_watch(worker, mark))


class _Asked(Exception):
    """Somebody wants an end, or the parent is gone."""


def _watch(worker: int, mark: str) -> int:
    """The worker's exit code, as subprocess has it, after all is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal asks the worker too
    # After the fork, so that the work does not wait for it.
    from flows.processes import end_marked  # noqa: PLC0415

    signal.signal(signal.SIGTERM, _ask)
    try:
        _, status = os.waitpid(worker, 0)
        code = os.waitstatus_to_exitcode(status)
    except _Asked:
        code = -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_marked(MARK, mark)
    return code


def _ask(*_: object) -> None:
    raise _Asked


def _exit_as(code: int) -> None:
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(max(code, 1) if code < 0 else code)


def _die_with(parent: int, how: signal.Signals) -> None:
    """Ask the kernel to end this process when its parent dies, however it dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
