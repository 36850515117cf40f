"""Both embedded servers on a real PostgreSQL, with TLS and a password that needs escaping. Skipped
where PostgreSQL's programs are not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from flows import answers, databases, freezing, publication
from flows.databases import Database
from flows.servers import Servers, status
from flows.starting import down, up
from labeling.config import Labeling
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.records import read_rankings
from tests.conftest import GIVEN_SERVERS
from tests.flows.ranked_round import ANN, publish_round, rank, tasks, until
from tests.postgres import Cluster, programs

BOB = "bob@example.org"
PASSWORD = "p@ss:w/rd %41#?&$é"
FOUND = programs()
pytestmark = pytest.mark.skipif(
    FOUND is None,
    reason="PostgreSQL's programs (initdb, postgres) are neither in PATH nor in "
    "/usr/lib/postgresql, so the servers were not tried on it",
)
# Runs the flow that the first argument names, if any; prints name and state of all runs.
PREFECT = """
import sys
from pathlib import Path
from flows import launch, servers
launch.set_prefect_environment(servers.connect(Path(sys.argv[1])))
from prefect import flow, get_client
for name in sys.argv[2:]:
    flow(lambda: None, name=name, flow_run_name=name)()
with get_client(sync_client=True) as client:
    print(sorted((run.name, run.state_name) for run in client.read_flow_runs()))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    assert FOUND is not None
    made = Cluster(FOUND)
    made.start()
    try:
        password = PASSWORD.replace("'", "''")
        for name in ("prefect", "label_studio"):
            made.ask(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
            made.ask(f"CREATE DATABASE {name} OWNER {name}")
        yield made
    finally:
        made.leave()


def flow_runs(home: Path, *names: str) -> str:
    command = (sys.executable, "-c", PREFECT, str(home), *names)
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_round_moves_there_and_both_servers_keep_what_they_hold_when_anything_restarts(
    cluster: Cluster, label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    on_sqlite = publish_round(label_studio, tmp_path)
    rank(label_studio, on_sqlite, tasks()[0])
    answers.look(label_studio, on_sqlite, tasks())  # which keeps a snapshot
    for name in GIVEN_SERVERS:
        monkeypatch.delenv(name, raising=False)
    for server, variable in databases.VARIABLE.items():
        monkeypatch.setenv(variable, cluster.url(server, server, PASSWORD))
    try:
        first = up(home)
        there = client(first)
        published = publication.publish(
            there, on_sqlite.project.title, Labeling(), on_sqlite.completions, on_sqlite.folder
        )
        assert there.count(published.project).answers == 1
        rank(there, published, tasks()[1], email=BOB)
        assert flow_runs(home, "one") == "[('one', 'Completed')]"

        # They are really there, and through TLS alone.
        assert cluster.ask("select count(*) from task_completion", "label_studio") == [2]
        assert cluster.ask("select name from flow_run", "prefect") == ["one"]
        assert cluster.ask(
            "select distinct s.ssl from pg_stat_ssl s join pg_stat_activity a using (pid)"
            " where a.usename in ('prefect', 'label_studio')"
        ) == [True]
        assert not [*home.rglob("*.sqlite3*"), *home.rglob("*.db*")]

        cluster.crash()
        with pytest.raises(ConnectionError, match=r"Prefect's database, .* cannot be reached"):
            up(home)
        cluster.start()
        until(lambda: counts_again(there, published))
        assert flow_runs(home, "two") == "[('one', 'Completed'), ('two', 'Completed')]"

        # As from a cron job, whose environment names nothing.
        down(home)
        for variable in databases.VARIABLE.values():
            monkeypatch.delenv(variable)
        assert up(home).label_studio.url == first.label_studio.url
        told = [str(server.database) for server in status(home)]
        where = f"127.0.0.1:{cluster.port}"
        assert told == [
            f"PostgreSQL prefect@{where}/prefect",
            f"PostgreSQL label_studio@{where}/label_studio",
        ]
        assert flow_runs(home) == "[('one', 'Completed'), ('two', 'Completed')]"
        seen = answers.look(there, published, tasks())
        frozen = freezing.freeze(published, seen.snapshot, published.folder / "labels.parquet")
        assert {r.labeler for r in read_rankings(frozen.output)} == {ANN, BOB}
        for log in (home / "logs").iterdir():
            assert PASSWORD not in log.read_text(errors="replace")
        key = tuple(first.prefect.access.split(":"))
        settings = httpx.get(f"{first.prefect.api_url}/admin/settings", auth=key)
        assert settings.status_code == 200
        assert PASSWORD not in settings.text
    finally:
        down(home)


def client(servers: Servers) -> LabelStudio:
    assert servers.label_studio is not None
    return LabelStudio(servers.label_studio.url, servers.label_studio.token)


def counts_again(there: LabelStudio, published: publication.Published) -> bool:
    try:
        return there.count(published.project).answers == 2
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "wrong"}, "refuses us (password authentication failed"),
        ({"user": "stranger"}, "refuses us (password authentication failed"),
        ({"sslmode": "disable"}, "refuses us (no pg_hba.conf entry"),
        ({"name": "absent"}, "does not exist: `createdb --owner label_studio absent`"),
        ({"name": "of_others"}, "lets label_studio create no tables"),
        ({"name": "half"}, "lets label_studio create no extension"),
        ({"name": "ascii"}, "has the encoding SQL_ASCII"),
        ({"sslrootcert": __file__}, "cannot be used with TLS"),
        ({"host": "localhost"}, None),
        ({}, None),
    ],
)
def test_a_database_that_will_not_do_is_one_line_without_the_password(
    cluster: Cluster,
    prepared: None,
    change: dict[str, str],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = cluster.url("label_studio", "label_studio", PASSWORD)
    monkeypatch.setenv("RANKLOOP_LABEL_STUDIO_DATABASE", url)
    named = databases.named("label_studio", None)
    assert isinstance(named, Database)
    database = replace(named, **change)  # type: ignore[arg-type]
    if message is None:
        return databases.check(database, "label_studio", "Label Studio")
    with pytest.raises(InputError) as caught:
        databases.check(database, "label_studio", "Label Studio")
    said = str(caught.value)
    assert said.startswith(f"Label Studio's database, {database}, {message}")
    assert "RANKLOOP_LABEL_STUDIO_DATABASE" in said
    assert PASSWORD not in said
    assert "\n" not in said


@pytest.fixture(scope="module")
def prepared(cluster: Cluster) -> None:
    cluster.ask("CREATE DATABASE of_others")
    cluster.ask("CREATE DATABASE half")
    cluster.ask("GRANT CREATE ON SCHEMA public TO label_studio", "half")
    cluster.ask("CREATE DATABASE ascii OWNER label_studio ENCODING 'SQL_ASCII' TEMPLATE template0")
