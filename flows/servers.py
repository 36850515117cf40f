"""Where the servers are that a round needs, and how they are; flows/starting.py starts them.

By default both are embedded: Prefect and Label Studio with their data, logs and credentials under
one home folder. A server named by `PREFECT_API_URL`, or by `LABEL_STUDIO_URL` with
`LABEL_STUDIO_API_KEY`, is used in place of the embedded one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows import asking, given_servers, processes, server_home
from flows.embedded import HEALTH, LOG, TITLE
from flows.server_home import NAMES, Name
from labeling.errors import InputError, Unreachable

if TYPE_CHECKING:
    from labeling.label_studio import LabelStudio

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Login:
    """What a person types on Label Studio's login page."""

    email: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class PrefectServer:
    """`api_url` is what PREFECT_API_URL takes; `ui_url` is the dashboard. `access` is what
    PREFECT_API_AUTH_STRING takes, "" for a server of others, which the environment knows;
    `is_new`: nobody was shown it yet."""

    api_url: str
    ui_url: str
    access: str = field(default="", repr=False)
    is_new: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class LabelStudioServer:
    """`url` is where we reach it, `public_url` where browsers do. `login` is given only by the
    `up` that first brought the account to life."""

    url: str
    token: str = field(repr=False)
    login: Login | None = None
    public_url: str = ""


@dataclass(frozen=True)
class Servers:
    """`label_studio` is None where it was not asked for."""

    prefect: PrefectServer
    label_studio: LabelStudioServer | None


@dataclass(frozen=True)
class ServerStatus:
    """One server as it is now. `pid`, `memory_mb` and `log` are None for a server of others;
    `exposure` says what others on the network can see of ours; `database` is None for SQLite, and
    has no password."""

    name: Name
    title: str
    where: Literal["embedded", "external"]
    url: str
    ready: bool
    pid: int | None = None
    memory_mb: float | None = None
    log: Path | None = None
    public_url: str = ""
    exposure: str | None = None
    database: str | None = None


def default_home() -> Path:
    """`RANKLOOP_HOME`, else `.rankloop` in the current folder."""
    return Path(os.environ.get("RANKLOOP_HOME") or Path.cwd() / ".rankloop").resolve()


def connect(home: Path) -> Servers | None:
    """The servers if all of them are ready now, without starting any; else None.

    Raises InputError when a server named by the environment is unreachable or refuses.
    """
    home = home.resolve()
    if not all(server.ready for server in status(home) if server.where == "embedded"):
        return None
    return locate(home)


def locate(home: Path, wanted: Collection[Name] = NAMES) -> Servers:
    """Where the servers are, after asking whether they take our keys; Prefect is wanted always.

    Raises InputError when one refuses, and Unreachable when it does not answer.
    """
    return Servers(_prefect(home), _label_studio(home) if "label_studio" in wanted else None)


def find_prefect(home: Path) -> PrefectServer | None:
    """Prefect if it is ready now, without starting it.

    Raises InputError when it refuses our password.
    """
    home = home.resolve()
    return _prefect(home) if _is_ready(home, "prefect") else None


def find_label_studio(home: Path) -> LabelStudioServer | None:
    """Label Studio if it is ready now, without starting it.

    Raises InputError when it refuses our token.
    """
    home = home.resolve()
    return _label_studio(home) if _is_ready(home, "label_studio") else None


def open_label_studio(home: Path) -> LabelStudio | None:
    """A client of Label Studio if that is ready now; Prefect may be away.

    Raises InputError when it refuses our token.
    """
    found = find_label_studio(home)
    if found is None:
        return None
    from labeling.label_studio import LabelStudio  # noqa: PLC0415 - loads the SDK

    return LabelStudio(found.url, found.token, found.public_url)


def reach_label_studio(home: Path) -> LabelStudio:
    """A client of Label Studio.

    Raises InputError when it refuses our token, and Unreachable when it is not ready.
    """
    if (client := open_label_studio(home)) is not None:
        return client
    home = home.resolve()
    if given := given_servers.url(home, "label_studio"):
        raise Unreachable(
            f"Label Studio at {given} does not answer: start it, or correct its address"
        )
    known = server_home.recall(home, "label_studio")
    if known.process and processes.find(known.process):
        _check_answered("Label Studio", known.url, None)
    raise Unreachable("Label Studio is not running: `rankloop up` starts it")


def status(home: Path, names: Collection[Name] = NAMES) -> list[ServerStatus]:
    """How each server is now. Starts nothing; a server that does not answer is not ready."""
    home = home.resolve()
    result = []
    for name in names:
        if (given := given_servers.url(home, name)) is not None:
            answer = asking.get(
                f"{given}/health", given_servers.prefect_headers() if name == "prefect" else {}
            )
            url = given.removesuffix("/api")
            result.append(ServerStatus(name, TITLE[name], "external", url, answer == 200))
            continue
        known = server_home.recall(home, name)
        found = processes.find(known.process) if known.process else None
        result.append(
            ServerStatus(
                name,
                TITLE[name],
                "embedded",
                known.url,
                ready=found is not None and asking.get(known.url + HEALTH[name]) == 200,
                pid=found.pid if found else None,
                memory_mb=processes.memory_mb(known.process) if known.process and found else None,
                log=home / "logs" / LOG[name],
                public_url=known.address.public_url or known.url,
                exposure=known.address.exposure,
                database=str(known.database) if known.database else None,
            )
        )
    return result


# --- where they are ------------------------------------------------------------------------------


def _prefect(home: Path) -> PrefectServer:
    if (given := given_servers.url(home, "prefect")) is not None:
        given_servers.check_prefect(given)
        return PrefectServer(given, given.removesuffix("/api"))
    url, access = server_home.recall(home, "prefect").url, server_home.prefect_access(home)
    answer = asking.get(f"{url}/api/admin/version", given_servers.basic(access), timeout_s=15)
    _check_answered("Prefect", url, answer)
    if answer != 200:
        raise InputError(
            f"Prefect at {url} refuses the password in {server_home.credentials_path(home)} "
            f"(HTTP {answer}): `rankloop down` and `rankloop up` start it with that one"
        )
    return PrefectServer(f"{url}/api", url, access)


def _check_answered(title: str, url: str, answer: int | None) -> None:
    if answer is None or answer >= 500:
        failure = "does not answer" if answer is None else f"fails with HTTP {answer}"
        raise Unreachable(f"{title} at {url} {failure}: try again; its log may tell why")


def _label_studio(home: Path) -> LabelStudioServer:
    url = given_servers.url(home, "label_studio")
    if url is None:
        return _embedded_label_studio(home)
    return LabelStudioServer(url, given_servers.checked_token(url), public_url=url)


def _embedded_label_studio(home: Path) -> LabelStudioServer:
    known = server_home.recall(home, "label_studio")
    url = known.url
    token = server_home.account(home).token
    answer = asking.get(
        f"{url}/api/current-user/whoami", {"Authorization": f"Token {token}"}, timeout_s=15
    )
    _check_answered("Label Studio", url, answer)
    if answer != 200:
        raise InputError(
            f"Label Studio at {url} refuses the token in {server_home.credentials_path(home)} "
            f"(HTTP {answer}): put back the file that belongs to "
            f"{known.database or home / 'label-studio'}"
        )
    return LabelStudioServer(url, token, public_url=known.address.public_url or url)


def _is_ready(home: Path, name: Name) -> bool:
    """Asks this server alone: another that hangs is not waited for."""
    return status(home, [name])[0].ready
