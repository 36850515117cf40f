"""Which database the environment names, and what is said of one that will not do; without a
PostgreSQL. With one: test_postgres.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import databases, server_home
from flows.databases import Database
from flows.embedded import free_port
from flows.server_home import Known
from flows.servers import status
from flows.starting import down, up
from labeling.addresses import THIS_MACHINE
from labeling.errors import InputError

SECRET = "hunter2"
OURS = Database("db.example.org", "rankloop", "ann", password=SECRET)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("PREFECT_API_URL", "LABEL_STUDIO_URL", *databases.VARIABLE.values()):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / "home"
    down(tmp_path / "home")


def name_prefects(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RANKLOOP_PREFECT_DATABASE", url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://ann:{SECRET}@db.example.org/rankloop", OURS),
        (f"postgres://ann:{SECRET}@db.example.org:5432/rankloop", OURS),
        (
            "postgresql://a%40b:p%2F%23%3A%25@[::1]:5433/my%20db?sslmode=require",
            Database("::1", "my db", "a@b", 5433, "p/#:%", "require"),
        ),
        (
            "postgresql://ann@/rankloop?host=/Run/postgresql",
            Database("/Run/postgresql", "rankloop", "ann"),
        ),
    ],
)
def test_an_address_is_read_as_postgresqls_own_programs_read_it(
    url: str, expected: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_prefects(monkeypatch, url)
    assert databases.named("prefect", None) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"mysql://ann:{SECRET}@host/name", "does not begin with postgresql://"),
        (f"sqlite:///{SECRET}", "does not begin with postgresql://"),
        (f"postgresql://ann:{SECRET}@host", "names no database's name"),
        (f"postgresql://ann:{SECRET}@/name", "names no host"),
        ("postgresql://host/name", "names no user"),
        (f"postgresql://ann:x/{SECRET}@host/name", "names a port that is no number"),
        (f"postgresql://ann:12/{SECRET}@host/name", "names no user"),
        (f"postgresql://ann:b@12/{SECRET}@host/name", "has a slash too many"),
        (f"postgresql://ann:x#{SECRET}@host/name", "names a port that is no number"),
        (f"postgresql://ann@host/name?password={SECRET}", "has options besides host, sslmode"),
        ("postgresql://ann@host/name?sslmode=on", "has an sslmode that is none of disable"),
        ("postgresql://ann@host/name?sslrootcert=/nowhere", "has an sslrootcert that is no file"),
        (f"postgresql://ann:{SECRET}@[host/name", "Invalid IPv6 URL"),
    ],
)
def test_what_is_no_address_is_told_without_repeating_it(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_prefects(monkeypatch, url)
    with pytest.raises(InputError) as caught:
        databases.named("prefect", None)
    said = str(caught.value)
    assert said.startswith("RANKLOOP_PREFECT_DATABASE ")
    assert message in said
    assert databases.FORM in said
    assert SECRET not in said
    assert "\n" not in said


def test_the_certificate_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root.pem").touch()
    monkeypatch.chdir(tmp_path)
    name_prefects(monkeypatch, "postgresql://ann@host/name?sslrootcert=root.pem")
    named = databases.named("prefect", None)
    assert named is not None
    assert named.sslrootcert == str(tmp_path / "root.pem")


def test_what_was_named_stays_until_another_or_sqlite_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RANKLOOP_PREFECT_DATABASE", raising=False)
    assert databases.named("prefect", None) is None
    assert databases.named("prefect", OURS) == OURS
    name_prefects(monkeypatch, "")
    assert databases.named("prefect", OURS) == OURS
    name_prefects(monkeypatch, "sqlite")
    assert databases.named("prefect", OURS) is None


def test_the_home_remembers_it_and_status_tells_it_without_the_password(home: Path) -> None:
    home.mkdir()
    server_home.remember(home, "prefect", Known(4200, None, THIS_MACHINE, OURS))
    assert server_home.recall(home, "prefect").database == OURS
    assert (home / "servers.json").stat().st_mode & 0o777 == 0o600
    told = status(home)
    assert [s.database for s in told] == ["PostgreSQL ann@db.example.org:5432/rankloop", None]
    assert SECRET not in repr((OURS, told, server_home.recall(home, "prefect")))


def test_both_servers_on_one_database_are_refused_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, user in zip(databases.VARIABLE.values(), ("ann", "bob"), strict=True):
        monkeypatch.setenv(variable, f"postgresql://{user}:{SECRET}@host/name")
    with pytest.raises(InputError, match="name the same database: give each its own"):
        up(home)
    assert not (home / "servers.json").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_a_remembered_database_that_is_away_is_one_line_and_no_way_back_to_sqlite(
    home: Path, host: str
) -> None:
    home.mkdir()
    away = Database(host, "rankloop", "ann", free_port([]), SECRET)
    server_home.remember(home, "prefect", Known(None, None, THIS_MACHINE, away))
    with pytest.raises(ConnectionError) as caught:
        up(home, wanted=("prefect",))
    said = str(caught.value)
    assert f"{away}, cannot be reached" in said
    assert "RANKLOOP_PREFECT_DATABASE" in said
    assert SECRET not in said
    assert "\n" not in said
    assert not (home / "prefect").exists()
    assert server_home.recall(home, "prefect").database == away


def test_nothing_is_started_when_one_of_two_databases_will_not_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"127.0.0.1:{free_port([])}"
    monkeypatch.setenv("RANKLOOP_LABEL_STUDIO_DATABASE", f"postgresql://ann:{SECRET}@{where}/name")
    with pytest.raises(ConnectionError, match=r"Label Studio's database, .* cannot be reached"):
        up(home)
    assert not (home / "servers.json").exists()


FINE = {
    "version": 15,
    "encoding": "UTF8",
    "tables": True,
    "extensions": True,
    "there": ["plpgsql"],
    "available": ["plpgsql", "pg_trgm", "btree_gin"],
}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"version": 13}, "is PostgreSQL 13: upgrade it to 14 or newer"),
        ({"encoding": "SQL_ASCII"}, "has the encoding SQL_ASCII"),
        ({"tables": False}, "lets ann create no tables: `ALTER DATABASE rankloop OWNER TO ann`"),
        ({"extensions": False}, "lets ann create no extension"),
        ({"available": ["pg_trgm"]}, "has no extension btree_gin: install"),
        ({"available": []}, "has no extension pg_trgm and btree_gin: install"),
        ({"extensions": False, "there": ["pg_trgm", "btree_gin"]}, None),
        ({}, None),
    ],
)
def test_a_database_that_lacks_something_says_what_to_do(
    found: dict[str, Any], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(database: Database) -> dict[str, Any]:
        return FINE | found

    monkeypatch.setattr(databases, "_ask", ask)
    if message is None:
        return databases.check(OURS, "label_studio", "Label Studio")
    with pytest.raises(InputError) as caught:
        databases.check(OURS, "label_studio", "Label Studio")
    assert str(caught.value).startswith(f"Label Studio's database, {OURS}, ")
    assert message in str(caught.value)
