"""Of the doctor: the home folder with its secrets, and the servers with their databases."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from flows import databases, given_servers, processes, server_home, servers
from flows.embedded import TITLE
from flows.finding import Finding, Findings, Site, age, ok, warning, wrong
from flows.server_home import HINT, NAMES, Name, check_writable
from flows.servers import ServerStatus
from labeling.addresses import is_this_machine
from labeling.errors import InputError

_RESTART = "`rankloop down`, then `rankloop up`"
_SQLITE = {"prefect": "prefect/prefect.db", "label_studio": "label-studio/label_studio.sqlite3"}
_CHECKED_BYTES = 200_000_000  # larger databases would take more than a second
_SKEW = timedelta(seconds=10)


# --- the home -------------------------------------------------------------------------------------


def home_folder(site: Site) -> Findings:
    home = site.home
    check_writable(home, HINT)
    if not home.exists():
        yield warning(f"there is no {home} yet", "`rankloop up` makes it")
    elif (mode := stat.S_IMODE(home.stat().st_mode)) & 0o077:
        yield wrong(f"{home} is open to others (mode {mode:04o})", f"`chmod 700 '{home}'`")
    else:
        yield ok(f"home {home}, for its owner alone")


def private_files(site: Site) -> Findings:
    """Passwords, tokens, and databases' passwords."""
    names = ("credentials.json", "servers.json", "label-studio/.env")
    there = [path for name in names if (path := site.home / name).exists()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in there}
    is_open = {path: mode for path, mode in modes.items() if mode & 0o077}
    for path, mode in is_open.items():
        yield wrong(f"{path} is open to others (mode {mode:04o})", f"`chmod 600 '{path}'`")
    if there and not is_open:
        yield ok(f"{', '.join(path.name for path in there)}: for their owner alone")


# --- the servers ----------------------------------------------------------------------------------


def servers_answer(site: Site) -> Findings:
    for server in site.servers:
        yield _answer(server)
        if server.exposure:
            yield warning(server.exposure, "docs/operations.md, on securing it")


def _answer(server: ServerStatus) -> Finding:
    if server.ready:
        memory = f", {server.memory_mb:.0f} MB" if server.memory_mb else ""
        return ok(f"{server.title} answers at {server.url} ({server.where}{memory})")
    if server.where == "external":
        variable = given_servers.VARIABLE[server.name]
        return wrong(
            f"{server.title} at {server.url} does not answer",
            f"start that server, correct {variable}, or unset it for one of our own",
        )
    if server.pid is None:
        return wrong(f"{server.title} is not running", "`rankloop up` starts it")
    return wrong(
        f"{server.title} runs (process {server.pid}) and does not answer at {server.url}",
        f"read {server.log}; {_RESTART}",
    )


def tokens(site: Site) -> Findings:
    """Whether those servers that answer let us in, which takes their databases, too."""
    credentials = server_home.credentials_path(site.home)
    for server in site.servers:
        if not server.ready:
            continue
        if server.where == "embedded" and lacks_credentials(site.home, server.name):
            # Asking would make up new ones, and the server knows the old.
            yield wrong(
                f"{credentials} lacks what opens {server.title}", f"put it back; else {_RESTART}"
            )
            continue
        try:
            if server.name == "prefect":
                _ = site.prefect
            else:
                servers.find_label_studio(site.home)
        except (InputError, ConnectionError) as error:
            yield wrong(str(error), "")
            continue
        what = "password" if server.name == "prefect" else "token"
        yield ok(f"{server.title} takes our {what}, and its database answers")


def lacks_credentials(home: Path, name: Name) -> bool:
    needed = "prefect" if name == "prefect" else "token"
    return needed not in server_home.read(server_home.credentials_path(home))


