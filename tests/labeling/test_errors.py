"""Which errors are the disk's."""

from __future__ import annotations

import errno

from labeling.errors import disk_refusal


def raised(then: BaseException, **chain: BaseException | None) -> BaseException:
    """`then`, raised while a full disk was handled: `raise then`, or `raise then from cause`."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "weights")
        except OSError:
            if chain:
                raise then from chain["cause"]
            raise then  # noqa: B904 (this chain is meant)
    except type(then) as error:
        return error


def test_a_full_disk_is_found_behind_the_error_that_it_led_to() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "weights")
    for error in (full, raised(RuntimeError("no")), raised(RuntimeError("no"), cause=full)):
        assert "no space is left on the disk for weights" in (disk_refusal(error) or "")


def test_what_an_error_was_said_not_to_come_from_is_not_told() -> None:
    assert disk_refusal(raised(RuntimeError("no"), cause=None)) is None
    assert disk_refusal(raised(RuntimeError("no"), cause=KeyError("k"))) is None
