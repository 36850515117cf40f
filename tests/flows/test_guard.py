"""Nothing that a stage started outlives it: kills are real, and so are the grandchildren."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.runner import StageError, StageResult, run_stage
from tests.flows.test_stage import PATIENCE_S, ROOT, child_of, is_gone, until
from tests.flows.toy_stages import BREED, Toy

FLOW = """
import sys
from pathlib import Path
from tests.flows.toy_stages import BREED, Toy
from flows.runner import run_stage
run_stage(BREED, Toy(folder=sys.argv[1]), {}, Path(sys.argv[2]), print)
"""


@pytest.fixture
def flow(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another Python whose stage has begun, and has children in sessions of their own."""
    command = (sys.executable, "-c", FLOW, str(tmp_path), str(tmp_path / "home"))
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        until((tmp_path / "pid").exists)
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in family(tmp_path):
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


def family(folder: Path) -> list[int]:
    """What the stage started, deaf to SIGTERM."""
    file = folder / "family"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def assert_all_go(folder: Path) -> None:
    for pid in (child_of(folder), *family(folder)):
        until(lambda pid=pid: is_gone(pid))  # type: ignore[misc]


def test_a_killed_flow_leaves_nothing_of_its_stage(
    flow: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert not any(is_gone(pid) for pid in family(tmp_path))
    flow.kill()
    assert_all_go(tmp_path)


def test_a_stopped_flow_leaves_nothing_of_its_stage(
    flow: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    flow.send_signal(signal.SIGINT)
    assert flow.wait(PATIENCE_S) != 0
    assert all(is_gone(pid) for pid in (child_of(tmp_path), *family(tmp_path)))


@pytest.mark.parametrize("victim", ["worker", "guard"])
def test_a_killed_stage_leaves_nothing_before_it_is_tried_again(
    victim: str, tmp_path: Path
) -> None:
    failures: list[BaseException] = []
    thread = threading.Thread(target=_breed, args=(tmp_path, failures), daemon=True)
    thread.start()
    until((tmp_path / "pid").exists)
    worker = psutil.Process(child_of(tmp_path))
    (worker if victim == "worker" else worker.parent()).kill()
    thread.join(PATIENCE_S)
    (failure,) = failures
    assert isinstance(failure, StageError)
    assert failure.retriable
    assert "SIGKILL" in str(failure)
    assert all(is_gone(pid) for pid in (child_of(tmp_path), *family(tmp_path)))


def _breed(folder: Path, failures: list[BaseException]) -> None:
    try:
        run_stage(BREED, Toy(folder=str(folder)), {}, folder / "home", lambda _: None)
    except StageError as error:
        failures.append(error)


def test_what_a_stage_forgot_ends_with_it_and_does_not_keep_the_round_waiting(
    tmp_path: Path,
) -> None:
    (tmp_path / "go").touch()
    results: list[StageResult] = []
    config = Toy(folder=str(tmp_path))
    thread = threading.Thread(
        target=lambda: results.append(
            run_stage(BREED, config, {}, tmp_path / "home", lambda _: None)
        ),
        daemon=True,
    )
    thread.start()
    thread.join(PATIENCE_S)
    assert [result.output.read_text() for result in results] == ["done"]
    assert all(is_gone(pid) for pid in family(tmp_path))
