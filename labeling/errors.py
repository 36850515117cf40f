"""The one exception that means "a person can mend this", and the disk's refusals in its words."""

from __future__ import annotations

import errno
import re


class InputError(ValueError):
    """Something that the user gave is wrong: a config, a file, a function, a server address.

    The message is one line: what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2, and a flow never retries it. Anything else that
    escapes a stage is our own bug or the machine's trouble, and keeps its traceback.
    """


class Unreachable(InputError, ConnectionError):
    """A server that the user named, or one of ours, does not answer: a person may have to start it
    or to correct its address, but another try may find it, too."""


_NO_SPACE = "no space is left on the disk{for_file}: free some, then run the same command again"
_REFUSALS = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: "the disk quota is used up{for_file}: free some, then run the same command again",
    errno.EFBIG: "a file grew larger than this process may write{for_file}: raise `ulimit -f`, "
    "then run the same command again",
    errno.EROFS: "the disk is read-only{for_file}: work in a folder that can be written",
    errno.EACCES: "permission is denied{for_file}: change its permissions, or work elsewhere",
    errno.EPERM: "permission is denied{for_file}: change its permissions, or work elsewhere",
}
# Libraries in Rust and C++ keep the system's number in their text.
_NUMBER = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)


def disk_refusal(error: BaseException | None) -> str | None:
    """One line when the error, or one that led to it, is the disk's: full, read-only, not allowed.
    None for all others."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := _NUMBER.search(str(error))):
            number = int(found[1])
        file = error.filename if isinstance(error, OSError) else None
        if number in _REFUSALS and (file or number not in (errno.EACCES, errno.EPERM)):
            return _REFUSALS[number].format(for_file=f" for {file}" if file else "")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