def clocks(site: Site) -> Findings:
    """On another machine a wrong clock starts scheduled rounds at the wrong time."""
    for server in site.servers:
        if not server.ready or is_this_machine(server.url):
            continue
        try:
            date = httpx.get(server.url, timeout=5, follow_redirects=False).headers.get("Date", "")
            skew = datetime.now(UTC) - parsedate_to_datetime(date)
        except (httpx.HTTPError, ValueError):
            continue  # it does not say
        told = "behind" if skew < timedelta() else "ahead of"
        if abs(skew) > _SKEW:
            yield warning(
                f"this machine's clock is {age(abs(skew))} {told} that of {server.title}'s",
                "set both by the network: `timedatectl set-ntp true`",
            )
        else:
            yield ok(f"this machine's clock agrees with {server.title}'s")


# --- their databases ------------------------------------------------------------------------------


def database_files(site: Site) -> Findings:
    """Those of the embedded servers: PostgreSQL is asked, SQLite's files are looked at."""
    by_name = {server.name: server for server in site.servers}
    for name in NAMES:
        if by_name[name].where == "external":
            continue
        known = server_home.recall(site.home, name)
        if databases.named(name, known.database) != known.database and known.port:
            yield warning(
                f"{databases.VARIABLE[name]} names another database than {TITLE[name]} runs on",
                "`rankloop up` changes to it; unset the variable to stay",
            )
        if known.database:
            try:
                databases.check(known.database, name, TITLE[name])
            except (InputError, ConnectionError) as error:
                yield wrong(str(error), "")
                continue
            yield ok(f"{TITLE[name]}'s database: {known.database}")
        elif known.port:
            yield from _sqlite(site.home / _SQLITE[name], TITLE[name], by_name[name].ready)


def _sqlite(path: Path, title: str, is_open: bool) -> Iterator[Finding]:
    """Opened only where the server has it open: SQLite would leave files beside it."""
    put_back = f"`rankloop down`, put back {path} from a backup, `rankloop up`"
    if not path.exists():
        yield wrong(f"{title}'s database {path} is gone", put_back)
        return
    with path.open("rb") as file:
        is_damaged = file.read(16) != b"SQLite format 3\0"
    size = path.stat().st_size
    if is_open and not is_damaged and size < _CHECKED_BYTES:
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as there:
                is_damaged = there.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
        except sqlite3.DatabaseError as error:
            yield wrong(f"{title}'s database {path} cannot be read ({error})", put_back)
            return
    if is_damaged:
        yield wrong(f"{title}'s database {path} is damaged", put_back)
    else:
        yield ok(f"{title}'s database: SQLite, {size / 1e6:.1f} MB")


# --- the worker's process -------------------------------------------------------------------------


def worker_process(site: Site) -> Findings:
    """What can be told of it without Prefect."""
    process = server_home.recall(site.home, "worker").process
    if process is None:
        yield wrong(
            "no worker is at work: nothing submitted or scheduled runs",
            "`rankloop up` starts one",
        )
        return
    found = processes.find(process)
    log = site.home / "logs" / "worker.log"
    if found is None:
        left = len(processes.members(process))
        of_it = f", and {left} of its processes are left" if left else ""
        yield wrong(
            f"the worker (process {process.pid}) is gone{of_it}",
            f"`rankloop up` starts another; {log} may tell why it ended",
        )
        return
    told, prefect = found.environ(), _prefect_url(site)
    if prefect and told.get("PREFECT_API_URL") != prefect:
        at = told.get("PREFECT_API_URL")
        yield wrong(f"the worker asks Prefect at {at}, and it is at {prefect} now", _RESTART)
    elif told.get("PREFECT_API_AUTH_STRING") != _password(site):
        yield wrong("the worker knows another password of Prefect than we do", _RESTART)
    else:
        yield ok(f"the worker runs (process {process.pid})")


def _prefect_url(site: Site) -> str | None:
    given = given_servers.url(site.home, "prefect")
    url = server_home.recall(site.home, "prefect").url
    return given or (f"{url}/api" if url else None)


def _password(site: Site) -> str | None:
    if given_servers.url(site.home, "prefect") is not None:
        return os.environ.get("PREFECT_API_AUTH_STRING")
    return server_home.read(server_home.credentials_path(site.home)).get("prefect")
