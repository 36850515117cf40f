"""The gate, its history, and people who decide otherwise."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from flows import by_hand, history
from flows.config import Promotion
from flows.history import policy_of, read
from flows.lineage import Policy
from flows.promotion import Candidate, ask_gate, failings
from flows.status import describe_rounds
from flows.store import Entry, Store
from labeling.errors import InputError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run `demo`; the current folder is the project's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKLOOP_HOME", raising=False)
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".rankloop" / "store")


def make_round(run: Path, store: Store, number: int, key: str = "") -> Policy:
    """A round with a policy of its own."""
    key = key or f"key-{number}"
    if not store.entry_path("ppo", key).exists():
        partial = store.begin("ppo", key)
        (partial / "policy").mkdir()
        (partial / "policy" / "model.safetensors").write_text(f"weights of {key}")
        store.finish("ppo", key, {"version": 1, "metrics": {}}, {"seconds": 1})
    folder = run / "rounds" / f"{number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    document = {"name": "demo", "round": number, "status": "complete", "error": None}
    stages = {"ppo": {"key": key}}
    (folder / "round.json").write_text(json.dumps(document | {"stages": stages}))
    return policy_of(store, number, key)


def evaluation(
    low: float = 0.6, kl: float = 4.0, valid: tuple[float, float] = (0.99, 0.97)
) -> dict[str, Any]:
    return {
        "win_rate": 0.9,
        "win_rate_vs_incumbent": low + 0.05,
        "win_rate_vs_incumbent_interval": [low, low + 0.1],
        "kl": kl,
        "kl_vs_incumbent": kl / 2,
        "judged_by": "rubric.py:score",
        "guards": {"valid": valid[1]},
        "incumbent": {"guards": {"valid": valid[0]}},
    }


def ask(
    run: Path,
    store: Store,
    number: int,
    against: Policy | None,
    config: Promotion | None = None,
    key: str = "",
    **figures: Any,
) -> history.Decision:
    policy = make_round(run, store, number, key)
    candidate = Candidate(policy, against, evaluation(**figures))
    return ask_gate(run, store, candidate, config or Promotion())[0]


# --- the gate -------------------------------------------------------------------------------------


def test_each_reason_to_refuse_is_told_with_its_figures() -> None:
    strict = Promotion(min_win_rate=0.55, kl_budget=5.0, max_guard_drop={"valid": 0.05})
    policy = Policy(round=1, key="k", digest="d")

    def said(**figures: Any) -> list[str]:
        return failings(Candidate(policy, None, evaluation(**figures)), strict)

    assert said() == []
    (line,) = said(low=0.549)
    assert line.startswith("its win rate over the initial policy is 0.599 [0.549, 0.649]")
    assert "promotion.min_win_rate 0.55" in line
    assert said(low=0.55) == []
    assert said(kl=5.01) == [
        "its KL to the initial policy is 5.01 nats, over promotion.kl_budget 5"
    ]
    (line,) = said(valid=(0.99, 0.93))
    assert line.startswith("the guard 'valid' fell from 0.990 to 0.930")
    assert said(valid=(0.93, 0.99)) == []
    assert len(said(low=0.1, kl=9.0, valid=(0.9, 0.1))) == 3
    loose = failings(Candidate(policy, None, evaluation(kl=99.0, valid=(1, 0))), Promotion())
    assert loose == []


def test_what_is_promoted_is_what_the_next_round_starts_from(run: Path, store: Store) -> None:
    assert read(run).incumbent is None
    first = ask(run, store, 0, None)
    assert (first.what, first.by, first.over) == ("promoted", "gate", None)
    assert read(run).incumbent == first.policy
    second = ask(run, store, 1, first.policy, low=0.3)
    assert second.what == "refused"
    assert "over round 0's policy is 0.350 [0.300, 0.400]" in second.reason
    assert read(run).incumbent == first.policy
    third = ask(run, store, 2, first.policy)
    assert read(run).incumbents == [first.policy, third.policy]
    lines = describe_rounds(run.parent)
    assert lines[-1] == "demo: round 2's policy is promoted (promoted by the gate)"


def test_the_same_question_is_answered_once_whatever_people_decided_since(
    run: Path, store: Store
) -> None:
    first = ask(run, store, 0, None)
    by_hand.roll_back("demo", reason="it is rude")
    before = (run / history.FILE).read_bytes()
    assert ask(run, store, 0, None) == first
    assert (run / history.FILE).read_bytes() == before
    assert read(run).incumbent is None
    other = ask(run, store, 0, None, Promotion(min_win_rate=0.4))
    assert (other.what, read(run).incumbent) == ("promoted", first.policy), "another question"


def test_two_overlapping_rounds_do_not_promote_over_each_other(run: Path, store: Store) -> None:
    make_round(run, store, 0)
    start = threading.Barrier(2)
    made: dict[int, history.Decision] = {}

    def finish(number: int) -> None:
        policy = policy_of(store, number, f"key-{number}")
        start.wait()
        candidate = Candidate(policy, None, evaluation())
        made[number] = ask_gate(run, store, candidate, Promotion())[0]

    make_round(run, store, 1)
    threads = [threading.Thread(target=finish, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won, lost = sorted(made, key=lambda n: made[n].what)
    assert (made[won].what, made[lost].what) == ("promoted", "refused")
    assert made[lost].reason == (
        f"it was evaluated against the initial policy, but round {won}'s policy is promoted now"
    )
    assert read(run).incumbents == [made[won].policy]
    assert len(read(run).decisions) == 2


def test_a_round_that_is_made_anew_takes_its_own_place(run: Path, store: Store) -> None:
    first = ask(run, store, 0, None)
    anew = ask(run, store, 0, None, key="key-0-anew")
    assert anew.what == "promoted"
    second = ask(run, store, 1, anew.policy)
    late = ask(run, store, 0, None, key="key-0-late")
    assert late.what == "refused"
    assert "round 1's policy is promoted now" in late.reason
    assert read(run).incumbents == [first.policy, anew.policy, second.policy]


@pytest.mark.parametrize("by", ["gate", "person"])
def test_a_damaged_policy_is_not_promoted_and_made_anew_by_the_next_run(
    run: Path, store: Store, by: str
) -> None:
    policy = make_round(run, store, 0)
    weights = store.entry_path("ppo", policy.key) / "policy" / "model.safetensors"
    stat = weights.stat()
    weights.write_text("WEIGHTS of key-0")  # as many bytes
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert isinstance(store.find("ppo", policy.key), Entry), "sizes and times say nothing"
    if by == "gate":
        with pytest.raises(InputError, match=r"damaged .* has another content"):
            ask_gate(run, store, Candidate(policy, None, evaluation()), Promotion())
    else:
        with pytest.raises(InputError, match=r"damaged .* has another content"):
            by_hand.promote("demo", 0)
    assert read(run).decisions == ()
    assert store.find("ppo", policy.key) is None
    again = make_round(run, store, 0)
    assert (
        ask_gate(run, store, Candidate(again, None, evaluation()), Promotion())[0].policy == again
    )


def test_a_history_that_cannot_be_read_is_named(run: Path, store: Store) -> None:
    (run / history.FILE).write_text("{")
    with pytest.raises(InputError, match=r"promotions\.json cannot be read"):
        ask(run, store, 0, None)
    assert "promotions.json cannot be read" in describe_rounds(run.parent)[-1]


# --- by hand --------------------------------------------------------------------------------------


def test_people_promote_what_the_gate_refused(run: Path, store: Store) -> None:
    refused = ask(run, store, 0, None, low=0.3)
    said = by_hand.promote("demo", 0, "labelers like it")
    assert said == "demo: round 0's policy is the incumbent now, over the initial policy"
    last = read(run).decisions[-1]
    assert (last.by, last.reason, last.policy) == ("person", "labelers like it", refused.policy)
    with pytest.raises(InputError, match="is the incumbent of demo already"):
        by_hand.promote("demo", 0)


def test_a_rollback_goes_to_the_incumbent_before_or_to_the_one_that_is_named(
    run: Path, store: Store
) -> None:
    policies: list[Policy] = []
    for number in range(3):
        policies.append(make_round(run, store, number))
        by_hand.promote("demo", number)
    said = by_hand.roll_back("demo", reason="worse in use")
    assert said == "demo: round 1's policy is the incumbent again, and round 2's policy no more"
    assert read(run).incumbents == policies[:2]
    by_hand.roll_back("demo")
    assert read(run).incumbent == policies[0]
    assert by_hand.roll_back("demo").startswith("demo: the initial policy is the incumbent again")
    with pytest.raises(InputError, match="nothing of demo is promoted"):
        by_hand.roll_back("demo")
    for number in range(3):
        by_hand.promote("demo", number)
    by_hand.roll_back("demo", 0)
    assert read(run).incumbents == policies[:1]
    by_hand.promote("demo", 2)
    by_hand.promote("demo", 0)
    by_hand.roll_back("demo", 0)
    assert read(run).incumbents == policies[:1], "that before this one"
    by_hand.promote("demo", 2)
    by_hand.roll_back("demo", "initial")
    assert read(run).incumbents == []
    assert len(read(run).decisions) == 15


@pytest.mark.parametrize(
    ("ask_for", "words"),
    [
        (lambda: by_hand.promote("other", 0), "there is no run 'other' in .*; there are demo"),
        (lambda: by_hand.promote("demo", 7), "there is no round 7 of demo"),
        (lambda: by_hand.promote("demo", 2), "round 2 of demo has made no policy yet"),
        (lambda: by_hand.promote("demo", 3), "policy of round 3 is not in the store any more"),
        (lambda: by_hand.roll_back("demo", 1), "round 1's policy was no incumbent of demo before"),
        (lambda: by_hand.roll_back("other"), "there is no run 'other'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    run: Path, store: Store, ask_for: Any, words: str
) -> None:
    make_round(run, store, 0)
    by_hand.promote("demo", 0)
    for number, stages in ((2, {}), (3, {"ppo": {"key": "gone"}})):
        folder = run / "rounds" / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "round.json").write_text(json.dumps({"stages": stages}))
    before = (run / history.FILE).read_bytes()
    with pytest.raises(InputError, match=words) as caught:
        ask_for()
    assert "\n" not in str(caught.value)
    assert (run / history.FILE).read_bytes() == before
