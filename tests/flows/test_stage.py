"""Stages really run in child processes here; some are really killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from flows.inputs import resolve_inputs
from flows.runner import Line, StageError, StageResult, _remove_partial, run_stage
from flows.stages import Stage
from flows.store import Store
from labeling.errors import InputError
from tests.flows.toy_stages import COPY, TALK, WAIT, Toy

PATIENCE_S = 20.0
ROOT = Path(__file__).parents[2]

# SIGTERM ends it in order, as it ends the command (flows/cli.py).
PARENT = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from pathlib import Path
from tests.flows.toy_stages import WAIT, Toy
from flows.runner import run_stage
run_stage(WAIT, Toy(folder=sys.argv[1]), {}, Path(sys.argv[2]), print)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("twelve chars")
    return path


class Lines(list[Line]):
    def __call__(self, line: Line) -> None:
        self.append(line)

    @property
    def messages(self) -> list[str]:
        return [line.message for line in self]


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines()) if (folder / "calls").exists() else 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def copy(
    source: Path, home: Path, config: Toy | None = None, *, lines: Lines | None = None, **how: bool
) -> StageResult:
    given = config or Toy()
    given = given.model_copy(update={"folder": str(source.parent)})
    return run_stage(
        COPY, given, {"source": source}, home, Lines() if lines is None else lines, **how
    )


# --- made once ------------------------------------------------------------------------------------


def test_a_stage_runs_once_and_is_then_reused(source: Path, home: Path) -> None:
    first, second = copy(source, home), copy(source, home)
    assert (first.reused, second.reused) == (False, True)
    assert calls(source.parent) == 1
    assert first.path == second.path
    assert first.output.read_text() == "twelve chars"
    assert second.metrics == {"characters": 12, "lost": None}
    assert second.made_seconds == first.made_seconds


def test_the_manifest_says_how_an_entry_came_to_be(source: Path, home: Path) -> None:
    result = copy(source, home, Toy(seed=3))
    manifest = json.loads((result.path / "manifest.json").read_text())
    assert manifest["stage"] == "copy"
    assert manifest["key"] == result.key
    assert manifest["version"] == 1
    assert manifest["config"]["seed"] == 3
    assert manifest["seeds"] == {"seed": 3}
    assert set(manifest["outputs"]) == {"copied.txt", "folder/seed.txt"}
    assert manifest["libraries"]["python"] == sys.version.split()[0]
    timings = json.loads((result.path / "timings.json").read_text())
    assert timings["reading"] == 0.1
    assert timings["seconds"] > 0


def test_what_cannot_change_the_result_does_not_change_the_key(source: Path, home: Path) -> None:
    first = copy(source, home)
    moved = source.rename(source.with_name("moved.txt"))
    assert copy(moved, home, Toy(device="cuda:7")).key == first.key
    assert calls(source.parent) == 1


def test_another_config_input_or_version_is_made_anew(source: Path, home: Path) -> None:
    keys = {copy(source, home).key, copy(source, home, Toy(factor=2)).key}
    newer = replace(COPY, version=2)
    config = Toy(folder=str(source.parent))
    keys.add(run_stage(newer, config, {"source": source}, home, Lines()).key)
    source.write_text("twelve CHARS")
    keys.add(copy(source, home).key)
    assert len(keys) == 4
    assert calls(source.parent) == 4


def test_a_noted_entry_stays_while_it_is_whole_whatever_changed_since(
    source: Path, home: Path
) -> None:
    first, newer = copy(source, home), replace(COPY, version=2)
    source.write_text("twelve CHARS")

    def again() -> StageResult:
        config = Toy(folder=str(source.parent), factor=2)
        return run_stage(newer, config, {"source": source}, home, Lines(), noted=first.key)

    kept = again()
    assert (kept.reused, kept.path, kept.metrics) == (True, first.path, first.metrics)
    first.output.unlink()
    assert again().key != first.key


def test_an_output_as_input_is_known_by_its_content_not_by_its_place(
    source: Path, home: Path
) -> None:
    """Two entries with equal outputs lead to one entry of what follows."""
    first, second = copy(source, home), copy(source, home, Toy(factor=2))
    assert first.key != second.key
    third = copy(first.output, home)
    assert copy(second.output, home).path == third.path


def test_the_same_run_in_another_home_has_the_same_digests(source: Path, tmp_path: Path) -> None:
    manifests = [
        json.loads((copy(source, tmp_path / name).path / "manifest.json").read_text())
        for name in ("one", "two")
    ]
    digests = [{n: o["sha256"] for n, o in m["outputs"].items()} for m in manifests]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("damage", ["missing", "shorter", "other", "manifest", "timings"])
def test_a_damaged_entry_is_made_anew_and_said_so(damage: str, source: Path, home: Path) -> None:
    path = copy(source, home).path
    if damage == "missing":
        (path / "copied.txt").unlink()
    elif damage == "shorter":
        (path / "copied.txt").write_text("twelve")
    elif damage == "other":
        (path / "copied.txt").write_text("TWELVE chars")
    elif damage == "manifest":
        (path / "manifest.json").write_text("{")
    else:
        (path / "timings.json").unlink()
    lines = Lines()
    again = copy(source, home, lines=lines)
    assert not again.reused
    assert again.output.read_text() == "twelve chars"
    assert any("damaged" in m and "made anew" in m for m in lines.messages)
    assert copy(source, home).reused
    assert [p.name for p in path.parent.iterdir() if "damaged" in p.name] == []


def test_verify_finds_what_sizes_and_times_hide(source: Path, home: Path) -> None:
    first = copy(source, home)
    stat = first.output.stat()
    first.output.write_text("TWELVE chars")
    os.utime(first.output, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert copy(source, home).reused
    again = copy(source, home, verify=True)
    assert not again.reused
    assert again.output.read_text() == "twelve chars"


def test_a_copied_store_is_still_trusted(source: Path, home: Path) -> None:
    first = copy(source, home)
    os.utime(first.output, ns=(1, 1))
    assert copy(source, home).reused


# --- what the parent hears ------------------------------------------------------------------------


def test_log_records_and_stray_prints_reach_the_parent_in_order(source: Path, home: Path) -> None:
    lines = Lines()
    copy(source, home, lines=lines)
    assert lines == [
        Line(logging.INFO, "flows.toy", "half of it", (1, 2), {"loss": 0.5}),
        Line(logging.INFO, "stdout", "somebody prints"),
        Line(logging.INFO, "stdout", "an unfinished line"),
        Line(logging.INFO, "flows.toy", "the other half", (2, 2)),
    ]


def test_json_that_a_users_function_prints_is_no_message_of_ours(home: Path) -> None:
    lines = Lines()
    result = run_stage(TALK, Toy(), {}, home, lines)
    assert result.output.read_text() == "done"
    assert [line.logger for line in lines] == ["stdout"] * 5
    assert lines.messages[:2] == ['{"level": "info"}', '{"error": "mine"}']


def test_a_link_to_a_file_is_handed_on_with_its_own_name(source: Path, home: Path) -> None:
    link = source.with_name("link.jsonl")
    link.symlink_to(source)
    given, digests = resolve_inputs(COPY, {"source": link}, Store(home / "store"))
    assert given == {"source": str(link)}
    assert digests == resolve_inputs(COPY, {"source": source}, Store(home / "store"))[1]


def test_secrets_of_the_servers_do_not_reach_a_stage(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret")
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.setenv("RANKLOOP_PREFECT_DATABASE", "postgresql://me:secret@host/name")
    stage = Stage("environment", "tests.flows.toy_stages:environment", {}, "names.txt")
    result = run_stage(stage, Toy(), {}, home, Lines())
    names = result.output.read_text().split()
    assert "PATH" in names
    hidden = {"LABEL_STUDIO_API_KEY", "PREFECT_API_KEY", "RANKLOOP_PREFECT_DATABASE"}
    assert not hidden & set(names)


def test_an_input_error_stays_one(source: Path, home: Path) -> None:
    with pytest.raises(InputError, match=r"^the source is wrong: mend it$"):
        copy(source, home, Toy(fail="input"))


@pytest.mark.parametrize(("fail", "retriable"), [("bug", False), ("away", True)])
def test_another_error_names_the_log_that_holds_its_traceback(
    fail: str, retriable: bool, source: Path, home: Path
) -> None:
    with pytest.raises(StageError) as caught:
        copy(source, home, Toy(fail=fail))
    assert caught.value.retriable is retriable
    assert "\n" not in str(caught.value)
    assert str(caught.value.log) in str(caught.value)
    log = caught.value.log.read_text()
    assert "Traceback" in log
    assert "half of it" in log
    assert not list((home / "store" / "copy").glob("*/manifest.json"))


def test_a_missing_input_is_named_before_anything_starts(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt does not exist \(input 'source'\)"):
        run_stage(COPY, Toy(), {"source": tmp_path / "nowhere.txt"}, home, Lines())


# --- ends that nobody planned ---------------------------------------------------------------------


@pytest.fixture
def parent(tmp_path: Path, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another Python that runs WAIT, whose stage has begun."""
    command = (sys.executable, "-c", PARENT, str(tmp_path), str(home))
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until((tmp_path / "pid").exists)
        yield process
    finally:
        process.kill()
        process.wait()


