"""Full, read-only and forbidden places, all of them real: one line, and nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.config import RoundConfig
from flows.record import RoundRecord
from flows.runner import run_stage
from flows.store import write_json
from labeling.config import Prompts
from labeling.errors import InputError
from tests.flows.complaints import assert_says, complaint_of, files_below, make_project, one_line
from tests.flows.toy_stages import FILL, Toy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk in memory with the given options; skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("only root mounts a small disk, so a full one was not tried")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(("umount", str(folder)), check=True)


@pytest.mark.parametrize("how", ["bytes", "safetensors", "parquet"])
def test_a_full_disk_ends_a_stage_in_one_line_and_leaves_nothing(
    how: str, disk: Callable[[str], Path]
) -> None:
    home = disk("size=300k")
    with pytest.raises(InputError) as caught:
        run_stage(FILL, Toy(fail=how), {}, home, lambda _: None)
    assert_says(
        one_line(str(caught.value), "fill: "),
        ["no space is left on the disk", "free some, then run the same command again", "traceback"],
    )
    assert not [path for path in files_below(home / "store") if path.is_file()]


def test_a_full_disk_leaves_json_as_it_was(disk: Callable[[str], Path]) -> None:
    folder = disk("size=64k")
    write_json(folder / "round.json", {"status": "running"})
    before = (folder / "round.json").read_bytes()
    with pytest.raises(OSError, match="No space"):
        write_json(folder / "round.json", {"status": "x" * 100_000})
    assert (folder / "round.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["round.json"]


def test_a_round_on_a_full_disk_tells_what_came_first(disk: Callable[[str], Path]) -> None:
    folder = disk("size=64k")
    config = RoundConfig(name="x", model="gpt2", prompts=Prompts(path="p.jsonl"))

    def fail() -> None:
        with RoundRecord(folder / "runs", config):
            (folder / "others").write_bytes(b"x" * shutil.disk_usage(folder).free)
            raise InputError("came first")

    with pytest.raises(InputError, match="came first"):
        fail()
    assert not list(folder.rglob("*.partial"))


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_file_larger_than_is_allowed_is_one_line(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from flows.runner import run_stage\n"
        "from labeling.errors import InputError; from tests.flows.toy_stages import FILL, Toy\n"
        "try: run_stage(FILL, Toy(), {}, Path(sys.argv[1]), print)\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", program, str(tmp_path / "home")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        check=True,
    )
    line = one_line(done.stdout, "fill: ")
    assert_says(line, ["larger than this process may write", "ulimit -f", "traceback in"])


@pytest.mark.parametrize("where", ["runs", "home"])
def test_a_read_only_disk_is_told_before_anything_starts(
    where: str, project: Path, disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = disk("size=64k,ro")
    if where == "home":
        monkeypatch.setenv("RANKLOOP_HOME", str(folder / "home"))
        line = complaint_of(project, "run", "config.yaml")
        assert_says(line, [str(folder), "cannot be written", "set RANKLOOP_HOME"])
    else:
        monkeypatch.setenv("RANKLOOP_HOME", str(project / "home"))
        line = complaint_of(folder, "run", str(project / "config.yaml"))
        assert_says(line, [str(folder), "cannot be written", "run from another folder"])


@pytest.mark.parametrize("command", ["up", "run"])
def test_a_home_that_is_a_file_is_named(
    command: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "home").touch()
    monkeypatch.setenv("RANKLOOP_HOME", str(project / "home"))
    arguments = ("run", "config.yaml") if command == "run" else ("up",)
    line = complaint_of(project, *arguments)
    assert_says(line, ["home is a file", "RANKLOOP_HOME"])


def test_up_on_a_read_only_disk_is_one_line(
    project: Path, disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = disk("size=64k,ro")
    monkeypatch.setenv("RANKLOOP_HOME", str(folder / "home"))
    line = complaint_of(project, "up")
    assert_says(line, [str(folder), "RANKLOOP_HOME"])


def test_a_folder_that_belongs_to_another_is_told(project: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can run as somebody else, so a forbidden folder was not tried")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for folder in (project, *project.parents[:-1]):  # nobody may look, and not write
        folder.chmod(folder.stat().st_mode | 0o055)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "LABEL"))}
    done = subprocess.run(
        (*nobody, sys.executable, "-m", "flows.cli", "run", "config.yaml"),
        cwd=project,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in done.stderr and "python" in done.stderr:
        pytest.skip("nobody may not run this Python, so a forbidden folder was not tried")
    assert done.returncode == 2
    assert_says(one_line(done.stderr), [str(project), "cannot be written"])
    assert not (project / "runs").exists()
