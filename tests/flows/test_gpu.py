"""The GPU is held by one stage at a time, on a real Prefect server. No GPU is needed: a config that
says `cuda` is enough."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
)
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import gpu, store
from flows.config import SECTIONS
from flows.gpu import gpu_slot, runs_on_gpu
from flows.servers import Servers
from flows.tasks import make_stage
from labeling.config import Pairs
from tests.flows.test_bad_servers import Proxy
from tests.flows.test_stage import PATIENCE_S, ROOT, until
from tests.flows.toy_stages import COPY, Toy

HOLDER = """
import sys, time
from pathlib import Path
from flows import gpu
gpu.LOCKS, gpu.limit_name = Path(sys.argv[1]), lambda: sys.argv[2]
with gpu.gpu_slot():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def host(
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[str]:
    """Name of the limit of a host of our own, on the session's Prefect."""
    name = f"rankloop-gpu-{request.node.name}"
    monkeypatch.setattr(gpu, "limit_name", lambda: name)
    monkeypatch.setattr(gpu, "LOCKS", tmp_path)
    monkeypatch.setattr(gpu, "_LOOK_EVERY_S", 0.02)
    with temporary_settings({PREFECT_API_URL: servers.prefect.api_url}):
        yield name


def limit_of(name: str) -> tuple[int, int]:
    """How many slots there are, and how many are taken."""
    with get_client(sync_client=True) as client:
        found = client.read_global_concurrency_limit_by_name(name)
    return found.limit, found.active_slots


def is_held() -> bool:
    if (lock := gpu._free_lock(1)) is None:
        return True
    os.close(lock)
    return False


class Stage(threading.Thread):
    """Takes the GPU, and keeps it until it is told to go."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.has_it, self.go = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self.settings = PREFECT_API_URL.value()
        self.start()

    def run(self) -> None:
        try:
            with temporary_settings({PREFECT_API_URL: self.settings}), gpu_slot():
                self.has_it.set()
                self.go.wait(PATIENCE_S)
        except Exception as error:
            self.failure = error


# --- who takes it ---------------------------------------------------------------------------------


def test_the_steps_with_a_device_take_the_gpu_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        gpu, "kind_of_device", lambda device: "cuda" if device == "auto" else device
    )
    taking = {name for name, section in SECTIONS.items() if "device" in section.model_fields}
    assert taking == {"sft", "sampling", "reward", "ppo", "evaluation"}
    assert runs_on_gpu(Toy(device="auto"))
    assert runs_on_gpu(Toy(device="cuda"))
    assert not runs_on_gpu(Toy(device="cpu"))
    assert not runs_on_gpu(Pairs())


def test_without_a_driver_auto_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.shutil, "which", lambda _: None)
    if not Path("/proc/driver/nvidia/version").exists():
        assert not runs_on_gpu(Toy(device="auto"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not runs_on_gpu(Toy(device="auto"))


def test_a_limit_is_named_after_the_host() -> None:
    assert gpu.limit_name() == f"rankloop-gpu-{socket.gethostname()}"


# --- one at a time --------------------------------------------------------------------------------


def test_a_second_stage_waits_says_so_once_and_then_has_it(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = Stage()
    assert first.has_it.wait(PATIENCE_S)
    assert limit_of(host) == (1, 1)
    second = Stage()
    until(lambda: "waiting for the GPU" in caplog.text)
    assert not second.has_it.wait(0.5)  # it looked some twenty times
    first.go.set()
    assert second.has_it.wait(PATIENCE_S)
    second.go.set()
    second.join(PATIENCE_S)
    assert caplog.text.count("waiting for the GPU") == 1
    assert caplog.text.count("the GPU is free after") == 1
    assert limit_of(host) == (1, 0)


def test_a_limit_that_an_engineer_raised_lets_more_in_and_stays_as_it_is(host: str) -> None:
    first = Stage()
    assert first.has_it.wait(PATIENCE_S)
    second = Stage()
    assert not second.has_it.wait(0.2)
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(host, GlobalConcurrencyLimitUpdate(limit=2))
    assert second.has_it.wait(PATIENCE_S)
    third = Stage()
    assert not third.has_it.wait(0.2)
    for stage in (first, second, third):
        stage.go.set()
        stage.join(PATIENCE_S)
    assert limit_of(host) == (2, 0)


def test_the_gpu_is_free_only_when_the_last_process_that_holds_it_is_gone(host: str) -> None:
    with gpu_slot() as lock:
        child = subprocess.Popen(["sleep", "600"], pass_fds=[lock])
    assert is_held()
    child.kill()
    child.wait()
    assert not is_held()


def test_another_prefect_server_on_the_host_does_not_let_a_second_one_in(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another limit stands for another server: it has slots, and the lock keeps out."""
    first = Stage()
    assert first.has_it.wait(PATIENCE_S)
    monkeypatch.setattr(gpu, "limit_name", lambda: f"{host}-elsewhere")
    second = Stage()
    assert not second.has_it.wait(0.5)
    assert limit_of(f"{host}-elsewhere") == (1, 0)
    first.go.set()
    assert second.has_it.wait(PATIENCE_S)
    second.go.set()
    second.join(PATIENCE_S)


def test_a_lease_that_ran_out_lets_nobody_in_and_ends_no_stage(host: str) -> None:
    """The server was away for longer than it lasts, and has given its slot back."""
    first = Stage()
    assert first.has_it.wait(PATIENCE_S)
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(host, GlobalConcurrencyLimitUpdate(active_slots=0))
    second = Stage()
    assert not second.has_it.wait(0.5)
    first.go.set()
    assert second.has_it.wait(PATIENCE_S)
    second.go.set()
    for stage in (first, second):
        stage.join(PATIENCE_S)
        assert stage.failure is None
    assert not is_held()


@pytest.fixture
def leaked(host: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A limit whose slot was given without a lease: the server ended in between."""
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=host, limit=1, active_slots=1)
        )
    monkeypatch.setattr(gpu, "_LEAKED_AFTER_S", 0.3)
    return host


@pytest.mark.parametrize("is_ours", [False, True], ids=["an earlier stage's", "our own"])
def test_a_slot_that_nobody_gives_back_leaves_no_gpu_idle(
    leaked: str, is_ours: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if is_ours:  # free when it was looked at
        monkeypatch.setattr(gpu, "_has_room", lambda _: True)
    stage = Stage()
    assert stage.has_it.wait(PATIENCE_S)
    assert is_held()
    assert caplog.text.count("going on without a slot") == 1
    stage.go.set()
    stage.join(PATIENCE_S)
    assert stage.failure is None
    assert not is_held()
    assert limit_of(leaked) == (1, 1)


def test_a_slot_with_a_stage_behind_it_is_waited_for(
    leaked: str, caplog: pytest.LogCaptureFixture
) -> None:
    """There were two, and an engineer lowered the limit while both were at work."""
    with ExitStack() as held:
        first, second = gpu._free_lock(2), gpu._free_lock(2)
        assert first is not None
        assert second is not None
        held.callback(os.close, second)
        os.close(first)
        waits = Stage()
        assert not waits.has_it.wait(1)
    assert waits.has_it.wait(PATIENCE_S)
    assert "going on without a slot" in caplog.text
    waits.go.set()
    waits.join(PATIENCE_S)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_holder_gives_the_gpu_back(host: str, tmp_path: Path, servers: Servers) -> None:
    command = (sys.executable, "-c", HOLDER, str(tmp_path), host)
    environment = os.environ | {"PREFECT_API_URL": servers.prefect.api_url}
    holder = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert not is_held()  # the kernel gives back at once, the lease when its time is over
    assert limit_of(host) == (1, 1)
    killed = time.monotonic()
    with gpu_slot():
        assert time.monotonic() - killed < 120


def test_a_prefect_that_is_away_when_the_stage_ends_makes_no_failure_of_it(
    host: str, servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(int(servers.prefect.api_url.split(":")[2].partition("/")[0]))
    with temporary_settings({PREFECT_API_URL: f"{proxy.url}/api"}):
        with gpu_slot():
            proxy.leave()
        assert "Prefect is not told that the GPU is free" in caplog.text
    assert not is_held()


# --- stages ---------------------------------------------------------------------------------------


def test_only_a_stage_that_has_to_run_on_the_gpu_waits_for_it(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path / "home"))
    source = tmp_path / "source.txt"
    source.write_text("twelve chars")

    def make(factor: float, device: str) -> None:
        config = Toy(factor=factor, device=device, folder=str(tmp_path))
        with temporary_settings({PREFECT_API_URL: url}):
            make_stage.fn(COPY, config, {"source": source})

    def made() -> int:
        return len((tmp_path / "calls").read_text().splitlines())

    url = PREFECT_API_URL.value()
    make(1, "cuda")
    assert limit_of(host) == (1, 0)
    holder = Stage()
    assert holder.has_it.wait(PATIENCE_S)
    make(1, "cuda")  # it is there
    make(2, "cpu")
    third = threading.Thread(target=make, args=(3, "cuda"), daemon=True)
    third.start()
    third.join(0.5)
    assert third.is_alive()
    assert made() == 2
    holder.go.set()
    third.join(PATIENCE_S)
    assert made() == 3
