"""PostgreSQL in SQLite's place, for the embedded servers: which database the environment names, and
whether it will do. What was named once is remembered by server_home.py."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from labeling.errors import InputError

logger = logging.getLogger(__name__)

VARIABLE = {
    "prefect": "RANKLOOP_PREFECT_DATABASE",
    "label_studio": "RANKLOOP_LABEL_STUDIO_DATABASE",
}
FORM = "postgresql://user:password@host:5432/name"
_SQLITE = "sqlite"
_PORT = 5432
_OLDEST = 14  # Label Studio's Django asks for it
_EXTENSIONS = {"prefect": ("pg_trgm",), "label_studio": ("pg_trgm", "btree_gin")}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OPTIONS = ("host", "sslmode", "sslrootcert")
_CONNECT_WITHIN_S = 10.0
_RISES_WITHIN_S = 30.0


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database. `host` may be the folder of its Unix socket. Without a password, the
    server's rules or `~/.pgpass` let us in."""

    host: str
    name: str
    user: str
    port: int = _PORT
    password: str = field(default="", repr=False)
    sslmode: str = ""
    sslrootcert: str = ""

    def __str__(self) -> str:
        return f"PostgreSQL {self.user}@{self.host}:{self.port}/{self.name}"

    @property
    def place(self) -> tuple[str, int, str]:
        """What tells it from other databases, whoever asks and however."""
        return self.host, self.port, self.name

    def variables(self) -> dict[str, str]:
        """The environment that PostgreSQL's clients read, both servers' among them. A password
        there needs no escaping, and is in no address that a server may log."""
        given = {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": self.name,
            "PGPASSWORD": self.password,
            "PGSSLMODE": self.sslmode,
            "PGSSLROOTCERT": self.sslrootcert,
        }
        return {name: value for name, value in given.items() if value}


def named(server: str, before: Database | None) -> Database | None:
    """The database that the environment names for this server, else the one `before`. None is
    SQLite.

    Raises InputError, without the password, for what is no address.
    """
    variable = VARIABLE[server]
    given = os.environ.get(variable, "").strip()
    if not given:
        return before
    if given == _SQLITE:
        return None
    try:
        return _parsed(urlsplit(given))
    except ValueError as error:
        # Nothing of what was given is repeated: any part may be a password's.
        raise InputError(
            f"{variable} {error}: give {FORM}, or {_SQLITE}; in a password write %40 for @, "
            "%2F for /, %23 for #, %3F for ? and %25 for %"
        ) from None


def _parsed(parts: SplitResult) -> Database:
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("does not begin with postgresql://")
    try:
        port = parts.port or _PORT
    except ValueError:
        raise ValueError("names a port that is no number") from None
    options = parse_qs(parts.query, keep_blank_values=True)
    if parts.fragment or any(name not in _OPTIONS for name in options):
        raise ValueError(f"has options besides {', '.join(_OPTIONS)}")
    first = {name: values[0] for name, values in options.items()}
    host, name = parts.hostname or first.get("host", ""), parts.path.removeprefix("/")
    for what, value in (("host", host), ("user", parts.username), ("database's name", name)):
        if not value:
            raise ValueError(f"names no {what}")
    if "/" in name:
        raise ValueError("has a slash too many")
    mode, root = first.get("sslmode", ""), first.get("sslrootcert", "")
    if mode and mode not in _SSL_MODES:
        raise ValueError(f"has an sslmode that is none of {', '.join(_SSL_MODES)}")
    if root and not Path(root).is_file():
        raise ValueError("has an sslrootcert that is no file")
    return Database(
        host=host,
        name=unquote(name),
        user=unquote(parts.username or ""),
        port=port,
        password=unquote(parts.password or ""),
        sslmode=mode,
        # The servers run in folders of their own.
        sslrootcert=str(Path(root).resolve()) if root else "",
    )


def check_apart(databases: Iterable[Database | None]) -> None:
    """Raises InputError when two servers are to use one database."""
    places = [database.place for database in databases if database]
    if len(set(places)) < len(places):
        raise InputError(
            f"{' and '.join(VARIABLE.values())} name the same database: give each its own"
        )


