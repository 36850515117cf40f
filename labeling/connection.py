"""The connection to a Label Studio server: its SDK, and its troubles in our words. The only user of
the SDK.

The SDK's own retries are off everywhere, because a repeated import doubles its tasks; what is safe
to repeat is repeated here.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from label_studio_sdk.client import LabelStudio as Client
from label_studio_sdk.core.api_error import ApiError

from labeling.addresses import is_this_machine
from labeling.errors import InputError, Unreachable

_T = TypeVar("_T")
REQUEST_S = 60.0
LONG_REQUEST_S = 600.0
ATTEMPTS = 6


class Gone(InputError):
    """What was asked for is not there (HTTP 404): somebody deleted the project or the task, or the
    address is no Label Studio's."""


@dataclass(frozen=True)
class Imported:
    """What the server says of an import: how many answers came with it, and the tasks' ids in the
    order in which they were sent; none where it does not tell them."""

    annotation_count: int
    task_ids: list[int]


class Connection:
    """One Label Studio server. Safe to use from several threads.

    `token` is a legacy token or a personal access token. `public_url` is where people's browsers
    find the server, if not at `url`. Methods raise InputError for what a
    person must mend (a refused token), Gone for what was deleted, and ConnectionError for a server
    that does not answer, which is worth another try later. `client` is the SDK's own, for what has
    no method here; call it through `ask`.
    """

    def __init__(self, url: str, token: str, public_url: str = "") -> None:
        self.url = url.rstrip("/")
        self.public_url = public_url.rstrip("/") or self.url
        self._token = token
        is_local = is_this_machine(self.url)
        self._http = httpx.Client(timeout=REQUEST_S, follow_redirects=True, trust_env=not is_local)
        self.client = Client(
            base_url=self.url, api_key=token, httpx_client=self._http, max_retries=0
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def check(self) -> str:
        """The email of the account behind the token.

        Raises Unreachable when the server cannot be reached, InputError when it refuses the token.
        """
        try:
            return str(self.ask(self.client.users.whoami).email)
        except ConnectionError as error:
            raise Unreachable(f"{error}: start it, or correct its address") from None

    def derived_secret(self, purpose: str) -> str:
        """A secret that follows from our token and `purpose`: it need not be kept anywhere."""
        made = hmac.new(self._token.encode(), purpose.encode(), hashlib.sha256)
        return made.hexdigest()

    def import_tasks(self, project_id: int, rows: Sequence[Any]) -> Imported:
        """Tasks into a project, by one request that the server commits whole or not at all; through
        `ask`.

        The SDK's own call takes a body apart value by value (`jsonable_encoder`): of 10,000 tasks
        that is a second in five. Rows are JSON already; address and headers are the SDK's.
        """
        sdk = self.client.projects.with_raw_response._client_wrapper
        answer = self._http.post(
            f"{sdk.get_base_url()}/api/projects/{project_id}/import",
            params={"return_task_ids": True},
            json=rows,
            headers=sdk.get_headers(),
            timeout=LONG_REQUEST_S,
        )
        try:
            body = answer.json()
        except ValueError:
            body = answer.text
        if not answer.is_success:
            raise ApiError(status_code=answer.status_code, body=body)
        return Imported(body.get("annotation_count") or 0, body.get("task_ids") or [])

    def ask(self, call: Callable[[], _T], repeat: bool = False) -> _T:
        """Call the SDK, with both families of its errors made into ours.

        `repeat`: the call changes nothing that matters, so it is tried again while the server is
        down or fails (a restart, a locked database).
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except ApiError as error:
                status, trouble = error.status_code or 0, _first_line(error.body)
                if status in (401, 403):
                    raise InputError(
                        f"Label Studio at {self.url} refuses the token (HTTP {status}): set "
                        "LABEL_STUDIO_API_KEY to one from its Account & Settings page"
                    ) from None
                if status == 404:
                    raise Gone(
                        f"Label Studio at {self.url} does not know what was asked for (HTTP 404): "
                        "was the project or the task deleted, or is that no Label Studio?"
                    ) from None
                if status not in (408, 429) and status < 500:
                    raise InputError(
                        f"Label Studio at {self.url} answers HTTP {status}: {trouble}"
                    ) from None
                failure = f"Label Studio at {self.url} fails with HTTP {status}: {trouble}"
            except httpx.TransportError as error:
                failure = f"Label Studio at {self.url} cannot be reached ({type(error).__name__})"
            except ConnectionError as error:
                failure = str(error)
            except httpx.InvalidURL:
                raise InputError(f"{self.url} is not an address of a Label Studio") from None
            if not repeat or attempt == ATTEMPTS:
                break
            time.sleep(0.5 * 2**attempt)
        raise ConnectionError(failure)


def _first_line(body: Any) -> str:
    text = body.get("detail") if isinstance(body, dict) and body.get("detail") else body
    line = " ".join(str(text).split())
    # A page for browsers says nothing.
    return "its log tells why" if line.startswith("<") else line[:300]
