"""Which errors another try may mend: the network's, a server's that restarts, want of memory, a
process that was lost. All others stay what they are: a wrong config, wrong data, a failed check, a
user's function that raises, a full disk. No torch: its errors are known by their names."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator

from labeling.errors import InputError, Unreachable

# By name, at any depth of the class's ancestry: importing all these libraries takes seconds.
_PASSING = {
    *("OutOfMemoryError", "MemoryError"),  # of torch, on any device; of Python, NumPy and Arrow
    "TransportError",  # httpx
    *("ConnectionError", "Timeout", "ChunkedEncodingError"),  # requests; Python's own
    *("ProtocolError", "MaxRetryError", "TimeoutError", "IncompleteRead"),  # urllib3, http.client
    *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
    *("BrokenExecutor", "DistNetworkError"),  # a lost process of a pool, or of torch's ranks
}
_LASTING = {
    *("UnsupportedProtocol", "LocalProtocolError"),  # httpx: a wrong address, a wrong program
    "SSLCertVerificationError",
    "OfflineModeIsEnabled",  # somebody said HF_HUB_OFFLINE
}
# The hub's "not in the cache" is a FileNotFoundError, and what led to it says why.
_ASK_THE_CAUSE = {"LocalEntryNotFoundError"}
_PASSING_NUMBERS = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENFILE),
    *(errno.EIO, errno.ESTALE),  # a network's file system
}
_PASSING_STATUS = {408, 425, 429}  # and all from 500 on
# What C++ and Rust say where Python sees no more than a RuntimeError.
_PASSING_TEXT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|_ALLOC_FAILED"
    r"|is/are busy or unavailable"  # CUDA's devices, in exclusive mode
    r"|DataLoader worker .*(?:exited unexpectedly|killed by signal)"
    r"|CAS service error",
    re.IGNORECASE,
)


def may_pass(error: BaseException) -> bool:
    """Whether another try may end otherwise. Asks the error, and then what led to it."""
    if isinstance(error, Unreachable):
        return True
    chain = list(_chain(error))
    names = [{kind.__name__ for kind in type(each).__mro__} for each in chain]
    if any(isinstance(each, InputError) for each in chain) or any(n & _LASTING for n in names):
        return False
    verdicts = (_verdict(each, known) for each, known in zip(chain, names, strict=True))
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _verdict(error: BaseException, names: set[str]) -> bool | None:
    """None where the error itself does not tell."""
    status = _http_status(error)
    if status is not None:
        return status in _PASSING_STATUS or status >= 500
    if names & _PASSING or (isinstance(error, RuntimeError) and _PASSING_TEXT.search(str(error))):
        return True
    if isinstance(error, socket.gaierror):  # it counts for itself
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, OSError) and error.errno is not None and not names & _ASK_THE_CAUSE:
        return error.errno in _PASSING_NUMBERS
    return None


def _http_status(error: BaseException) -> int | None:
    """Of an answer that a library made an exception of."""
    response = getattr(error, "response", None)
    for place, name in ((response, "status_code"), (error, "status_code"), (error, "code")):
        status = getattr(place, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None
