"""What a round starts from: noted when it begins, and found again in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.config import StopAfter
from flows.lineage import Lineage, Policy, Start, begin, look, next_round
from flows.store import Store
from labeling.errors import InputError

INCUMBENT = Policy(round=0, key="p0", digest="d0")
OTHER = Policy(round=1, key="p1", digest="d1")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "demo"


def make_round(run: Path, number: int, status: str = "complete", **stages: str) -> None:
    document: dict[str, Any] = {
        "round": number,
        "status": status,
        "config": {"name": "demo", "number": number},
        "seed": 7,
        "versions": {"torch": "2"},
        "started_from": None,
        "stages": {n: {"key": k, "commit": f"commit of {n}"} for n, k in stages.items()},
        "labels": {"rankings": 5, "labelers": 2, "pairs": 30, "refused": {}},
        "data": {"rankings": f"labels {number}"},
        "evaluation": {"win_rate": 0.75, "win_rate_vs_incumbent": 0.5},
        "promotion": {"what": "refused", "reason": "r", "by": "gate"},
    }
    document["stages"]["publish"] = {"seconds": 1.0}
    folder = run / "rounds" / f"{number:03d}"
    folder.mkdir(parents=True)
    (folder / "round.json").write_text(json.dumps(document))


def test_a_round_goes_on_from_what_it_began_with_whatever_happens_meanwhile(run: Path) -> None:
    make_round(run, 0, completions="c0")
    (run / "rounds" / "001").mkdir()
    begun = begin(run, 1, None)
    (run / "rounds" / "000" / "round.json").unlink()
    (run / "rounds" / "000").rmdir()
    make_round(run, 0, completions="c0", pairs="later")
    assert begin(run, 1, OTHER) == begun == look(run, 1, INCUMBENT)
    assert begun.incumbent is None
    assert begun.earlier[0].stages == {"completions": "c0"}


def test_a_look_notes_nothing(run: Path) -> None:
    make_round(run, 0)
    before = sorted(run.rglob("*"))
    assert look(run, 1, INCUMBENT).incumbent == INCUMBENT
    assert sorted(run.rglob("*")) == before


def test_an_ancestor_holds_what_its_round_was_made_of(run: Path) -> None:
    make_round(run, 0, completions="c0", ppo="p0")
    make_round(run, 1, completions="c1")
    one, two = look(run, 2, INCUMBENT).earlier
    assert (one.round, two.round) == (0, 1)
    assert one.stages == {"completions": "c0", "ppo": "p0"}
    assert one.commits == ("commit of completions", "commit of ppo")
    assert one.labels == {"rankings": 5, "labelers": 2, "pairs": 30}
    assert (one.seed, one.versions, one.promotion) == (7, {"torch": "2"}, "refused")
    assert (one.win_rate, one.win_rate_vs_incumbent) == (0.75, 0.5)
    assert one.config != two.config
    assert one.data != two.data


def test_the_first_round_starts_from_nothing(run: Path) -> None:
    assert begin(run, 0, OTHER) == Lineage(round=0)
    assert not run.exists()


@pytest.mark.parametrize("number", [1, 3])
def test_a_round_before_its_turn_is_refused(run: Path, number: int) -> None:
    if number == 3:
        make_round(run, 0)
        make_round(run, 2)
    with pytest.raises(InputError, match=f"round {number} of demo comes after round {number - 1}"):
        look(run, number, None)


def test_what_cannot_be_read_is_named(run: Path) -> None:
    make_round(run, 0)
    (run / "rounds" / "001").mkdir()
    pinned = run / "rounds" / "001" / "lineage.json"
    pinned.write_text("{")
    with pytest.raises(InputError, match=r"lineage\.json cannot be read"):
        begin(run, 1, None)
    pinned.unlink()
    (run / "rounds" / "000" / "round.json").write_text('{"status": "complete"}')
    with pytest.raises(InputError, match="was written by another version"):
        begin(run, 1, None)
    (run / "rounds" / "000" / "round.json").write_text("{")
    with pytest.raises(InputError, match=r"round\.json cannot be read"):
        begin(run, 1, None)
    assert not pinned.exists()


def test_the_next_round_is_the_unfinished_one_or_a_new_one(run: Path) -> None:
    assert next_round(run, None) == 0
    make_round(run, 0)
    assert next_round(run, None) == 1
    make_round(run, 1, status="interrupted")
    assert next_round(run, None) == 1


@pytest.mark.parametrize(
    ("stopped_after", "stop_after", "number"),
    [
        ("labels", None, 0),
        ("labels", "reward", 0),
        ("labels", "labels", 1),
        ("labels", "completions", 1),
        ("completions", "labels", 0),
        ("reward", "labels", 1),
        ("reward", None, 0),
        (None, "labels", 1),
    ],
)
def test_a_round_that_was_stopped_goes_on_once_the_config_ends_it_later(
    run: Path, stopped_after: str | None, stop_after: StopAfter | None, number: int
) -> None:
    make_round(run, 0)
    path = run / "rounds" / "000" / "round.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"stopped_after": stopped_after}))
    assert next_round(run, stop_after) == number


# --- files ----------------------------------------------------------------------------------------


def put(store: Store, stage: str, key: str, *files: str) -> None:
    partial = store.begin(stage, key)
    for file in files:
        (partial / file).parent.mkdir(exist_ok=True)
        (partial / file).write_text(key)
    store.finish(stage, key, {"metrics": {}}, {"seconds": 1})


def test_a_start_is_the_newest_reward_model_and_everything_ranked(
    run: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    put(store, "sft", "s", "policy/model")
    put(store, "ppo", "p0", "policy/model")
    for key in ("a", "b", "c"):
        put(store, "completions", key, "completions.parquet")
        put(store, "pairs", key, "pairs.parquet")
        put(store, "reward", key, "reward_model/model")
    make_round(run, 0, sft="s", completions="a", pairs="a", reward="a", ppo="p0")
    make_round(run, 1, completions="b", pairs="b", reward="b")
    make_round(run, 2, status="interrupted", completions="c")  # it waits for its rankings
    start = Start(look(run, 3, INCUMBENT), store)
    assert (start.initial and start.initial.parent.name) == "s"
    assert (start.incumbent and start.incumbent.parent.name) == "p0"
    assert [path.read_text() for path in start.completions] == ["a", "b", "c"]
    assert [path.read_text() for path in start.pairs] == ["a", "b"]
    assert (start.reward_model and start.reward_model.parent.name) == "b"
    assert Start(look(run, 3, None), store).incumbent is None
    first = Start(Lineage(round=0), store)
    assert (first.initial, first.incumbent, first.pairs, first.reward_model) == (
        None,
        None,
        [],
        None,
    )
    (store.entry_path("pairs", "a") / "pairs.parquet").unlink()
    with pytest.raises(InputError, match="pairs a of round 0, from which round 3 starts"):
        Start(look(run, 3, INCUMBENT), store)
