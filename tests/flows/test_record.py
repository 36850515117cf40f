from __future__ import annotations

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flows.config import RoundConfig
from flows.record import RoundRecord, Taken
from flows.round_folder import LINKS, is_locked
from labeling.config import Prompts
from labeling.errors import InputError
from labeling.records import Ranking, write_rankings


def config(**given: Any) -> RoundConfig:
    return RoundConfig(name="demo", model="m", prompts=Prompts(path="p"), **given)


def finish(runs: Path, flow_run: str = "") -> Path:
    """A complete round, with a link for each step."""
    with RoundRecord(runs, config(), flow_run=flow_run) as record:
        record.document |= {"evaluation": {"win_rate": 0.7}, "reward": {"held_out_accuracy": 0.8}}
        record.document["labels"] = {"rankings": 3}
        record.document["stages"] = {"prompts": {"key": "k1"}}
        record.document["addresses"] = {"report": "file:///report.html"}
        for name in set(LINKS.values()):
            (record.folder / name).symlink_to("somewhere")
        (record.folder / "report.html").write_text("the report")
        record.labels_path.write_text("labels")
    return record.folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_what_names_the_labelers_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    write_rankings([Ranking("key", "ann@example.org", ((0,), (1,)))], folder / "labels.parquet")
    for name in ("round.json", "labels.parquet"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def interrupt(record: RoundRecord) -> None:
    with pytest.raises(KeyboardInterrupt), record:
        raise KeyboardInterrupt


def test_a_re_run_that_is_stopped_keeps_what_the_round_measured(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    before = names(folder)
    again = RoundRecord(tmp_path, config())
    interrupt(again)
    assert again.document["status"] == "interrupted"
    assert again.document["evaluation"] == {"win_rate": 0.7}
    assert again.document["reward"] == {"held_out_accuracy": 0.8}
    assert again.document["labels"] == {"rankings": 3}
    assert again.document["addresses"] == {"report": "file:///report.html"}
    assert names(folder) == before


def test_the_run_after_a_killed_one_knows_its_address_on_the_dashboard(tmp_path: Path) -> None:
    finish(tmp_path)
    with RoundRecord(tmp_path, config()) as record:
        assert record.document["killed"] == []
        record.document["addresses"]["dashboard"] = "http://dashboard/1"
        record.save()
        as_killed = record.path.read_bytes()
    record.path.write_bytes(as_killed)
    with RoundRecord(tmp_path, config()) as record:
        assert record.document["killed"] == ["http://dashboard/1"]


def test_a_killed_run_that_is_begun_again_is_not_told_to_the_dashboard_as_killed(
    tmp_path: Path,
) -> None:
    kill(RoundRecord(tmp_path, config(), flow_run="run-1"), "http://dashboard/run-1")
    with RoundRecord(tmp_path, config(), flow_run="run-1") as record:
        assert record.document["killed"] == []
        assert record.document["flow_runs"] == ["run-1"]
    kill(RoundRecord(tmp_path, config(), flow_run="run-1"), "http://dashboard/run-1")
    with RoundRecord(tmp_path, config(), flow_run="run-2") as record:
        assert record.document["killed"] == ["http://dashboard/run-1"]
        assert record.document["flow_runs"] == ["run-1", "run-2"]


def test_a_round_that_goes_on_by_itself_is_left_alone(tmp_path: Path) -> None:
    kill(RoundRecord(tmp_path, config(), flow_run="run-1"), "http://dashboard/run-1")
    path = RoundRecord.place(tmp_path, config()) / "round.json"
    before = path.read_bytes()
    with (
        pytest.raises(Taken, match="run-1"),
        RoundRecord(tmp_path, config(), flow_run="run-2", waits=lambda run: run == "run-1"),
    ):
        raise AssertionError("it must not begin")
    assert path.read_bytes() == before
    assert not is_locked(path.parent)
    with RoundRecord(tmp_path, config(), flow_run="run-1", waits=lambda _: True):
        assert is_locked(path.parent)


def test_the_same_run_knows_what_it_made_before_and_another_does_not(tmp_path: Path) -> None:
    with RoundRecord(tmp_path, config(), flow_run="run-1") as record:
        record.document["stages"] = {"prompts": {"key": "k1"}, "publish": {"seconds": 1}}
    with RoundRecord(tmp_path, config(), flow_run="run-1") as record:
        assert record.noted == {"prompts": "k1"}
    with RoundRecord(tmp_path, config(), flow_run="run-2") as record:
        assert record.noted == {}
    with RoundRecord(tmp_path, config(seed=1), flow_run="run-2") as record:
        assert record.noted == {}


def upgrade(path: Path) -> None:
    """Make round.json one that was written before two of the config's fields came to be."""
    document = json.loads(path.read_text())
    del document["config"]["promotion"], document["config"]["labeling"]["public_url"]
    path.write_text(json.dumps(document))


def test_a_run_that_goes_on_after_an_upgrade_keeps_all_that_it_made(tmp_path: Path) -> None:
    folder = finish(tmp_path, "run-1")
    before = names(folder)
    for given in ({}, {"promotion": {"min_win_rate": 0.6}}):  # a default may change, too
        upgrade(folder / "round.json")
        with RoundRecord(tmp_path, config(**given), flow_run="run-1") as record:
            assert record.noted == {"prompts": "k1"}
            assert record.document["addresses"] == {"report": "file:///report.html"}
            assert record.document["evaluation"] == {"win_rate": 0.7}
        assert names(folder) == before


def test_a_field_that_an_upgrade_adds_is_no_other_config(tmp_path: Path) -> None:
    folder = finish(tmp_path, "run-1")
    before = names(folder)
    upgrade(folder / "round.json")
    with RoundRecord(tmp_path, config(), flow_run="run-2") as record:
        assert record.document["evaluation"] == {"win_rate": 0.7}
        assert record.noted == {}
    assert names(folder) == before
    upgrade(folder / "round.json")
    given = {"promotion": {"min_win_rate": 0.6}}
    with RoundRecord(tmp_path, config(**given), flow_run="run-3") as record:
        assert "evaluation" not in record.document


def test_a_config_that_is_not_understood_any_more_is_another(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    document = json.loads((folder / "round.json").read_text())
    document["config"]["of_an_earlier_version"] = 1
    (folder / "round.json").write_text(json.dumps(document))
    with RoundRecord(tmp_path, config()) as record:
        assert "evaluation" not in record.document
        assert record.document["labels"] == {"rankings": 3}
    assert names(folder) == {"round.json", "labels.parquet"}


def test_a_run_that_finds_anothers_config_in_its_round_takes_nothing_of_it(tmp_path: Path) -> None:
    with RoundRecord(tmp_path, config(), flow_run="run-1"):
        pass
    with RoundRecord(tmp_path, config(seed=1), flow_run="run-2") as record:
        record.document["stages"] = {"prompts": {"key": "k2"}}
    with RoundRecord(tmp_path, config(), flow_run="run-1") as record:
        assert record.noted == {}


def kill(record: RoundRecord, dashboard: str | None) -> None:
    """What a kill leaves of the record, before or after the run's own address was written down."""
    with record:
        if dashboard:
            record.document["addresses"]["dashboard"] = dashboard
            record.save()
        as_killed = record.path.read_bytes()
    record.path.write_bytes(as_killed)


def test_a_run_that_is_killed_before_it_tells_of_another_leaves_both_to_the_next(
    tmp_path: Path,
) -> None:
    kill(RoundRecord(tmp_path, config()), "http://dashboard/1")
    kill(RoundRecord(tmp_path, config(seed=1)), None)
    kill(RoundRecord(tmp_path, config()), "http://dashboard/2")
    with RoundRecord(tmp_path, config()) as record:
        assert record.document["killed"] == ["http://dashboard/1", "http://dashboard/2"]


def test_what_the_dashboard_could_not_be_told_is_left_to_the_next_run_however_this_one_ends(
    tmp_path: Path,
) -> None:
    for number in (1, 2):
        kill(RoundRecord(tmp_path, config(), flow_run=f"run-{number}"), f"http://d/run-{number}")
    with RoundRecord(tmp_path, config(), flow_run="run-3") as record:
        assert record.document["killed"] == ["http://d/run-1", "http://d/run-2"]
        record.document["killed"] = ["http://d/run-2"]  # the server was away
        record.save()
    with RoundRecord(tmp_path, config(seed=1), flow_run="run-4") as record:
        assert record.document["killed"] == ["http://d/run-2"]
        record.document["killed"] = []
    with RoundRecord(tmp_path, config(), flow_run="run-5") as record:
        assert record.document["killed"] == []


def test_nothing_of_another_config_stands_beside_the_new_one_but_labels(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    again = RoundRecord(tmp_path, config(seed=1))
    interrupt(again)
    assert again.document["seed"] == 1
    assert "evaluation" not in again.document
    assert again.document["labels"] == {"rankings": 3}
    assert again.document["addresses"] == {}
    assert names(folder) == {"round.json", "labels.parquet"}


def test_where_a_round_ends_is_no_other_config(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    before = names(folder)
    with RoundRecord(tmp_path, config(stop_after="labels")) as stopped:
        assert stopped.document["evaluation"] == {"win_rate": 0.7}
    assert (stopped.document["status"], stopped.document["stopped_after"]) == ("complete", "labels")
    with RoundRecord(tmp_path, config()) as whole:
        pass
    assert whole.document["stopped_after"] is None
    assert names(folder) == before


def test_a_round_at_work_is_left_alone(tmp_path: Path) -> None:
    folder = finish(tmp_path)
    before = names(folder)
    with (
        FileLock(folder / ".lock"),
        pytest.raises(InputError, match="another process"),
        RoundRecord(tmp_path, config(seed=1)),
    ):
        pass
    assert names(folder) == before


def test_a_look_at_the_rounds_does_not_stop_one_from_starting(tmp_path: Path) -> None:
    look = FileLock(finish(tmp_path) / ".lock", thread_local=False)
    look.acquire()
    threading.Timer(0.2, look.release).start()
    with RoundRecord(tmp_path, config()) as record:
        assert record.document["status"] == "running"
