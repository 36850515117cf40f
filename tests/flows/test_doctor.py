"""`rankloop doctor` on what needs no worker: each finding is made true once. What Prefect holds,
and a site with nothing wrong, are in test_doctor_prefect.py."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from flows import (
    doctor,
    doctor_config,
    doctor_machine,
    doctor_servers,
    dry_run,
    embedded,
    processes,
    server_home,
)
from flows.databases import Database
from flows.finding import Finding, Plans, Site
from flows.memory import GB
from flows.server_home import Known, Process
from flows.servers import Servers
from labeling.addresses import Address
from tests import tiny

CONFIG = "name: desk\nmodel: model\nprompts: {path: prompts.jsonl}\nmax_new_tokens: 8\n"
GIVEN = ("PREFECT_API_URL", "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "RANKLOOP_LABEL_STUDIO")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A home that nothing was started in, and a folder with a config."""
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model")
    rows = [{"prompt": f"hello the desk {word}"} for word in tiny.WORDS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(CONFIG)
    home = tmp_path / ".rankloop"
    home.mkdir(mode=0o700)
    return Site(home, tmp_path)


@pytest.fixture
def running(site: Site, servers: Servers, servers_home: Path) -> Site:
    """The site, as if the session's servers were its own: their records and keys, but no files."""
    for name in ("servers.json", "credentials.json"):
        shutil.copy(servers_home / name, site.home)
    return site


def complaint(findings: Iterable[Finding]) -> Finding:
    """The only one, which must say what to do."""
    (found,) = [finding for finding in findings if finding.mark != "ok"]
    assert found.to_do or ": " in found.what, found
    return found


def is_fine(findings: Iterable[Finding]) -> bool:
    return {finding.mark for finding in findings} == {"ok"}


def listing(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_the_round_it_looks_at_is_the_one_that_a_run_would_go_on_with(site: Site) -> None:
    folder = site.folder / "runs" / "desk" / "rounds" / "000"
    folder.mkdir(parents=True)
    stopped = {"status": "complete", "stopped_after": "labels"}
    (folder / "round.json").write_text(json.dumps(stopped))
    path = site.folder / "config.yaml"
    assert doctor_config.load(site, path).number == 0
    path.write_text(f"{CONFIG}stop_after: labels\n")
    assert doctor_config.load(site, path).number == 1


# --- the whole ------------------------------------------------------------------------------------


def run_doctor(site: Site, *arguments: str) -> tuple[int, list[str], str]:
    hidden = ("PREFECT", "LABEL", "RANKLOOP")
    done = subprocess.run(
        (sys.executable, "-m", "flows.cli", "doctor", *arguments),
        cwd=site.folder,
        env={k: v for k, v in os.environ.items() if not k.startswith(hidden)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_with_everything_down_it_says_so_in_lines_and_changes_nothing(site: Site) -> None:
    site.home.rmdir()
    before = listing(site.folder)
    code, lines, errors = run_doctor(site, "config.yaml")
    assert (code, errors) == (2, "")
    *findings, last = lines
    assert all(line.startswith(("ok ", "warning ", "wrong ")) for line in findings)
    for said in (
        "wrong    Prefect is not running → `rankloop up` starts it",
        "wrong    Label Studio is not running → `rankloop up` starts it",
        "wrong    no worker is at work: nothing submitted or scheduled runs → `rankloop up` starts "
        "one",
        "ok       config.yaml: what round 0 reads is there",
    ):
        assert said in findings
    assert last.startswith("3 wrong")
    assert listing(site.folder) == before


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "LABEL_STUDIO_URL"])
def test_a_password_in_a_servers_address_is_told_once_and_not_shown(
    name: str, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "http://ann:hidden-word@127.0.0.1:1/api")
    assert not doctor.show(None, Console(width=140))
    said = capsys.readouterr().out
    assert said.count(f"wrong    {name} holds a name or a password before its '@'") == 1
    assert "ok       home " in said
    assert "itself failed" not in said
    assert "hidden-word" not in said


def test_a_wrong_config_is_a_finding_among_the_others(site: Site) -> None:
    (site.folder / "config.yaml").write_text(CONFIG + "ppo: {kl: 1}\n")
    found = list(doctor.examine(site, site.folder / "config.yaml"))
    assert any(f.mark == "wrong" and "no field 'kl' in 'ppo'" in f.what for f in found)
    assert any("Prefect is not running" in f.what for f in found)


def test_a_damaged_file_of_the_home_is_told_once(site: Site) -> None:
    (site.home / "servers.json").write_text("{")
    found = [f.what for f in doctor.examine(site) if "servers.json is not JSON" in f.what]
    assert len(found) == 1


def test_a_check_that_fails_is_a_finding_and_not_the_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Site) -> Iterator[Finding]:
        yield from ()
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr(doctor, "ALWAYS", (broken, doctor_servers.home_folder))
    first, second, *_ = doctor.examine(site)
    assert first.mark == "wrong"
    assert "'broken' itself failed (ZeroDivisionError: no luck)" in first.what
    assert second.mark == "ok"


# --- packages and the machine ---------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Have a package in another version than it is, or not at all."""

    def pretend(package: str, version: str | None) -> None:
        before = metadata.version

        def told(name: str) -> str:
            if name != package:
                return before(name)
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", told)

    return pretend


def test_packages_as_pinned_are_fine(site: Site) -> None:
    assert is_fine(doctor_machine.packages(site))
    assert is_fine(doctor_machine.python(site))


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        (
            "sqlalchemy",
            "2.1.0",
            "sqlalchemy is 2.1.0, and <2.1,>=2.0 is needed (with 2.1 schedules",
        ),
        ("fastapi", "0.155.1", "(0.155 and newer break Prefect's server)"),
        ("prefect", "3.9.0", "prefect is 3.9.0, and ==3.8.8 is needed"),
        ("trl", None, "trl is not installed, and <1.17,>=1.16 is needed"),
    ],
)
def test_a_package_that_breaks_something_is_wrong(
    site: Site,
    pretend: Callable[[str, str | None], None],
    package: str,
    version: str | None,
    said: str,
) -> None:
    pretend(package, version)
    found = complaint(doctor_machine.packages(site))
    assert found.mark == "wrong"
    assert said in found.what


