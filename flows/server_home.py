"""What the embedded servers leave under their home: their addresses and processes, the first
account's credentials, and the lock that makes `up` and `down` take turns."""

from __future__ import annotations

import json
import logging
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from flows.databases import Database
from flows.embedded import Account, write_private
from flows.processes import Detached
from labeling.addresses import THIS_MACHINE, Address
from labeling.errors import InputError

logger = logging.getLogger(__name__)

Name = Literal["prefect", "label_studio"]
# What `up` leaves running besides the servers is remembered beside them.
Process = Literal["prefect", "label_studio", "worker"]
HINT = "set RANKLOOP_HOME to a folder that can be written"
NAMES: tuple[Name, ...] = ("prefect", "label_studio")


def check_writable(folder: Path, hint: str) -> None:
    """Raises InputError when the folder, or the one that it is to be made in, cannot be written;
    `hint` says what to do."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{there} is a file, and {folder} is to be a folder: {hint}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written, and {folder} is to be there: {hint}")


def lock(home: Path) -> FileLock:
    """One `up` or `down` at a time; a second one waits."""
    check_writable(home, HINT)
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    lock = FileLock(home / "servers.lock")
    try:
        lock.acquire(timeout=1)
        lock.release()
    except Timeout:
        logger.info("waiting for another `rankloop up` or `down` on %s …", home)
    return lock


@dataclass(frozen=True)
class Known:
    """What the last `up` left of a server: its port, its process (None after `down`), the address
    that it listens on, its database (None is SQLite), and a digest of what it was told."""

    port: int | None = None
    process: Detached | None = None
    address: Address = THIS_MACHINE
    database: Database | None = None
    told: str = ""

    @property
    def url(self) -> str:
        """Where this machine reaches it; empty for what never was."""
        return f"http://{self.address.reached_at}:{self.port}" if self.port else ""


def recall(home: Path, name: Process) -> Known:
    entry = read(home / "servers.json").get(name) or {}
    process = entry.get("process")
    return Known(
        entry.get("port"),
        Detached(**process) if process else None,
        Address(**(entry.get("address") or {})),
        Database(**entry["database"]) if entry.get("database") else None,
        entry.get("told") or "",
    )


def remember(home: Path, name: Process, known: Known) -> None:
    entries = read(home / "servers.json")
    write_private(home / "servers.json", entries | {name: asdict(known)})


def credentials_path(home: Path) -> Path:
    return home / "credentials.json"


def account(home: Path) -> Account:
    """The embedded Label Studio's first account, made up now if there is none yet."""
    path = credentials_path(home)
    if not path.exists():
        write_private(
            path,
            {
                "email": "labeler@rankloop.local",
                "password": secrets.token_urlsafe(12),
                "token": secrets.token_hex(20),
                "shown": False,
            },
        )
    known = read(path)
    try:
        return Account(known["email"], known["password"], known["token"])
    except KeyError as error:
        raise InputError(f"{path} has no {error}: put back the file that `up` wrote") from None


def prefect_access(home: Path) -> str:
    """What the embedded Prefect asks for, made up now if there is none yet: `rankloop:<password>`,
    for PREFECT_API_AUTH_STRING and the dashboard's first page."""
    account(home)
    path = credentials_path(home)
    known = read(path)
    if "prefect" not in known:
        known |= {"prefect": f"rankloop:{secrets.token_urlsafe(12)}", "prefect_shown": False}
        write_private(path, known)
    return str(known["prefect"])


def read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise InputError(f"{path} is not JSON: mend it, or remove it and start again") from None


def show_once(home: Path, what: Literal["shown", "prefect_shown"]) -> bool:
    """Whether a login (Label Studio's, Prefect's) is to be shown now: only once, by the first `up`
    that got that far."""
    known = read(credentials_path(home))
    if known.get(what):
        return False
    write_private(credentials_path(home), known | {what: True})
    return True
