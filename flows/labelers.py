"""The people who rank: how they are invited."""

from __future__ import annotations

from pathlib import Path

from flows import given_servers, servers
from labeling.errors import InputError


def invite(home: Path, reset: bool = False) -> tuple[str, str]:
    """The link that signs a labeler up, and a line that says what to do with it.

    Works with the embedded Label Studio and with the one that LABEL_STUDIO_URL names. `reset`: a
    new link, the old one ends. Raises InputError when no server answers.
    """
    server = servers.find_label_studio(home)
    if server is None:
        given = given_servers.url(home, "label_studio")
        raise InputError(
            f"Label Studio at {given} does not answer: start it, or correct its address"
            if given
            else "Label Studio is not running: `rankloop up` starts it"
        )
    # The SDK takes its time to load.
    from labeling.accounts import invite_link  # noqa: PLC0415
    from labeling.label_studio import LabelStudio  # noqa: PLC0415

    link = invite_link(LabelStudio(server.url, server.token, server.public_url), reset)
    return link, (
        "send it to your labelers: each opens it, signs up with an email and a password, and finds "
        "the tasks under Projects; whoever has the link can sign up, and --reset ends it"
    )
