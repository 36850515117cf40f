from __future__ import annotations

import gzip
import hashlib
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labeling import snapshots
from labeling.errors import InputError
from labeling.snapshots import keep, kept, last_seen, latest, parse, pin, pinned

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def export(*tasks: tuple[str, int]) -> bytes:
    """Tasks by key, with so many annotations."""
    rows = [
        {"data": {"key": key}, "annotations": [{"id": n} for n in range(m)]} for key, m in tasks
    ]
    return json.dumps(rows).encode()


def test_a_kept_export_reads_back_byte_for_byte_and_says_when_it_was_taken(tmp_path: Path) -> None:
    content = export(("ü", 2)) + b"\n"
    snapshot = keep(tmp_path / "snapshots", content, NOON)
    assert snapshot.path.name.startswith("2026-11-21T12-00-00.000Z-")
    assert snapshot.content() == content
    assert gzip.decompress(snapshot.path.read_bytes()) == content
    assert hashlib.sha256(content).hexdigest().startswith(snapshot.digest)
    assert kept(tmp_path / "snapshots") == [snapshot]


def test_only_its_owner_may_read_a_snapshot(tmp_path: Path) -> None:
    snapshot = keep(tmp_path / "snapshots", export(), NOON)
    assert snapshot.path.stat().st_mode & 0o777 == 0o600
    assert snapshot.path.parent.stat().st_mode & 0o777 == 0o700


def test_the_same_content_is_not_kept_again_unless_another_came_between(tmp_path: Path) -> None:
    first = keep(tmp_path, export(("a", 1)), NOON)
    assert keep(tmp_path, export(("a", 1)), NOON + timedelta(hours=1)) == first
    keep(tmp_path, export(("a", 2)), NOON + timedelta(hours=2))
    again = keep(tmp_path, export(("a", 1)), NOON + timedelta(hours=3))
    assert len(kept(tmp_path)) == 3
    assert kept(tmp_path)[0] == again


def test_a_clock_that_is_set_back_does_not_make_the_newest_older(tmp_path: Path) -> None:
    keep(tmp_path, export(("a", 1)), NOON)
    newest = keep(tmp_path, export(("a", 2)), NOON - timedelta(days=1))
    found = latest(tmp_path)
    assert found is not None
    assert found[0] == newest


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(minutes=st.lists(st.integers(1, 600), min_size=1, max_size=60), frozen=st.integers(0, 59))
def test_old_snapshots_are_thinned_to_the_newest_the_last_of_each_day_and_the_frozen_one(
    minutes: list[int], frozen: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, now, made = tmp_path_factory.mktemp("snapshots"), NOON, []
    for number, passed in enumerate(minutes):
        now += timedelta(minutes=passed)
        made.append(keep(folder, export(("a", number)), now))
        if number == frozen:
            pin(made[-1])
    last_of_day = {snapshot.taken_at.date(): snapshot for snapshot in made}
    left = kept(folder)
    assert {*made[-snapshots.NEWEST_KEPT :], *last_of_day.values()} <= set(left)
    assert len(left) <= snapshots.NEWEST_KEPT + len(last_of_day) + 1
    if frozen < len(made):
        assert pinned(folder) == made[frozen]
        assert made[frozen] in left


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"", lambda b: b[:30] + b"\0" + b[31:]]
)
def test_a_damaged_snapshot_is_passed_over_in_one_line(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = keep(tmp_path, export(("a", 1)), NOON)
    newer = keep(tmp_path, export(("a", 50)), NOON + timedelta(minutes=1))
    newer.path.write_bytes(damage(newer.path.read_bytes()))
    with pytest.raises(InputError, match=newer.path.name):
        newer.tasks()
    with caplog.at_level(logging.WARNING):
        found = latest(tmp_path)
    assert found is not None
    assert found[0] == older
    (line,) = caplog.messages
    assert newer.path.name in line
    assert "\n" not in line


def test_what_a_damaged_newest_held_is_kept_again(tmp_path: Path) -> None:
    first = keep(tmp_path, export(("a", 1)), NOON)
    first.path.write_bytes(b"")
    again = keep(tmp_path, export(("a", 1)), NOON + timedelta(minutes=1))
    assert again != first
    assert again.tasks() == parse(export(("a", 1)))


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    keep(tmp_path, export(("a", 1)), NOON)
    (tmp_path / "2026-11-21T12-00-01.000Z-0.json.gz.partial").write_bytes(b"half")
    keep(tmp_path, export(("a", 1)), NOON + timedelta(minutes=1))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_task_is_known_as_the_newest_snapshot_that_has_it_has_it(tmp_path: Path) -> None:
    keep(tmp_path, export(("a", 1), ("b", 1), ("c", 3)), NOON)
    keep(tmp_path, export(("a", 2), ("c", 0), ("c", 4)), NOON + timedelta(minutes=1))
    keep(tmp_path, export(("a", 0)), NOON + timedelta(minutes=2))
    seen = last_seen(tmp_path, {"a", "b", "c", "d"})
    assert {key: len(task["annotations"]) for key, task in seen.items()} == {"a": 0, "b": 1, "c": 4}


def test_an_empty_folder_knows_nothing(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    assert last_seen(tmp_path / "none", {"a"}) == {}
    assert pinned(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"<html>"])
def test_what_is_no_export_is_told(content: bytes) -> None:
    with pytest.raises(InputError, match="no export"):
        parse(content)


def test_the_snapshot_that_labels_were_frozen_from_stays_however_many_come_after(
    tmp_path: Path,
) -> None:
    frozen = keep(tmp_path, export(("a", 0)), NOON)
    pin(frozen)
    for number in range(1, snapshots.NEWEST_KEPT + 3):
        keep(tmp_path, export(("a", number)), NOON + timedelta(minutes=number))
    assert len(kept(tmp_path)) == snapshots.NEWEST_KEPT + 1
    assert kept(tmp_path)[-1] == frozen