def child_of(folder: Path) -> int:
    return int((folder / "pid").read_text())


def test_a_killed_stage_may_be_tried_again_and_starts_from_nothing(
    tmp_path: Path, home: Path
) -> None:
    config = Toy(folder=str(tmp_path))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            run_stage(WAIT, config, {}, home, Lines())
        except StageError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until((tmp_path / "pid").exists)
    os.kill(child_of(tmp_path), signal.SIGKILL)
    thread.join(PATIENCE_S)
    (failure,) = failures
    assert isinstance(failure, StageError)
    assert failure.retriable
    assert "SIGKILL" in str(failure)
    assert not list((home / "store" / "wait").glob("*.partial"))
    (tmp_path / "go").touch()
    result = run_stage(WAIT, config, {}, home, Lines())
    assert not result.reused
    assert (tmp_path / "calls").read_text() == "['half.txt']\n" * 2
    assert not list((home / "store" / "wait").glob("*.partial"))


def test_the_child_dies_with_its_killed_parent(
    parent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    child = child_of(tmp_path)
    assert not is_gone(child)
    parent.kill()
    until(lambda: is_gone(child))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_child_ends_with_its_interrupted_parent(
    how: signal.Signals, parent: subprocess.Popen[bytes], tmp_path: Path, home: Path
) -> None:
    child = child_of(tmp_path)
    parent.send_signal(how)
    parent.wait(PATIENCE_S)
    until(lambda: is_gone(child))
    assert calls(tmp_path) == 1
    assert not list((home / "store" / "wait").glob("*.partial"))


def test_what_another_run_makes_meanwhile_is_left_to_it(home: Path) -> None:
    store = Store(home / "store")
    partial = store.begin("wait", "key")
    with FileLock(store.lock_path("wait", "key")):
        _remove_partial(store, "wait", "key")
        assert partial.exists()
    _remove_partial(store, "wait", "key")
    assert not partial.exists()


def test_a_second_run_with_the_same_key_waits_and_then_reuses(
    parent: subprocess.Popen[bytes], tmp_path: Path, home: Path
) -> None:
    lines = Lines()
    results: list[StageResult] = []
    config = Toy(folder=str(tmp_path))
    second = threading.Thread(
        target=lambda: results.append(run_stage(WAIT, config, {}, home, lines)), daemon=True
    )
    second.start()
    until(lambda: any("waiting for it" in m for m in lines.messages))
    (tmp_path / "go").touch()
    second.join(PATIENCE_S)
    assert parent.wait(PATIENCE_S) == 0
    assert results[0].reused
    assert calls(tmp_path) == 1


def test_a_run_that_waits_for_a_killed_one_takes_over(
    parent: subprocess.Popen[bytes], tmp_path: Path, home: Path
) -> None:
    lines = Lines()
    results: list[StageResult] = []
    config = Toy(folder=str(tmp_path))
    second = threading.Thread(
        target=lambda: results.append(run_stage(WAIT, config, {}, home, lines)), daemon=True
    )
    second.start()
    until(lambda: any("waiting for it" in m for m in lines.messages))
    (tmp_path / "go").touch()  # for the second; the first is stopped before it can look
    os.kill(child_of(tmp_path), signal.SIGKILL)
    second.join(PATIENCE_S)
    assert results
    assert results[0].output.read_text() == "done"
