"""The servers that a round needs: `up`, `down`, `status`, `connect`.

By default both are embedded: Prefect and Label Studio on SQLite, on 127.0.0.1, with their data,
logs and credentials under one home folder. A server named by `PREFECT_API_URL`, or by
`LABEL_STUDIO_URL` with `LABEL_STUDIO_API_KEY`, is used in place of the embedded one.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from flows import embedded, processes, server_home
from flows.embedded import HEALTH, LOG, PREFERRED_PORT, TITLE, Launch
from flows.processes import Detached
from flows.server_home import NAMES, Name
from labeling.errors import InputError

logger = logging.getLogger(__name__)

VARIABLE = {"prefect": "PREFECT_API_URL", "label_studio": "LABEL_STUDIO_URL"}


@dataclass(frozen=True)
class Login:
    """What a person types on Label Studio's login page."""

    email: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class PrefectServer:
    """`api_url` is what PREFECT_API_URL takes; `ui_url` is the dashboard."""

    api_url: str
    ui_url: str


@dataclass(frozen=True)
class LabelStudioServer:
    """`login` is given only by the `up` that first brought the account to life."""

    url: str
    token: str = field(repr=False)
    login: Login | None = None


@dataclass(frozen=True)
class Servers:
    """`label_studio` is None where it was not asked for."""

    prefect: PrefectServer
    label_studio: LabelStudioServer | None


@dataclass(frozen=True)
class ServerStatus:
    """One server as it is now. `pid`, `memory_mb` and `log` are None for a server of others."""

    name: Name
    title: str
    where: Literal["embedded", "external"]
    url: str
    ready: bool
    pid: int | None = None
    memory_mb: float | None = None
    log: Path | None = None


def default_home() -> Path:
    """`RANKLOOP_HOME`, else `.rankloop` in the current folder."""
    return Path(os.environ.get("RANKLOOP_HOME") or Path.cwd() / ".rankloop").resolve()


def up(home: Path, wanted: Collection[Name] = NAMES) -> Servers:
    """Start what is wanted and does not run yet, wait until it is ready, and say where it is.
    Prefect is wanted always.

    Harmless when everything runs already, and when several processes call it at once.
    Raises InputError when a server cannot start, or a given one is unreachable or refuses.
    """
    home = home.resolve()
    with server_home.lock(home):
        launched = []
        if _external(home, "prefect") is None:
            launched.append(_start(home, "prefect", lambda port: embedded.prefect(home, port)))
        if "label_studio" in wanted and _external(home, "label_studio") is None:
            account = server_home.account(home)
            embedded.prepare_database(home / "label-studio")
            launched.append(
                _start(
                    home,
                    "label_studio",
                    lambda port: embedded.label_studio(home, port, account),
                )
            )
        for launch, process in launched:
            port = embedded.wait_ready(launch, process)
            server_home.remember(home, launch.name, port, process)
            logger.info("%s is ready at http://127.0.0.1:%d", launch.title, port)
        return _with_login_once(home, _servers(home, wanted))


def connect(home: Path) -> Servers | None:
    """The servers if all of them are ready now, without starting any; else None.

    Raises InputError when a server named by the environment is unreachable or refuses.
    """
    home = home.resolve()
    if not all(server.ready for server in status(home) if server.where == "embedded"):
        return None
    return _servers(home)


def find_label_studio(home: Path) -> LabelStudioServer | None:
    """Label Studio if it is ready now, without starting it.

    Raises InputError when it refuses our token.
    """
    home = home.resolve()
    ready = any(server.ready for server in status(home) if server.name == "label_studio")
    return _label_studio(home) if ready else None


def status(home: Path) -> list[ServerStatus]:
    """How each server is now. Starts nothing; a server that does not answer is not ready."""
    home = home.resolve()
    result = []
    for name in NAMES:
        if (given := _external(home, name)) is not None:
            answer = embedded.get(f"{given}/health", _prefect_auth() if name == "prefect" else {})
            url = given.removesuffix("/api")
            result.append(ServerStatus(name, TITLE[name], "external", url, answer == 200))
            continue
        port, process = server_home.recall(home, name)
        found = processes.find(process) if process else None
        url = f"http://127.0.0.1:{port}" if port else ""
        result.append(
            ServerStatus(
                name,
                TITLE[name],
                "embedded",
                url,
                ready=found is not None and embedded.get(url + HEALTH[name]) == 200,
                pid=found.pid if found else None,
                memory_mb=processes.memory_mb(process) if process and found else None,
                log=home / "logs" / LOG[name],
            )
        )
    return result


