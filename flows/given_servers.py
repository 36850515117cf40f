"""Servers of others, named by the environment: `PREFECT_API_URL`, or `LABEL_STUDIO_URL` with
`LABEL_STUDIO_API_KEY`. They are used as they are, never started and never changed."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from flows import asking, server_home
from flows.server_home import Name
from labeling.errors import InputError, Unreachable

VARIABLE = {"prefect": "PREFECT_API_URL", "label_studio": "LABEL_STUDIO_URL"}
_KEY = {"prefect": "PREFECT_API_AUTH_STRING", "label_studio": "LABEL_STUDIO_API_KEY"}


def url(home: Path, name: Name) -> str | None:
    """The address in the environment, or None when the server is to be embedded.

    Raises InputError for one that holds a password: addresses are shown to everybody.
    """
    given = (os.environ.get(VARIABLE[name]) or "").rstrip("/")
    if "@" in given:
        raise InputError(
            f"{VARIABLE[name]} holds a name or a password before its '@', and addresses go into "
            f"logs and onto pages: remove it there, and put the key into {_KEY[name]}"
        )
    ours = server_home.recall(home, name).url
    # Our own address in the environment (a flow passes it on) does not make a server foreign.
    return given if given and given.removesuffix("/api") != ours else None


def prefect_headers() -> dict[str, str]:
    """What a given Prefect is asked with: PREFECT_API_KEY or PREFECT_API_AUTH_STRING."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):
        return basic(pair)
    return {}


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def check_prefect(api_url: str) -> None:
    """Raises InputError when that Prefect cannot be reached or refuses."""
    answer = asking.get(f"{api_url}/health", prefect_headers(), timeout_s=15)
    if answer == 200 and asking.get(f"{api_url}/admin/version", prefect_headers()) == 401:
        answer = 401  # its health is told to everybody
    if answer != 200:
        kind = Unreachable if answer is None or answer >= 500 else InputError
        raise kind(
            f"PREFECT_API_URL {api_url} "
            + ("cannot be reached" if answer is None else f"answers with HTTP {answer}")
            + ": start that server, correct its address or key, or unset PREFECT_API_URL"
        )


def checked_token(label_studio_url: str) -> str:
    """The token that goes with LABEL_STUDIO_URL. Raises InputError when there is none, or the
    server cannot be reached or refuses it."""
    token = os.environ.get("LABEL_STUDIO_API_KEY")
    if not token:
        raise InputError(
            f"LABEL_STUDIO_URL is set to {label_studio_url} but LABEL_STUDIO_API_KEY is not: set "
            "it to a token from that server's Account & Settings page"
        )
    # The SDK takes its time to load, and knows both kinds of token.
    from labeling.label_studio import LabelStudio  # noqa: PLC0415

    LabelStudio(label_studio_url, token).check()
    return token
