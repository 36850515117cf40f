"""The servers that a round needs: `up`, `down`, `status`, `connect`.

By default both are embedded: Prefect and Label Studio on SQLite, on 127.0.0.1, with their data,
logs and credentials under one home folder. A config may put Label Studio on another address
(`labeling.bind`, `labeling.public_url`), which the home remembers, as it does the PostgreSQL that
`RANKLOOP_PREFECT_DATABASE` and `RANKLOOP_LABEL_STUDIO_DATABASE` name. A server named by
`PREFECT_API_URL`, or by `LABEL_STUDIO_URL` with `LABEL_STUDIO_API_KEY`, is used in place of the
embedded one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from flows import databases, embedded, given_servers, processes, server_home
from flows.databases import Database
from flows.embedded import HEALTH, LOG, PREFERRED_PORT, TITLE, Launch
from flows.processes import Detached
from flows.server_home import NAMES, Known, Name, Process
from labeling.addresses import THIS_MACHINE, Address, is_own_address
from labeling.errors import InputError, Unreachable

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


def up(home: Path, wanted: Collection[Name] = NAMES, address: Address | None = None) -> Servers:
    """Start what is wanted and does not run yet, wait until it is ready, and say where it is.
    Prefect is wanted always.

    `address`: where Label Studio is to listen; without it where it did last, at first on this
    machine alone. One that runs elsewhere is restarted. Harmless when everything runs already, and
    when several processes call it at once.
    Raises InputError when a server cannot start, or a given one is unreachable or refuses, and
    ConnectionError when a PostgreSQL is unreachable.
    """
    home = home.resolve()
    with server_home.lock(home):
        launched = []
        on = _databases(home, wanted)
        if "prefect" in on:
            access = server_home.prefect_access(home)
            build = partial(embedded.prefect, home, access=access, database=on["prefect"])
            launched.append(_start(home, "prefect", THIS_MACHINE, on["prefect"], build))
        if "label_studio" in on:
            there = address or server_home.recall(home, "label_studio").address
            account = server_home.account(home)
            database = on["label_studio"]
            if database is None:
                embedded.prepare_database(home / "label-studio")
            build = partial(
                embedded.label_studio, home, account=account, address=there, database=database
            )
            launched.append(_start(home, "label_studio", there, database, build))
            if there.exposure:
                logger.warning(there.exposure)
        for launch, process in launched:
            port = embedded.wait_ready(launch, process)
            known = Known(port, process, launch.address, launch.database)
            server_home.remember(home, launch.name, known)
            logger.info("%s is ready at %s", launch.title, known.url)
        return _with_login_once(home, _servers(home, wanted))


def connect(home: Path) -> Servers | None:
    """The servers if all of them are ready now, without starting any; else None.

    Raises InputError when a server named by the environment is unreachable or refuses.
    """
    home = home.resolve()
    if not all(server.ready for server in status(home) if server.where == "embedded"):
        return None
    return _servers(home)


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


def status(home: Path, names: Collection[Name] = NAMES) -> list[ServerStatus]:
    """How each server is now. Starts nothing; a server that does not answer is not ready."""
    home = home.resolve()
    result = []
    for name in names:
        if (given := given_servers.url(home, name)) is not None:
            answer = embedded.get(
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
                ready=found is not None and embedded.get(known.url + HEALTH[name]) == 200,
                pid=found.pid if found else None,
                memory_mb=processes.memory_mb(known.process) if known.process and found else None,
                log=home / "logs" / LOG[name],
                public_url=known.address.public_url or known.url,
                exposure=known.address.exposure,
                database=str(known.database) if known.database else None,
            )
        )
    return result


def flow_run_end(home: Path, flow_run: str) -> str | None:
    """How a Prefect run ended (`cancelled`, …), if it did and the server tells; without Prefect's
    client, which takes a second to load."""
    try:
        found = find_prefect(home)
    except InputError:
        return None
    if found is None:
        return None
    access = given_servers.basic(found.access) if found.access else given_servers.prefect_headers()
    state = embedded.get_json(f"{found.api_url}/flow_runs/{flow_run}", access).get("state") or {}
    is_final = state.get("type") in ("CANCELLED", "FAILED", "CRASHED", "COMPLETED")
    return str(state["name"]).lower() if is_final else None


def worker_status(home: Path) -> str:
    """Whether the worker that takes submitted rounds runs, for people."""
    process = server_home.recall(home.resolve(), "worker").process
    found = processes.find(process) if process else None
    if process is None or found is None:
        return "not running  (for submitted and scheduled rounds; `rankloop up` starts it)"
    return f"at work      (pid {found.pid}, {processes.memory_mb(process):.0f} MB)"


def down(home: Path) -> list[str]:
    """End exactly what `up` started under this home; their titles. Data and ports are kept."""
    home = home.resolve()
    stopped: list[str] = []
    if not home.is_dir():
        return stopped
    with server_home.lock(home):
        names: tuple[Process, ...] = ("worker", *reversed(NAMES))
        for name in names:
            known = server_home.recall(home, name)
            if known.process is None:
                continue
            if processes.stop(known.process):
                stopped.append(TITLE[name])
                logger.info("%s stopped", TITLE[name])
            server_home.remember(home, name, replace(known, process=None))
    return stopped


# --- where they are ------------------------------------------------------------------------------


def _servers(home: Path, wanted: Collection[Name] = NAMES) -> Servers:
    """Where the servers are, after asking whether they take our keys."""
    return Servers(_prefect(home), _label_studio(home) if "label_studio" in wanted else None)


def _prefect(home: Path) -> PrefectServer:
    if (given := given_servers.url(home, "prefect")) is not None:
        given_servers.check_prefect(given)
        return PrefectServer(given, given.removesuffix("/api"))
    url, access = server_home.recall(home, "prefect").url, server_home.prefect_access(home)
    answer = embedded.get(f"{url}/api/admin/version", given_servers.basic(access), timeout_s=15)
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
    answer = embedded.get(
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


def _databases(home: Path, wanted: Collection[Name]) -> dict[Name, Database | None]:
    """What each server that is to be embedded keeps its data in. Each PostgreSQL is asked whether
    it will do, before anything is started, stopped or waited for."""
    on: dict[Name, Database | None] = {
        name: databases.named(name, server_home.recall(home, name).database)
        for name in NAMES
        if (name == "prefect" or name in wanted) and given_servers.url(home, name) is None
    }
    databases.check_apart(on.values())
    for name, database in on.items():
        if database:
            databases.check(database, name, TITLE[name])
    return on


def _start(
    home: Path,
    name: Name,
    address: Address,
    database: Database | None,
    build: Callable[[int], Launch],
) -> tuple[Launch, Detached]:
    """The server's launch and process: the one that runs at this address and on this database, else
    one started now."""
    known = server_home.recall(home, name)
    if not is_own_address(address.bind):
        raise InputError(
            f"labeling.bind {address.bind} is no address of this machine: name one of its own, or "
            "0.0.0.0 for all of them"
        )
    is_running = known.process is not None and processes.find(known.process) is not None
    is_there = (known.address, known.database) == (address, database)
    if known.port and known.process and is_running and is_there:
        return build(known.port), known.process
    if known.port and known.database != database:
        databases.tell_of_move(TITLE[name], known.database, database)
    if is_running and known.address != address:
        logger.warning(
            "%s listens on %s and is restarted for %s: whoever is ranking goes on by reloading "
            "the page, there if it is another",
            TITLE[name],
            _told(known.address),
            _told(address),
        )
    if known.process:
        processes.stop(known.process)  # also what a leader that died has left behind on the port
    if known.port and is_running:
        embedded.wait_free(known.port, address.bind)
    wanted = [p for p in (known.port, PREFERRED_PORT[name]) if p]
    port = embedded.free_port(wanted, address.bind)
    launch = build(port)
    logger.info(
        "starting %s on port %d%s …", launch.title, port, f", on {database}" if database else ""
    )
    if address.public_url and known.port not in (None, port):
        logger.warning("port %d was taken: tell the proxy of %d", known.port, port)
    process = launch.start()
    # Before it is ready: `down` must find it in any case.
    server_home.remember(home, name, Known(port, process, address, database))
    return launch, process


def _told(address: Address) -> str:
    return " as ".join(part for part in (address.bind, address.public_url) if part)


def _with_login_once(home: Path, servers: Servers) -> Servers:
    """Add the logins the first time; a killed `up` has not shown them, so the next one does."""
    if servers.prefect.access and server_home.show_once(home, "prefect_shown"):
        servers = replace(servers, prefect=replace(servers.prefect, is_new=True))
    found = servers.label_studio
    if found is None or given_servers.url(home, "label_studio") is not None:
        return servers
    if not server_home.show_once(home, "shown"):
        return servers
    account = server_home.account(home)
    login = Login(account.email, account.password)
    return replace(servers, label_studio=replace(found, login=login))