def down(home: Path) -> list[str]:
    """End exactly what `up` started under this home; their titles. Data and ports are kept."""
    home = home.resolve()
    stopped: list[str] = []
    if not home.is_dir():
        return stopped
    with server_home.lock(home):
        for name in reversed(NAMES):
            port, process = server_home.recall(home, name)
            if process is None:
                continue
            if processes.stop(process):
                stopped.append(TITLE[name])
                logger.info("%s stopped", TITLE[name])
            server_home.remember(home, name, port, None)
    return stopped


# --- servers of others ---------------------------------------------------------------------------


def _external(home: Path, name: Name) -> str | None:
    """The address in the environment, or None when the server is to be embedded."""
    url = (os.environ.get(VARIABLE[name]) or "").rstrip("/")
    port, _ = server_home.recall(home, name)
    ours = f"http://127.0.0.1:{port}"
    # Our own address in the environment (a flow passes it on) does not make a server foreign.
    return url if url and url.removesuffix("/api") != ours else None


def _prefect_auth() -> dict[str, str]:
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {}


def _servers(home: Path, wanted: Collection[Name] = NAMES) -> Servers:
    """Where the servers are, after asking whether they take our keys."""
    if (api_url := _external(home, "prefect")) is not None:
        answer = embedded.get(f"{api_url}/health", _prefect_auth(), timeout_s=15)
        if answer != 200:
            raise InputError(
                f"PREFECT_API_URL {api_url} "
                + ("cannot be reached" if answer is None else f"answers with HTTP {answer}")
                + ": start that server, correct its address or key, or unset PREFECT_API_URL"
            )
    else:
        api_url = f"http://127.0.0.1:{server_home.recall(home, 'prefect')[0]}/api"
    return Servers(
        PrefectServer(api_url, api_url.removesuffix("/api")),
        _label_studio(home) if "label_studio" in wanted else None,
    )


def _label_studio(home: Path) -> LabelStudioServer:
    url = _external(home, "label_studio")
    return _embedded_label_studio(home) if url is None else _external_label_studio(url)


def _external_label_studio(url: str) -> LabelStudioServer:
    token = os.environ.get("LABEL_STUDIO_API_KEY")
    if not token:
        raise InputError(
            f"LABEL_STUDIO_URL is set to {url} but LABEL_STUDIO_API_KEY is not: set it to a token "
            "from that server's Account & Settings page"
        )
    # The SDK takes its time to load, and knows both kinds of token.
    from labeling.label_studio import LabelStudio  # noqa: PLC0415

    LabelStudio(url, token).check()
    return LabelStudioServer(url, token)


def _embedded_label_studio(home: Path) -> LabelStudioServer:
    url = f"http://127.0.0.1:{server_home.recall(home, 'label_studio')[0]}"
    token = server_home.account(home).token
    answer = embedded.get(
        f"{url}/api/current-user/whoami", {"Authorization": f"Token {token}"}, timeout_s=15
    )
    if answer != 200:
        raise InputError(
            f"Label Studio at {url} refuses the token in {server_home.credentials_path(home)} "
            f"(HTTP {answer}): put back the file that belongs to {home / 'label-studio'}"
        )
    return LabelStudioServer(url, token)


def _start(home: Path, name: Name, build: Callable[[int], Launch]) -> tuple[Launch, Detached]:
    """The server's launch and process: the one that runs, else one started now."""
    port, process = server_home.recall(home, name)
    if port and process and processes.find(process):
        return build(port), process
    if process:
        processes.stop(process)  # what a leader that died has left behind holds the port
    taken = embedded.free_port([p for p in (port, PREFERRED_PORT[name]) if p])
    launch = build(taken)
    logger.info("starting %s on port %d …", launch.title, taken)
    process = launch.start()
    server_home.remember(
        home, name, taken, process
    )  # before it is ready: `down` must find it in any case
    return launch, process


def _with_login_once(home: Path, servers: Servers) -> Servers:
    """Add the login the first time; a killed `up` has not shown it, so the next one does."""
    found = servers.label_studio
    if found is None or _external(home, "label_studio") is not None:
        return servers
    if not server_home.show_once(home):
        return servers
    account = server_home.account(home)
    login = Login(account.email, account.password)
    return replace(servers, label_studio=replace(found, login=login))
