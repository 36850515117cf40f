"""What reaches the disk, and in which order: the system calls are watched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.config import RoundConfig
from flows.record import RoundRecord
from flows.runner import StageResult
from flows.store import Store, write_json
from labeling.records import Ranking, write_rankings


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[int | str]:
    """The inode of all that is synced and the new name of all that is renamed, in order."""
    seen: list[int | str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        seen.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_labels_are_on_the_disk_before_their_name_and_the_name_before_the_next_step(
    tmp_path: Path, reached: list[int | str]
) -> None:
    labels, document = tmp_path / "labels.parquet", tmp_path / "round.json"
    write_rankings([Ranking("t", "ann", ((0,), (1,)))], labels)
    write_json(document, {"status": "running"})
    assert reached == [
        *(inode(labels), "labels.parquet", inode(tmp_path)),
        *(inode(document), "round.json", inode(tmp_path)),
    ]


def test_all_of_an_entry_is_on_the_disk_before_it_is_one(
    tmp_path: Path, reached: list[int | str]
) -> None:
    store = Store(tmp_path)
    partial = store.begin("ppo", "key")
    (partial / "policy").mkdir()
    (partial / "policy" / "weights").write_text("weights")
    (partial / "latest").symlink_to("nowhere")
    entry = store.finish("ppo", "key", {"metrics": {}}, {"seconds": 1.0}).path
    *before, name, last = reached
    parts = ("", "policy", "policy/weights", "manifest.json", "timings.json")
    assert set(before) == {inode(entry / part) for part in parts}
    assert (name, last) == ("key", inode(entry.parent))


def test_the_rounds_copy_of_its_report_is_on_the_disk_before_its_name(
    tmp_path: Path, reached: list[int | str]
) -> None:
    store = Store(tmp_path / "store")
    (store.begin("report", "key") / "report.html").write_text("report")
    manifest = {"metrics": {}, "device": "cpu", "commit": None, "libraries": {}}
    entry = store.finish("report", "key", manifest, {"seconds": 1.0}).path
    made = StageResult("report", "key", entry, entry / "report.html", False, 1.0, 1.0, {})
    with RoundRecord(tmp_path, RoundConfig(name="demo", model="m")) as record:
        reached.clear()
        record.add(made, "")
        copy = record.folder / "report.html"
        assert copy.read_text() == "report"
        assert reached[:3] == [inode(copy), "report.html", inode(record.folder)]
