"""Most tests put a small program in Label Studio's place, so that starting takes no time; the
session's real servers prove that the real ones go the same way."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows import embedded, processes
from flows.launch import named_address
from flows.processes import Detached
from flows.server_status import describe_servers
from flows.servers import Servers, connect, default_home, status
from flows.starting import down, up
from labeling.addresses import Address
from labeling.config import Labeling
from labeling.errors import InputError

STAND_IN = f"""#!{sys.executable}
import http.server, os, signal, socket, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
host = sys.argv[sys.argv.index("--internal-host") + 1]
print("token", len(os.environ["LABEL_STUDIO_USER_TOKEN"]), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Token " + os.environ["LABEL_STUDIO_USER_TOKEN"]
        self.send_response(200 if self.path == "/health" or known else 401)
        self.end_headers()
    def log_message(self, *args): pass
"""
SERVE = """
class Server(http.server.HTTPServer):
    allow_reuse_address = True
Server((host, port), Handler).serve_forever()
"""


# A machine may have no network; all of 127.0.0.0/8 is its own.
OTHER_ADDRESS = next(
    (
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ),
    "127.0.0.2",
)


@pytest.fixture
def home(tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, with the session's Prefect given and Label Studio to be embedded."""
    monkeypatch.setenv("PREFECT_API_URL", servers.prefect.api_url)
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    yield tmp_path / "home"
    down(tmp_path / "home")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(body: str) -> None:
        program = tmp_path / "label-studio"
        program.write_text(STAND_IN + body)
        program.chmod(0o755)
        monkeypatch.setenv("RANKLOOP_LABEL_STUDIO", str(program))

    install(SERVE)
    return install


def label_studio_process(home: Path) -> Detached:
    return Detached(**json.loads((home / "servers.json").read_text())["label_studio"]["process"])


def test_up_twice_leaves_the_same_servers(servers: Servers, servers_home: Path) -> None:
    before = [(s.name, s.pid, s.url) for s in status(servers_home)]
    again = up(servers_home)
    assert again.prefect == servers.prefect
    assert again.label_studio.url == servers.label_studio.url
    assert [(s.name, s.pid, s.url) for s in status(servers_home)] == before
    assert all(s.ready and s.where == "embedded" and s.log for s in status(servers_home))


def test_the_login_is_given_only_the_first_time(servers: Servers, servers_home: Path) -> None:
    assert servers.label_studio.login is not None
    assert servers.label_studio.login.password not in repr(servers)
    assert up(servers_home).label_studio.login is None


def test_connect_finds_what_runs_and_starts_nothing(
    servers: Servers, servers_home: Path, tmp_path: Path
) -> None:
    found = connect(servers_home)
    assert found is not None
    assert found.prefect == servers.prefect
    assert connect(tmp_path / "nowhere") is None
    assert not (tmp_path / "nowhere").exists()


def test_our_own_address_in_the_environment_stays_embedded(
    servers: Servers, servers_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", servers.prefect.api_url)
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.label_studio.url)
    assert [s.where for s in status(servers_home)] == ["embedded", "embedded"]


def test_servers_listen_on_this_machine_only(servers: Servers, servers_home: Path) -> None:
    for server in status(servers_home):
        assert server.pid is not None
        sockets = psutil.Process(server.pid).net_connections(kind="tcp")
        listening = {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}


def test_label_studios_database_is_in_wal_mode(servers: Servers, servers_home: Path) -> None:
    header = (servers_home / "label-studio" / "label_studio.sqlite3").read_bytes()[:20]
    assert header[18:20] == b"\x02\x02"  # the file format's read and write versions: 2 is WAL


def test_secrets_are_private_and_stay_out_of_the_logs(servers: Servers, servers_home: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(servers_home) == 0o700
    assert mode(servers_home / "credentials.json") == 0o600
    assert servers.label_studio.login is not None
    for log in (path for path in (servers_home / "logs").rglob("*") if path.is_file()):
        text = log.read_text(errors="replace")
        assert servers.label_studio.token not in text
        assert servers.label_studio.login.password not in text


def test_down_stops_what_up_started_and_up_comes_back_to_the_same_port(
    home: Path, stand_in: Callable[[str], None]
) -> None:
    first = up(home)
    pid = label_studio_process(home).pid
    assert down(home) == ["Label Studio"]
    assert not psutil.pid_exists(pid)
    assert connect(home) is None
    assert down(home) == []
    second = up(home)
    assert second.label_studio.url == first.label_studio.url
    assert second.label_studio.token == first.label_studio.token


@pytest.mark.parametrize("bind", ["0.0.0.0", OTHER_ADDRESS])
def test_a_server_on_another_address_is_found_there_and_stays_there(
    home: Path, stand_in: Callable[[str], None], bind: str
) -> None:
    first = up(home, address=Address(bind)).label_studio
    pid = label_studio_process(home).pid
    listening = psutil.Process(pid).net_connections(kind="tcp")
    assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {bind}
    assert first.url.startswith("http://127.0.0.1:" if bind == "0.0.0.0" else f"http://{bind}:")
    (_, there) = status(home)
    assert (there.ready, there.url, there.pid) == (True, first.url, pid)
    assert "without TLS" in str(there.exposure) or bind.startswith("127.")
    # Without an address it stays as it is; also after a stop.
    assert up(home).label_studio.url == first.url
    assert label_studio_process(home).pid == pid
    down(home)
    assert up(home).label_studio.url == first.url


def test_an_environment_that_names_our_own_server_elsewhere_leaves_it_embedded(
    home: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = up(home, address=Address(OTHER_ADDRESS)).label_studio.url
    monkeypatch.setenv("LABEL_STUDIO_URL", url)
    assert status(home)[1].where == "embedded"


def test_a_config_that_names_no_address_leaves_it_as_it_is() -> None:
    assert named_address(Labeling()) is None
    assert named_address(Labeling(bind="0.0.0.0")) == Address("0.0.0.0")
    url = "https://rank.example.org"
    assert named_address(Labeling(public_url=url + "/")) == Address("127.0.0.1", url)
    assert named_address(Labeling(bind="127.0.0.1")) == Address()  # the way back


def test_another_address_restarts_the_server_on_the_same_port_and_says_so(
    home: Path, stand_in: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    first = up(home).label_studio
    pid = label_studio_process(home).pid
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    address = Address("127.0.0.1", "https://rank.example.org")
    for _ in range(2):
        found = up(home, address=address).label_studio
        assert (found.url, found.public_url) == (first.url, "https://rank.example.org")
    assert not psutil.pid_exists(pid)
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "restarted for 127.0.0.1 as https://rank.example.org" in said
    assert any("labelers: https://rank.example.org" in line for line in describe_servers(home))
    assert up(home, address=Address()).label_studio.public_url == first.url


def test_a_server_that_others_can_read_along_is_warned_of_each_time(
    home: Path, stand_in: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        up(home, address=Address("0.0.0.0"))
        assert "reads labelers' passwords" in caplog.text


def test_an_address_of_another_machine_is_an_input_error_and_stops_nothing(
    home: Path, stand_in: Callable[[str], None]
) -> None:
    up(home)
    pid = label_studio_process(home).pid
    with pytest.raises(InputError, match=r"labeling\.bind 192\.0\.2\.1 is no address of this"):
        up(home, address=Address("192.0.2.1"))
    assert label_studio_process(home).pid == pid
    assert psutil.pid_exists(pid)


def test_the_preferred_port_is_left_to_whoever_has_it(
    home: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setitem(embedded.PREFERRED_PORT, "label_studio", port)
        started = up(home)
    assert started.label_studio.url != f"http://127.0.0.1:{port}"


def test_a_remembered_port_that_was_taken_meanwhile_is_given_up(
    home: Path, stand_in: Callable[[str], None]
) -> None:
    port = int(up(home).label_studio.url.rsplit(":", 1)[1])
    down(home)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert up(home).label_studio.url != f"http://127.0.0.1:{port}"


def test_a_server_that_takes_another_port_is_found_there(
    home: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in(SERVE.replace("port)", "0)"))
    url = up(home).label_studio.url
    assert int(url.rsplit(":", 1)[1]) in processes.listening_ports(label_studio_process(home))
    found = connect(home)
    assert found is not None
    assert found.label_studio.url == url


def test_an_early_death_names_the_log_and_its_last_line(
    home: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in("\nsys.exit('the disk is full')")
    with pytest.raises(InputError) as error:
        up(home)
    message = str(error.value)
    assert "\n" not in message
    assert str(home / "logs" / "label-studio.log") in message
    assert "exit code 1" in message
    assert "the disk is full" in message
    stand_in(SERVE)
    assert up(home).label_studio.login is not None, "nobody has seen the login yet"


def test_a_server_that_never_gets_ready_is_an_error_and_can_be_stopped(
    home: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("\nsignal.pause()")
    monkeypatch.setattr(embedded, "READY_WITHIN_S", 1.0)
    with pytest.raises(InputError, match="not ready after 1 s"):
        up(home)
    assert down(home) == ["Label Studio"]


def test_a_stale_process_id_is_nobody_to_kill(home: Path, stand_in: Callable[[str], None]) -> None:
    up(home)
    down(home)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        try:
            known = json.loads((home / "servers.json").read_text())
            # The id of our process was given to a stranger, as after a reboot.
            known["label_studio"]["process"] = {"pid": stranger.pid, "created": 1.0, "mark": "x"}
            (home / "servers.json").write_text(json.dumps(known))
            assert [s.pid for s in status(home)] == [None, None]
            assert down(home) == []
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert up(home).label_studio.url


def gone(process: psutil.Process, patience_s: float = 10) -> bool:
    """Whether a killed process ends: the kernel takes a moment, and init another to reap it."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_down_ends_the_whole_group_even_after_its_leader_died(
    home: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in(
        "\nchild = subprocess.Popen([sys.executable, '-c', 'import signal\\n"
        "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\\n"
        "while True: signal.pause()'])\nprint('child', child.pid, flush=True)" + SERVE
    )
    up(home)
    leader = label_studio_process(home)
    (child,) = [p for p in processes.members(leader) if p.pid != leader.pid]
    os.kill(leader.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(leader.pid)], timeout=10)
    begun = time.monotonic()
    assert processes.stop(leader, patience_s=0.3)
    assert time.monotonic() - begun < 10
    assert gone(child)


def test_two_ups_at_once_start_one_server(home: Path, stand_in: Callable[[str], None]) -> None:
    code = (
        "import sys; from pathlib import Path; from flows.starting import up; up(Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    callers = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], cwd=root) for _ in range(3)
    ]
    assert [caller.wait(60) for caller in callers] == [0, 0, 0]
    mark = label_studio_process(home).mark
    leaders = 0
    for process in psutil.process_iter():
        try:
            leaders += process.environ().get("RANKLOOP_PROCESS") == mark
        except psutil.Error:
            continue
    assert leaders == 1


def test_a_missing_label_studio_says_what_to_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RANKLOOP_LABEL_STUDIO", raising=False)
    monkeypatch.setattr(embedded, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"make \.venv-label-studio"):
        up(home)


def test_lost_credentials_are_named(home: Path, stand_in: Callable[[str], None]) -> None:
    up(home)
    (home / "credentials.json").unlink()
    with pytest.raises(InputError, match=r"credentials\.json"):
        up(home)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"LABEL_STUDIO_URL": "{url}"}, "LABEL_STUDIO_API_KEY is not"),
        ({"LABEL_STUDIO_URL": "{url}", "LABEL_STUDIO_API_KEY": "0" * 40}, "refuses the token"),
        (
            {"LABEL_STUDIO_URL": "http://127.0.0.1:1", "LABEL_STUDIO_API_KEY": "0" * 40},
            "cannot be reached",
        ),
        ({"PREFECT_API_URL": "http://127.0.0.1:1/api"}, "PREFECT_API_URL"),
    ],
)
def test_a_given_server_that_cannot_be_used_is_an_input_error(
    home: Path,
    servers: Servers,
    stand_in: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    message: str,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value.format(url=servers.label_studio.url))
    with pytest.raises(InputError, match=message) as error:
        up(home)
    assert "\n" not in str(error.value)


def test_given_servers_are_used_and_nothing_is_started(
    home: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", servers.label_studio.url + "/")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", servers.label_studio.token)
    used = up(home)
    assert used.prefect.api_url == servers.prefect.api_url
    assert used.label_studio.url == servers.label_studio.url
    assert used.label_studio.login is None
    assert not (home / "servers.json").exists()
    assert [(s.where, s.ready) for s in status(home)] == [("external", True)] * 2
    assert down(home) == []
    assert connect(home) == used


def test_the_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKLOOP_HOME", raising=False)
    assert default_home() == tmp_path / ".rankloop"
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path / "other"))
    assert default_home() == tmp_path / "other"


def test_importing_it_loads_neither_prefect_nor_the_sdk_nor_torch() -> None:
    code = (
        "import sys, flows.servers; "
        "print([m for m in ('prefect', 'label_studio_sdk', 'torch') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
