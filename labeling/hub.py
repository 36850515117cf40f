"""How this project writes the name of something on the hub: `name` or `name@revision`."""

from __future__ import annotations

from pathlib import Path


def name_and_revision(reference: str) -> tuple[str, str | None]:
    """Split `name@revision` into what `from_pretrained` and `load_dataset` take apart.

    A path that exists is never split, so folders with an @ in their name work. Example:
    `name_and_revision("org/model@0a1b") == ("org/model", "0a1b")`; without an @ the revision is
    None.
    """
    name, at, revision = reference.rpartition("@")
    if not at or not name or Path(reference).exists():
        return reference, None
    return name, revision
