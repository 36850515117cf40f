"""The two embedded servers, Prefect and Label Studio, on SQLite: how each is started and how one
knows that it is ready. Who starts them and when is in starting.py. Prefect listens on 127.0.0.1
alone, and asks for a password."""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows import processes
from flows.asking import get
from flows.databases import Database
from flows.processes import Detached
from labeling.addresses import LOOPBACK, THIS_MACHINE, Address
from labeling.durable import put_in_place
from labeling.errors import InputError

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 300.0  # the first start on PostgreSQL takes 130 s on a busy machine of two cores
PREFERRED_PORT = {"prefect": 4200, "label_studio": 8080}
HEALTH = {"prefect": "/api/ready", "label_studio": "/health"}
TITLE = {"prefect": "Prefect", "label_studio": "Label Studio", "worker": "worker"}
LOG = {"prefect": "prefect.log", "label_studio": "label-studio.log"}
# What a server may see of our environment; its own settings come on top. Anything else (a stray
# PREFECT_ or DJANGO_ variable, an empty boolean, a secret) would change or crash it.
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Account:
    """The first account of the embedded Label Studio; written once, never logged."""

    email: str
    password: str
    token: str

    def __repr__(self) -> str:
        return f"Account({self.email!r}, password and token hidden)"


@dataclass(frozen=True)
class Launch:
    """All it takes to start one server and to know it again."""

    name: Literal["prefect", "label_studio"]
    title: str
    command: tuple[str, ...]
    settings: dict[str, str]
    folder: Path
    log: Path
    port: int
    health: str
    address: Address = THIS_MACHINE
    database: Database | None = None

    def start(self) -> Detached:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment = passed_on | self.settings | {"PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1"}
        return processes.start(
            self.command, environment, self.folder, self.log, f"{self.folder}:{self.name}"
        )


def prefect(home: Path, port: int, access: str, database: Database | None = None) -> Launch:
    """Prefect's API server and dashboard. Whoever reaches it runs code here, so it asks for
    `access`: a name and a password, joined by a colon."""
    folder = home / "prefect"
    return Launch(
        name="prefect",
        title=TITLE["prefect"],
        command=(sys.executable, "-m", "prefect", "server", "start"),
        settings={
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_API_AUTH_STRING": access,
            "PREFECT_API_AUTH_STRING": access,  # its own services call it, too
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_CLI_PROMPT": "false",
            # With leases in memory a restart of the server crashes the run that holds a slot.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            **_prefect_database(database),
        },
        folder=folder,
        log=home / "logs" / LOG["prefect"],
        port=port,
        health=HEALTH["prefect"],
        database=database,
    )


def label_studio(
    home: Path,
    port: int,
    account: Account,
    address: Address = THIS_MACHINE,
    database: Database | None = None,
) -> Launch:
    """Label Studio out of its own virtual environment (it cannot share one with Prefect).

    Raises InputError when that environment is missing.
    """
    folder = home / "label-studio"
    return Launch(
        name="label_studio",
        title=TITLE["label_studio"],
        command=(
            str(label_studio_binary()),
            "start",
            "--no-browser",
            *("--internal-host", address.bind),
            *("--port", str(port)),
            *("--log-level", "WARNING"),
        ),
        settings={
            "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
            # Applied only when the account and its organization are created, at the first boot.
            "LABEL_STUDIO_USERNAME": account.email,
            "LABEL_STUDIO_PASSWORD": account.password,
            "LABEL_STUDIO_USER_TOKEN": account.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            **_behind_a_proxy(address),
            **_label_studio_database(database),
        },
        folder=folder,
        log=home / "logs" / LOG["label_studio"],
        port=port,
        health=HEALTH["label_studio"],
        address=address,
        database=database,
    )


def _prefect_database(database: Database | None) -> dict[str, str]:
    """What the address leaves out, asyncpg reads from PostgreSQL's own variables."""
    if database is None:
        return {}
    return database.variables() | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://"
    }