def test_other_versions_than_pinned_are_a_warning(
    site: Site, pretend: Callable[[str, str | None], None]
) -> None:
    pretend("httpx", "0.99")
    pretend("torch", "2.13.0+cu130")  # another build is the same version
    found = complaint(doctor_machine.packages(site))
    assert found.mark == "warning"
    assert found.what == "not as pinned: httpx 0.99 (pinned: 0.28.1)"


def test_another_python_is_wrong(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.14.1")
    assert "Python is 3.14.1" in complaint(doctor_machine.python(site)).what


def test_label_studios_own_environment_is_looked_at(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_fine(doctor_machine.label_studio_package(site))
    packages = site.folder / "other" / "lib" / "python3.11" / "site-packages"
    (packages / "label_studio-1.0.0.dist-info").mkdir(parents=True)
    (packages / "label_studio-1.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: label-studio\nVersion: 1.0.0\n"
    )
    program = site.folder / "other" / "bin" / "label-studio"
    program.parent.mkdir()
    program.touch()
    monkeypatch.setenv("RANKLOOP_LABEL_STUDIO", str(program))
    found = complaint(doctor_machine.label_studio_package(site))
    assert found.what.startswith("Label Studio is 1.0.0 (pinned: ")
    program.unlink()
    findings = list(doctor.examine(site))
    assert any("RANKLOOP_LABEL_STUDIO names" in f.what for f in findings if f.mark == "wrong")


@pytest.mark.parametrize(("free", "mark"), [(0.5, "wrong"), (3, "warning"), (50, "ok")])
def test_a_disk_that_is_nearly_full_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, free: float, mark: str
) -> None:
    disk = namedtuple("disk", "total used free")(0, 0, free * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    (found,) = doctor_machine.disk(site)  # one line for one disk
    assert found.mark == mark


def test_little_memory_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for available, mark in ((0.4 * GB, "warning"), (9 * GB, "ok")):
        memory = namedtuple("memory", "total available")(16 * GB, available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        (found,) = doctor_machine.memory(site)
        assert found.mark == mark


def test_a_gpu_that_is_not_used_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, pretend: Callable[[str, str | None], None]
) -> None:
    program = site.folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 4, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pretend("torch", "2.13.0+cu130")
    (found,) = doctor_machine.gpu(site)
    assert found.mark == "ok"
    assert "GPU: NVIDIA H100 80GB HBM3 (4 of 81559 MiB used)" in found.what
    pretend("torch", "2.13.0+cpu")
    assert "built for the CPU alone" in complaint(doctor_machine.gpu(site)).what
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES=''" in complaint(doctor_machine.gpu(site)).what
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert "`nvidia-smi` shows no GPU" in complaint(doctor_machine.gpu(site)).what


# --- the home -------------------------------------------------------------------------------------


def test_a_home_or_a_secret_that_others_can_read_is_wrong(running: Site) -> None:
    assert is_fine(doctor_servers.home_folder(running))
    assert is_fine(doctor_servers.private_files(running))
    running.home.chmod(0o755)
    found = complaint(doctor_servers.home_folder(running))
    assert found == Finding(
        "wrong", f"{running.home} is open to others (mode 0755)", f"`chmod 700 '{running.home}'`"
    )
    credentials = running.home / "credentials.json"
    credentials.chmod(0o640)
    found = complaint(doctor_servers.private_files(running))
    assert found.mark == "wrong"
    subprocess.run(["sh", "-c", found.to_do.strip("`")], check=True)
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    assert is_fine(doctor_servers.private_files(running))


def test_a_home_that_cannot_be_is_told(site: Site) -> None:
    (site.folder / "file").touch()
    found = list(doctor.examine(Site(site.folder / "file" / "home", site.folder)))
    assert any("file is a file" in f.what and "set RANKLOOP_HOME" in f.what for f in found)


# --- servers --------------------------------------------------------------------------------------


def test_servers_that_answer_and_let_us_in_are_fine(running: Site) -> None:
    assert is_fine(doctor_servers.servers_answer(running))
    assert is_fine(doctor_servers.tokens(running))


@pytest.fixture
def sleeper(site: Site) -> Iterator[Callable[..., processes.Detached]]:
    """Starts processes that do nothing."""
    started: list[processes.Detached] = []

    def start(**environment: str) -> processes.Detached:
        command = (shutil.which("sleep") or "sleep", "60")
        process = processes.start(command, environment, site.folder, site.folder / "log", "mark")
        started.append(process)
        return process

    yield start
    for process in started:
        processes.stop(process)


def test_a_server_that_hangs_is_told_from_one_that_is_not_running(
    site: Site, sleeper: Callable[..., processes.Detached]
) -> None:
    process = sleeper()
    server_home.remember(site.home, "prefect", Known(embedded.free_port([]), process))
    hangs, down = doctor_servers.servers_answer(site)
    assert (hangs.mark, down.mark) == ("wrong", "wrong")
    assert f"Prefect runs (process {process.pid}) and does not answer" in hangs.what
    assert "prefect.log" in hangs.to_do
    assert down.what == "Label Studio is not running"


def test_a_server_that_others_can_listen_to_is_a_warning(running: Site) -> None:
    known = server_home.recall(running.home, "label_studio")
    open_to_all = Known(known.port, known.process, Address("0.0.0.0"))
    server_home.remember(running.home, "label_studio", open_to_all)
    found = complaint(doctor_servers.servers_answer(running))
    assert found.mark == "warning"
    assert "without TLS" in found.what


def test_keys_that_the_servers_refuse_are_wrong(running: Site) -> None:
    path = running.home / "credentials.json"
    known = json.loads(path.read_text())
    embedded.write_private(path, known | {"prefect": "rankloop:other", "token": "0" * 40})
    first, second = doctor_servers.tokens(running)
    assert (first.mark, second.mark) == ("wrong", "wrong")
    assert "Prefect" in first.what
    assert "refuses the password" in first.what
    assert "refuses the token" in second.what


def test_lost_keys_are_told_and_none_are_made_up(running: Site) -> None:
    (running.home / "credentials.json").unlink()
    for found in doctor_servers.tokens(running):
        assert found.mark == "wrong"
        assert "lacks what opens" in found.what
    list(doctor.examine(running))
    assert not (running.home / "credentials.json").exists()


class OldServer(http.server.BaseHTTPRequestHandler):
    """A Prefect whose clock is an hour late."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        import time  # noqa: PLC0415

        return super().date_time_string(int(time.time()) - 3600)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_clock_that_differs_from_a_servers_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OldServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    try:
        assert list(doctor_servers.clocks(site)) == []  # this machine has one clock
        monkeypatch.setattr(doctor_servers, "is_this_machine", lambda _: False)
        found = complaint(doctor_servers.clocks(site))
    finally:
        server.shutdown()
        server.server_close()
    assert found.what == "this machine's clock is 60 min ahead of that of Prefect's"


# --- databases ------------------------------------------------------------------------------------


def test_databases_that_are_there_are_fine(running: Site, servers_home: Path) -> None:
    there = Site(servers_home, running.folder)
    assert is_fine(doctor_servers.database_files(there))


@pytest.mark.parametrize(("content", "said"), [(None, "is gone"), (b"no database", "is damaged")])
def test_a_database_that_is_lost_or_damaged_is_wrong(
    site: Site, content: bytes | None, said: str
) -> None:
    server_home.remember(site.home, "prefect", Known(4200))
    path = site.home / "prefect" / "prefect.db"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    found = complaint(doctor_servers.database_files(site))
    assert found.what == f"Prefect's database {path} {said}"


def test_a_database_is_read_while_its_server_runs(running: Site, servers_home: Path) -> None:
    path = running.home / "prefect" / "prefect.db"
    path.parent.mkdir()
    whole = (servers_home / "prefect" / "prefect.db").read_bytes()
    path.write_bytes(whole[:4096] + bytes(b ^ 0xFF for b in whole[4096:40960]) + whole[40960:])
    first, *_ = [f for f in doctor_servers.database_files(running) if "prefect.db" in f.what]
    assert first.mark == "wrong"


def test_a_postgresql_that_is_away_is_told_without_its_password(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = embedded.free_port([])
    database = Database("127.0.0.1", "rankloop", "ann", port, "hidden-word")
    server_home.remember(site.home, "prefect", Known(4200, database=database))
    found = complaint(doctor_servers.database_files(site))
    assert "cannot be reached" in found.what
    assert "hidden-word" not in found.what
    monkeypatch.setenv("RANKLOOP_PREFECT_DATABASE", "sqlite")
    first, _ = doctor_servers.database_files(site)
    assert first.mark == "warning"
    assert "names another database than Prefect runs on" in first.what


# --- the worker's process -------------------------------------------------------------------------


def test_a_worker_that_is_gone_or_asks_elsewhere_is_wrong(
    site: Site, sleeper: Callable[..., processes.Detached]
) -> None:
    worker: Process = "worker"
    embedded.write_private(site.home / "credentials.json", {"prefect": "rankloop:hidden-word"})
    server_home.remember(site.home, "prefect", Known(4200))
    told = {
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_API_AUTH_STRING": "rankloop:hidden-word",
    }
    for changed, said in (
        ({}, None),
        ({"PREFECT_API_URL": "http://127.0.0.1:4999/api"}, "asks Prefect at http://127.0.0.1:4999"),
        ({"PREFECT_API_AUTH_STRING": "rankloop:other"}, "knows another password of Prefect"),
    ):
        process = sleeper(**(told | changed))
        server_home.remember(site.home, worker, Known(process=process))
        findings = list(doctor_servers.worker_process(site))
        assert "hidden-word" not in str(findings)
        if said is None:
            assert is_fine(findings)
        else:
            assert said in complaint(findings).what
    processes.stop(process)
    found = complaint(doctor_servers.worker_process(site))
    assert f"the worker (process {process.pid}) is gone" in found.what


# --- a config -------------------------------------------------------------------------------------


def plans(site: Site, more: str = "") -> Plans:
    path = site.folder / "config.yaml"
    path.write_text(CONFIG + more)
    return doctor_config.load(site, path)


def test_a_config_that_has_all_it_needs_is_fine(site: Site) -> None:
    needed = plans(site)
    assert is_fine(doctor_config.inputs(needed))
    assert is_fine(doctor_config.disk_and_memory(needed))
    assert list(doctor_config.devices(needed)) == []


def test_what_a_config_reads_must_be_there(site: Site) -> None:
    path = site.folder / "config.yaml"
    (site.folder / "model" / "config.json").unlink()
    complaints = {f.what for f in doctor.examine(site, path) if f.mark == "wrong"}
    assert any("config.json does not exist" in what for what in complaints), complaints


def test_disk_and_memory_must_be_enough_for_the_config(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = plans(site)
    monkeypatch.setattr(dry_run, "device_of", lambda _: ("GPU", 1e6))
    found = complaint(doctor_config.disk_and_memory(needed))
    assert found.mark == "wrong"
    assert "the GPU has 0.0" in found.what
    assert "--dry-run" in found.to_do
    monkeypatch.undo()
    monkeypatch.chdir(site.folder)
    full = namedtuple("disk", "total used free")(0, 0, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert "GB of disk" in complaint(doctor_config.disk_and_memory(needed)).what


def test_a_gpu_that_a_config_insists_on_must_be_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = complaint(doctor_config.devices(plans(site, "ppo: {device: cuda}\n")))
    assert "ppo.device is cuda, and no GPU is visible" in found.what
    assert list(doctor_config.devices(plans(site))) == []


def test_label_studio_must_be_where_the_config_has_it(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def address(**given: str) -> list[Finding]:
        text = "".join(f"  {name}: {value}\n" for name, value in given.items())
        return list(doctor_config.labeling_address(plans(running, f"labeling:\n{text}")))

    assert is_fine(address(bind="127.0.0.1"))
    assert "`rankloop up --config" in complaint(address(bind="127.0.0.2")).to_do
    assert "is no address of this machine" in complaint(address(bind="192.0.2.1")).what
    public = f"http://127.0.0.1:{embedded.free_port([])}"
    known = server_home.recall(running.home, "label_studio")
    through = Known(known.port, known.process, Address(public_url=public))
    server_home.remember(running.home, "label_studio", through)
    assert "does not lead to Label Studio" in complaint(address(public_url=public)).what
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
    assert "are not used" in complaint(address(bind="127.0.0.1")).what
