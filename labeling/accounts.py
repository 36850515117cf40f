"""Accounts of Label Studio: who is there, the link that invites more, and a labeler that signs in
and answers as itself.

Signing up and in goes through the server's own pages, as a person's browser does it, because the
API makes no account that can log in. A session works on every server; tokens of one kind or the
other may be switched off.
"""

from __future__ import annotations

from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any

import httpx

from labeling.addresses import is_this_machine
from labeling.errors import InputError
from labeling.label_studio import LabelStudio

SIMULATED = "@simulated.rankloop.local"  # ends the email of every simulated labeler
_REQUEST_S = 60.0


@dataclass(frozen=True)
class Account:
    """Somebody of the organisation; `name` is empty until they fill in their profile."""

    email: str
    name: str


def accounts(server: LabelStudio) -> list[Account]:
    """Everybody in the organisation, by email; who was removed from it is not."""
    users = server.ask(lambda: list(server.client.users.list()), repeat=True)
    there = [(user, (user.email or "").lower()) for user in users]
    return sorted(
        (
            Account(email, f"{user.first_name or ''} {user.last_name or ''}".strip())
            for user, email in there
            if "@" in email  # the server blanks the email of a removed account
        ),
        key=lambda account: account.email,
    )


def ensure_account(server: LabelStudio, email: str) -> int:
    """The id of the account with this email, created if there is none: an answer that is put back
    needs its labeler. A person's gets no usable password; a simulated labeler's signs up.

    Raises InputError when the server makes none, for instance because the account was removed from
    the organization: it is there, and not listed by its email.
    """
    email = email.lower()
    for _ in range(2):
        for user in server.ask(lambda: list(server.client.users.list()), repeat=True):
            if (user.email or "").lower() == email:
                return int(user.id)
        if email.endswith(SIMULATED):
            return sign_in(server, email).id
        server.ask(lambda: server.client.users.create(username=email, email=email))
    raise ConnectionError(f"Label Studio at {server.url} lost the account {email}")


def invite_link(server: LabelStudio, reset: bool = False) -> str:
    """Where a person signs up. Anybody who has the link can; `reset` makes a new one and ends the
    old."""
    organizations = server.client.organizations
    invite = server.ask(
        organizations.reset_token if reset else organizations.invites.get_invite_link,
        repeat=not reset,
    )
    return f"{server.public_url}/user/signup/?token={invite.token}"


class Labeler:
    """A signed-in account that answers as itself. Safe to use from several threads."""

    def __init__(self, email: str, id: int, http: httpx.Client) -> None:
        self.email = email
        self.id = id
        self._http = http

    def __repr__(self) -> str:
        return f"Labeler({self.email!r})"

    def annotate(
        self, task_id: int, result: list[dict[str, Any]], lead_time_s: float = 0.0
    ) -> None:
        """Submit one annotation. `task_id` must come from an `export` of this very moment.

        Raises ConnectionError when the server failed or went away; the answer may have been
        committed all the same: read before repeating.
        """
        answer = {"result": result, "lead_time": lead_time_s}
        _send(self._http, "POST", f"/api/tasks/{task_id}/annotations/", json=answer)


def sign_in(server: LabelStudio, email: str, first_name: str = "", last_name: str = "") -> Labeler:
    """The labeler with this email, signed up through the invite link if there is no such account.

    Its password follows from our token and the email, so nothing needs to be kept and a killed run
    loses nothing. Raises InputError when the account is somebody else's, or the server lets nobody
    sign up; ConnectionError when it does not answer.
    """
    email = email.lower()
    is_local = is_this_machine(server.url)
    http = httpx.Client(base_url=server.url, timeout=_REQUEST_S, trust_env=not is_local)
    login = {"email": email, "password": server.derived_secret(email)}
    if all(account.email != email for account in accounts(server)):
        token = invite_link(server).rpartition("=")[2]
        path = f"/user/signup/?token={token}"
        if not _submit(http, path, login | {"allow_newsletters": "false"}):
            raise InputError(f"Label Studio at {server.url} does not sign {email} up by its form")
    if not _submit(http, "/user/login/", login | {"persist_session": "on"}):
        raise InputError(
            f"the account {email} of Label Studio at {server.url} has a password that was not made "
            "with this token: give the labeler another name, or use the token of then"
        )
    me = _send(http, "GET", "/api/current-user/whoami").json()
    name = {"first_name": first_name, "last_name": last_name}
    if first_name and {field: me.get(field) for field in name} != name:
        _send(http, "PATCH", f"/api/users/{me['id']}/", json=name)
    return Labeler(email, int(me["id"]), http)


def _submit(http: httpx.Client, path: str, fields: dict[str, str]) -> bool:
    """Fill in a form of the server's pages; whether it was accepted. The client keeps the session.

    Cookies are kept by hand: a server behind TLS marks them for https only, and we may talk to it
    directly.
    """
    form = _send(http, "GET", path)
    _keep_cookies(http, form)
    secret = SimpleCookie(http.headers.get("Cookie", "")).get("csrftoken")
    guard = {"csrfmiddlewaretoken": secret.value if secret else ""}
    # Over https the server also wants to know the page that the form came from.
    answer = _send(http, "POST", path, data=fields | guard, headers={"Referer": str(form.url)})
    _keep_cookies(http, answer)
    return answer.is_redirect  # a form with complaints is shown again


def _keep_cookies(http: httpx.Client, answer: httpx.Response) -> None:
    cookies = SimpleCookie(http.headers.get("Cookie", ""))
    for line in answer.headers.get_list("set-cookie"):
        cookies.load(line)
    http.headers["Cookie"] = "; ".join(f"{name}={c.coded_value}" for name, c in cookies.items())


def _send(http: httpx.Client, method: str, path: str, **given: Any) -> httpx.Response:
    try:
        answer = http.request(method, path, **given)
    except httpx.TransportError as error:
        raise ConnectionError(
            f"Label Studio at {http.base_url} cannot be reached ({type(error).__name__})"
        ) from None
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        raise ConnectionError(
            f"Label Studio at {http.base_url} fails with HTTP {answer.status_code}"
        )
    if answer.is_error:
        where = path.partition("?")[0]  # the invitation's token stays out of messages
        raise InputError(
            f"Label Studio at {http.base_url} answers HTTP {answer.status_code} to a labeler's "
            f"{where}: was the task deleted, or is signing up by invitation switched off?"
        )
    return answer
