"""Servers asked over HTTP without a client of theirs, which takes a second to load."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from labeling.addresses import is_this_machine

# Nobody, no address, or something that does not speak HTTP or stops in the middle of it.
_NO_ANSWER = (OSError, ValueError, HTTPException)


def get(url: str, headers: dict[str, str] | None = None, timeout_s: float = 5.0) -> int | None:
    """HTTP status of a GET, or None when nobody answers."""
    try:
        with _open(url, headers or {}, timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except _NO_ANSWER:
        return None


def get_json(url: str, headers: dict[str, str]) -> dict[str, Any]:
    """What a GET gives, or nothing when nobody answers, or something else."""
    try:
        with _open(url, headers, timeout_s=5.0) as answer:
            found = json.load(answer)
    except _NO_ANSWER:
        return {}
    return found if isinstance(found, dict) else {}


def _open(url: str, headers: dict[str, str], timeout_s: float) -> Any:
    """Proxies are left out on this machine."""
    handlers = [urllib.request.ProxyHandler({})] if is_this_machine(url) else []
    opener = urllib.request.build_opener(*handlers)
    return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
