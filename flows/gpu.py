"""One stage at a time on this machine's GPU.

Two things guard it. **File locks are the truth**: the stage's own process holds one, and the kernel
gives it back when the last process that holds it has ended. So no kill, no restarted server and no
second home or Prefect server on this machine lets two stages share the GPU. **Prefect's global
concurrency limit** `rankloop-gpu-<host>` says how many may run at once: 1, until an engineer raises
it. Its slots show the dashboard that the GPU is at work. A slot is a lease, which a killed holder
gives back within a minute.

The two may part. A server that ends after it gave a slot and before it wrote the lease down, or
that forgets its leases, shows the slot as taken for ever: whoever has had the lock for three leases
goes on without a slot. A lease that runs out while the server is away shows a slot as free that is
in use: the file lock goes on keeping others out.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import BaseModel

from flows.store import kind_of_device

logger = logging.getLogger(__name__)

LOCKS = Path("/tmp")  # all users of a machine share it, and its GPU
_LEASE_S = 60.0  # the shortest that the server grants
_LEAKED_AFTER_S = 3 * _LEASE_S
_LOOK_EVERY_S = 1.0


def runs_on_gpu(config: BaseModel) -> bool:
    """Whether a stage with this config takes the GPU. Those without a device never do."""
    device = getattr(config, "device", None)
    return device is not None and kind_of_device(device).startswith("cuda")


def limit_name() -> str:
    """Name of this machine's limit in Prefect."""
    return f"rankloop-gpu-{socket.gethostname()}"


@contextmanager
def gpu_slot() -> Iterator[int]:
    """Wait until the GPU is free, and hold it.

    Yields the lock's file descriptor: a process that inherits it holds the GPU too, for as long as
    it lives. Says in one line that it waits. Whoever waits for the slot has the lock already, and
    goes on without it when no stage stands behind those that are taken, so nobody waits for ever.

    Raises:
        httpx.TransportError, ConcurrencySlotAcquisitionError: Prefect does not answer.
    """
    name = limit_name()
    known, waiting = _limit(name), _Waiting(name)
    with ExitStack() as held:
        while (lock := _free_lock(known.limit)) is None:
            known = waiting.look_again(known)
        held.callback(os.close, lock)
        leaked_at = time.monotonic() + _LEAKED_AFTER_S
        while not (has_room := _has_room(known)):
            if time.monotonic() > leaked_at and held_locks() <= known.limit:
                break
            known = waiting.look_again(known)
        if has_room and (lease := _lease(name)) is not None:
            held.callback(_give_back, lease)
        else:
            logger.warning(
                "Prefect's limit %s shows the GPU as taken, and no stage holds it: going on "
                "without a slot; when no stage is at work, delete the limit on the dashboard: the "
                "next stage makes it anew",
                name,
            )
        waiting.end()
        yield lock


class _Waiting:
    def __init__(self, name: str) -> None:
        self._name = name
        self._since = time.monotonic()
        self._is_said = False

    def look_again(self, known: GlobalConcurrencyLimitResponse) -> GlobalConcurrencyLimitResponse:
        """The limit as it stands a moment later."""
        if not self._is_said:
            self._is_said = True
            # A warning, because that alone every terminal and log shows at once.
            logger.warning(
                "waiting for the GPU: it is taken (Prefect's limit %s allows %d at once)",
                self._name,
                known.limit,
            )
        time.sleep(_LOOK_EVERY_S)
        with contextlib.suppress(httpx.TransportError):  # the server restarts
            return _limit(self._name)
        return known

    def end(self) -> None:
        if self._is_said:
            logger.info("the GPU is free after %.0f s", time.monotonic() - self._since)


# --- the file locks -------------------------------------------------------------------------------


def _free_lock(limit: int) -> int | None:
    """A descriptor of the first of so many locks that nobody holds, or None."""
    for number in range(limit):
        descriptor = _open(LOCKS / f"rankloop-gpu-{number}.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        with contextlib.suppress(PermissionError):  # another user's: it need not look new
            os.utime(descriptor)  # programs that tidy up /tmp take old files
        return descriptor
    return None


def held_locks() -> int:
    """How many stages of this machine hold the GPU, also those beyond a limit that was lowered."""
    return sum(_is_held(path) for path in LOCKS.glob("rankloop-gpu-*.lock"))


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False  # not one of ours
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open(path: Path) -> int:
    """The file for reading, which is enough for a lock, made if it is not there. In a folder that
    all may write the kernel refuses to open another user's file with O_CREAT."""
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(made, 0o644)  # whatever the umask says
        os.close(made)
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


# --- Prefect's slots ------------------------------------------------------------------------------


def _limit(name: str) -> GlobalConcurrencyLimitResponse:
    """The limit as it stands. It is made when it is not there, and else left as it is."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with contextlib.suppress(ObjectAlreadyExists):  # another stage was faster
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=1)
                )
            return client.read_global_concurrency_limit_by_name(name)


def _has_room(known: GlobalConcurrencyLimitResponse) -> bool:
    """Slots may be taken though the lock is free: by a killed holder, until its lease ends, by a
    machine of the same name, or by nobody. `concurrency` would wait for up to 40 s after the end,
    and say nothing."""
    return not known.active or known.active_slots < known.limit


def _lease(name: str) -> ExitStack | None:
    """A slot that is renewed until the stack is closed, or None when there is none after all: a
    server that ends while it gives one leaks it. When it cannot be renewed no stage ends: the work
    is sound, and the lock is held."""
    lease = ExitStack()
    slot: Any = concurrency(
        name,
        occupy=1,
        lease_duration=_LEASE_S,
        timeout_seconds=_LEAKED_AFTER_S,
        strict=True,
        raise_on_lease_renewal_failure=False,
    )
    try:
        lease.enter_context(slot)
    except TimeoutError:
        return None
    return lease


def _give_back(lease: ExitStack) -> None:
    """A server that is away must not make a failure of a stage that ended well."""
    try:
        lease.close()
    except Exception as error:
        logger.warning(
            "Prefect is not told that the GPU is free (%s): it finds out within a minute",
            type(error).__name__,
        )