def tell_of_move(title: str, before: Database | None, now: Database | None) -> None:
    """Warn that a server begins with what is in another database; not of another password."""
    if before and now and before.place == now.place:
        return
    logger.warning(
        "%s goes from %s to %s: what is in the one stays there and is not copied; "
        "docs/postgresql.md says what comes along by itself",
        title,
        before or "SQLite",
        now or "SQLite",
    )


def check(database: Database, server: str, title: str) -> None:
    """Ask the database whether the server can use it.

    Raises ConnectionError when it cannot be reached, InputError when it refuses or lacks something;
    never with the password.
    """
    import asyncpg  # noqa: PLC0415 - comes with Prefect; only who uses PostgreSQL waits for it

    what = f"{title}'s database, {database},"
    hint = f"or name another in {VARIABLE[server]}"
    try:
        found = asyncio.run(_ask(database))
    except ssl.SSLError as error:
        raise InputError(
            f"{what} cannot be used with TLS ({_said(error)}): correct sslmode or sslrootcert, "
            f"{hint}"
        ) from None
    except (OSError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError) as error:
        raise ConnectionError(
            f"{what} cannot be reached ({_said(error)}): start PostgreSQL, {hint}"
        ) from None
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        raise InputError(
            f"{what} refuses us ({_said(error)}): correct the user or the password in "
            f"{VARIABLE[server]}"
        ) from None
    except asyncpg.InvalidCatalogNameError:
        raise InputError(
            f"{what} does not exist: `createdb --owner {database.user} {database.name}`, {hint}"
        ) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise InputError(
            f"{what} cannot be used ({type(error).__name__}: {_said(error)}): see to it, {hint}"
        ) from None
    if lack := _lack(found, database, _EXTENSIONS[server]):
        raise InputError(f"{what} {lack}, {hint}")


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


async def _ask(database: Database) -> Mapping[str, Any]:
    connection = await _connected(database)
    try:
        return dict(
            await connection.fetchrow(
                "select current_setting('server_version_num')::int / 10000 as version,"
                " current_setting('server_encoding') as encoding,"
                " has_schema_privilege('public', 'CREATE') as tables,"
                " has_database_privilege(current_database(), 'CREATE') as extensions,"
                " array(select extname::text from pg_extension) as there,"
                " array(select name::text from pg_available_extensions) as available"
            )
        )
    finally:
        await connection.close(timeout=_CONNECT_WITHIN_S)


async def _connected(database: Database) -> Any:
    """A connection. A PostgreSQL that is starting is waited for: the machine may be, too."""
    import asyncpg  # noqa: PLC0415

    deadline = time.monotonic() + _RISES_WITHIN_S
    while True:
        try:
            return await asyncpg.connect(
                f"postgresql://?sslrootcert={quote(database.sslrootcert)}"
                if database.sslrootcert
                else None,
                host=database.host,
                port=database.port,
                user=database.user,
                password=database.password or None,
                database=database.name,
                ssl=database.sslmode or None,
                timeout=_CONNECT_WITHIN_S,
            )
        except asyncpg.CannotConnectNowError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


def _lack(found: Mapping[str, Any], database: Database, needed: tuple[str, ...]) -> str | None:
    if found["version"] < _OLDEST:
        return f"is PostgreSQL {found['version']}: upgrade it to {_OLDEST} or newer"
    if found["encoding"] != "UTF8":
        return (
            f"has the encoding {found['encoding']}: make it anew with `createdb --encoding UTF8 "
            "--template template0`"
        )
    if not found["tables"]:
        return (
            f"lets {database.user} create no tables: `ALTER DATABASE {database.name} OWNER TO "
            f"{database.user}`"
        )
    missing = [extension for extension in needed if extension not in found["there"]]
    if absent := [extension for extension in missing if extension not in found["available"]]:
        return f"has no extension {' and '.join(absent)}: install PostgreSQL's contrib package"
    if missing and not found["extensions"]:
        return (
            f"lets {database.user} create no extension: `ALTER DATABASE {database.name} OWNER TO "
            f"{database.user}`"
        )
    return None