def _label_studio_database(database: Database | None) -> dict[str, str]:
    """It has names of its own (spelled so), but reads what goes for TLS from PostgreSQL's."""
    if database is None:
        return {}
    return database.variables() | {
        "DJANGO_DB": "default",
        "POSTGRE_HOST": database.host,
        "POSTGRE_PORT": str(database.port),
        "POSTGRE_NAME": database.name,
        "POSTGRE_USER": database.user,
        "POSTGRE_PASSWORD": database.password,
    }


def _behind_a_proxy(address: Address) -> dict[str, str]:
    """What Label Studio must know of the address that browsers see. It takes every request for
    plain http, so without the origin it refuses each form that comes through TLS."""
    if address.public_url is None:
        return {}
    settings = {
        "LABEL_STUDIO_HOST": address.public_url,
        "CSRF_TRUSTED_ORIGINS": str(address.origin),
    }
    if address.has_tls:
        settings |= {"SESSION_COOKIE_SECURE": "1", "CSRF_COOKIE_SECURE": "1"}
    return settings


def label_studio_binary() -> Path:
    """The program of Label Studio's environment. Raises InputError when it is not there."""
    given = os.environ.get("RANKLOOP_LABEL_STUDIO")
    binary = Path(given) if given else ROOT / ".venv-label-studio" / "bin" / "label-studio"
    if not binary.is_file():
        raise InputError(
            f"RANKLOOP_LABEL_STUDIO names {given}, which is not there: correct or unset it"
            if given
            else "Label Studio is not installed: run `make .venv-label-studio`"
        )
    return binary


def prepare_database(folder: Path) -> None:
    """Create Label Studio's database file in WAL mode, before its first boot.

    The mode is a property of the file. Writing one annotation from four clients at once takes
    49 ms instead of 184 ms.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "label_studio.sqlite3"
    if not database.exists():
        connection = sqlite3.connect(database)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()


def free_port(wanted: Sequence[int], host: str = LOOPBACK) -> int:
    """The first of `wanted` that is free on this address and on 127.0.0.1, else any free port."""
    for port in (*wanted, 0):
        with socket.socket() as probe:
            # As servers do: a port in TIME_WAIT after our own `down` is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            if port and _answers(port):
                continue
            return int(probe.getsockname()[1])
    raise InputError(f"no free port on {host}: end some of the programs that listen there")


def wait_free(port: int, host: str, seconds: float = 10.0) -> None:
    """Wait until a server that was ended has let go of its port: with open connections (a browser
    keeps some) that outlasts the process by a moment. A proxy knows the port, so it is not given
    up lightly."""
    deadline = time.monotonic() + seconds
    while free_port([port], host) != port and time.monotonic() < deadline:
        time.sleep(0.1)


def _answers(port: int) -> bool:
    """Whether something listens on another address of the same port (Label Studio avoids those)."""
    with socket.socket() as client:
        client.settimeout(0.5)
        return client.connect_ex((LOOPBACK, port)) == 0


def wait_ready(launch: Launch, process: Detached) -> int:
    """Wait until the server answers on a port of its own, and return that port.

    The port is read from the process, because Label Studio silently takes the next one when its
    own is taken, and a stranger may answer there.
    Raises InputError, which names the log, when the server ends early or stays silent.
    """
    begun = said = time.monotonic()
    while True:
        code = processes.reap(process)
        if processes.find(process) is None:
            ended = "ended" if code is None else f"ended with exit code {code}"
            raise InputError(
                f"{launch.title} {ended} before it was ready: read {launch.log}"
                f"{_last_words(launch.log)}"
            )
        for port in sorted(processes.listening_ports(process)):
            url = f"http://{launch.address.reached_at}:{port}{launch.health}"
            if get(url, timeout_s=2.0) == 200:
                return port
        now = time.monotonic()
        if now - begun > READY_WITHIN_S:
            raise InputError(
                f"{launch.title} is not ready after {READY_WITHIN_S:.0f} s: read {launch.log}"
            )
        if now - said > 5:
            said = now
            logger.info("waiting for %s, %d s …", launch.title, now - begun)
        time.sleep(0.2)


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f" (its last line: {lines[-1][:200]})" if lines else ""


def write_private(path: Path, value: object) -> None:
    """Write JSON that only the owner may read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file, indent=2)
    put_in_place(partial, path)
