"""`up` and `down`: start the embedded servers, and end them.

They keep to SQLite and 127.0.0.1 unless they are told otherwise. A config may put Label Studio on
another address (`labeling.bind`, `labeling.public_url`), which the home remembers, as it does the
PostgreSQL that `RANKLOOP_PREFECT_DATABASE` and `RANKLOOP_LABEL_STUDIO_DATABASE` name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from flows import databases, embedded, given_servers, processes, server_home
from flows.databases import Database
from flows.embedded import PREFERRED_PORT, TITLE, Launch
from flows.processes import Detached
from flows.server_home import NAMES, Known, Name, Process
from flows.servers import Login, Servers, locate
from labeling.addresses import THIS_MACHINE, Address, is_own_address
from labeling.errors import InputError

logger = logging.getLogger(__name__)


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
        return _with_login_once(home, locate(home, wanted))


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
