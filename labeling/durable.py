"""Files that are whole or not there, after a power cut too."""

from __future__ import annotations

import os
from pathlib import Path


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a file or folder that is written, so that `path` is whole or what it was before. A
    name may reach the disk before the content does: so the content goes first. Of a folder that is
    the list of names; what lies in it is for the caller to `sync`."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
