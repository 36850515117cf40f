"""`rankloop promote` and `rankloop rollback`: people decide which policy is the incumbent, whatever
the gate said. Each ends in one line that says what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from flows.history import Decision, History, deciding, now, policy_of, read, verify
from flows.lineage import Policy, named
from flows.servers import default_home
from flows.store import Store
from labeling.errors import InputError

Target = int | Literal["initial"] | None


def promote(name: str, number: int, reason: str = "") -> str:
    """Make the policy of a round of the run the incumbent.

    Raises:
        InputError: there is no such policy, it is the incumbent already, or its files are damaged.
    """
    run, store = _run(name), Store(default_home() / "store")
    policy = policy_of(store, number, _made_policy(run, number))
    verify(store, policy)
    with deciding(run) as (history, decide):
        if history.incumbent == policy:
            raise InputError(f"{policy} is the incumbent of {name} already")
        over = history.incumbent
        decide(_by_hand("promoted", policy, over, reason))
    return f"{name}: {policy} is the incumbent now, over {named(over)}"


def roll_back(name: str, to: Target = None, reason: str = "") -> str:
    """Make an earlier incumbent the incumbent again: the one before, or that of the round `to`.

    Raises:
        InputError: nothing is promoted, that round's policy never was, or its files are damaged.
    """
    run, store = _run(name), Store(default_home() / "store")
    if wanted := _earlier(name, read(run), to):
        verify(store, wanted)
    with deciding(run) as (history, decide):
        target, over = _earlier(name, history, to), history.incumbent
        if target != wanted:
            raise InputError(f"another policy of {name} was promoted just now: look again")
        decide(_by_hand("rolled back", target, over, reason))
    return f"{name}: {named(target)} is the incumbent again, and {named(over)} no more"


def _by_hand(
    what: Literal["promoted", "rolled back"],
    policy: Policy | None,
    over: Policy | None,
    reason: str,
) -> Decision:
    return Decision(
        time=now(), what=what, by="person", policy=policy, over=over, reason=reason or "by hand"
    )


def _earlier(name: str, history: History, to: Target) -> Policy | None:
    if history.incumbent is None:
        raise InputError(f"nothing of {name} is promoted: there is nothing to roll back")
    before = history.incumbents[:-1]
    if to is None:
        return before[-1] if before else None
    if to == "initial":
        return None
    for policy in reversed(before):
        if policy.round == to:
            return policy
    others = "".join(f"{policy.round}, " for policy in dict.fromkeys(before))
    raise InputError(
        f"round {to}'s policy was no incumbent of {name} before {history.incumbent}; roll back to "
        f"{others}'initial'"
    )


def _run(name: str) -> Path:
    runs = Path.cwd() / "runs"
    if not (runs / name).is_dir():
        there = sorted(p.name for p in runs.iterdir() if p.is_dir()) if runs.is_dir() else []
        hint = f"; there are {', '.join(there)}" if there else ""
        raise InputError(f"there is no run '{name}' in {runs}{hint}")
    return runs / name


def _made_policy(run: Path, number: int) -> str:
    """The key of the policy that a round made."""
    path = run / "rounds" / f"{number:03d}" / "round.json"
    try:
        return str(json.loads(path.read_text())["stages"]["ppo"]["key"])
    except FileNotFoundError:
        raise InputError(
            f"there is no round {number} of {run.name} ({path} does not exist)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"round {number} of {run.name} has made no policy yet: run it to its end"
        ) from None
