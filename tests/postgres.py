"""A PostgreSQL of the tests' own: a cluster in a temporary folder, on a free port of 127.0.0.1,
which lets in with TLS and a password alone."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from flows.embedded import free_port
from tests.tls_proxy import make_certificate

_SETTINGS = {"ssl": "on", "ssl_cert_file": "server.pem", "ssl_key_file": "server.key"}
_DONT_WAIT_FOR_THE_DISK = {"fsync": "off", "full_page_writes": "off"}
_RULES = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"


def programs() -> Path | None:
    """The folder with PostgreSQL's programs: that of the PATH, else Debian's newest."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(debian, key=lambda f: int(f.parent.name), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


class Cluster:
    """`certificate` is what its clients have to trust."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="rankloop-pg-"))
        self._as: dict[str, Any] = {"cwd": self._folder}
        self.certificate = self._folder / "server.pem"
        self.port = free_port([])
        if os.geteuid() == 0:  # it refuses to run as root
            account = _unprivileged()
            self._as |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        data = self._folder / "data"
        subprocess.run(
            (programs / "initdb", "-D", data, "-U", "postgres", "-E", "UTF8", "--no-locale", "-N"),
            check=True,
            capture_output=True,
            **self._as,
        )
        owner = data.stat()
        make_certificate(self.certificate, self._folder / "server.key")
        for file in ("server.pem", "server.key"):
            os.chown(self._folder / file, owner.st_uid, owner.st_gid)
        (self._folder / "server.key").chmod(0o600)
        (data / "pg_hba.conf").write_text(_RULES)
        settings = _SETTINGS | _DONT_WAIT_FOR_THE_DISK
        settings |= {
            name: str(self._folder / settings[name]) for name in settings if "_file" in name
        }
        settings |= {"unix_socket_directories": str(self._folder), "port": str(self.port)}
        settings |= {"listen_addresses": "127.0.0.1"}
        self._command = [str(programs / "postgres"), "-D", str(data)]
        self._command += [word for name in settings for word in ("-c", f"{name}={settings[name]}")]

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ask("select 1")
                return
            except (OSError, asyncpg.PostgresError):
                ended = self._process.poll()
                log_text = (self._folder / "log").read_text(errors="replace")
                assert ended is None, log_text
                assert time.monotonic() < deadline, log_text
                time.sleep(0.05)

    def crash(self) -> None:
        """Every connection is cut, and nothing is written down."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def leave(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
        shutil.rmtree(self._folder)

    def ask(self, statement: str, database: str = "postgres") -> list[Any]:
        """What the superuser gets: rows of one column."""
        return asyncio.run(self._ask(statement, database))

    async def _ask(self, statement: str, database: str) -> list[Any]:
        connection = await asyncpg.connect(
            host=str(self._folder), port=self.port, user="postgres", database=database
        )
        try:
            return [row[0] for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    def url(self, name: str, user: str, password: str, options: str = "") -> str:
        """As a person would write it; the certificate is checked."""
        secure = f"sslmode=verify-full&sslrootcert={quote(str(self.certificate))}"
        where = f"{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{name}"
        return f"postgresql://{where}?{options or secure}"


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("there is neither an account postgres nor one nobody")
