"""What was promoted, refused and rolled back in a run, for ever.

`runs/<name>/promotions.json` holds every decision in order; the incumbent follows from them. Each
is written under a lock. No Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from flows.lineage import Policy
from flows.store import Damage, Store, write_json
from labeling.errors import InputError

FILE = "promotions.json"


class Decision(BaseModel, frozen=True):
    """One line of the history.

    `policy` is what it is about, `over` what was promoted before (None: the initial policy).
    `figures` are those that the gate read, and `question` a digest of all that it was asked: the
    same question gets the same answer.
    """

    time: str
    what: Literal["promoted", "refused", "rolled back"]
    by: Literal["gate", "person"]
    policy: Policy | None
    over: Policy | None
    reason: str
    figures: dict[str, Any] = {}
    question: str | None = None

    @property
    def verdict(self) -> dict[str, Any]:
        """What the report says of it: the same whenever it was decided."""
        return {"what": self.what, "by": self.by, "reason": self.reason}


class History(BaseModel, frozen=True):
    """All decisions of a run, in order."""

    decisions: tuple[Decision, ...] = ()

    @property
    def incumbents(self) -> list[Policy]:
        """The promoted policies, each over the one before it; the last one is the incumbent."""
        promoted: list[Policy] = []
        for decision in self.decisions:
            if decision.what == "promoted" and decision.policy:
                promoted.append(decision.policy)
            elif decision.what == "rolled back":
                del promoted[-1:]
                while promoted and promoted[-1] != decision.policy:
                    promoted.pop()
        return promoted

    @property
    def incumbent(self) -> Policy | None:
        """What is promoted; None: the initial policy."""
        return self.incumbents[-1] if self.incumbents else None

    def answer(self, question: str) -> Decision | None:
        """What the gate said when it was asked the same."""
        return next((d for d in reversed(self.decisions) if d.question == question), None)


def read(run: Path) -> History:
    """The history in the run's folder; empty when nothing was decided.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return History.model_validate_json((run / FILE).read_bytes())
    except FileNotFoundError:
        return History()
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{run / FILE} cannot be read ({type(error).__name__}): it says which policy is "
            "promoted; bring it back from a backup, or remove it to begin from the initial policy"
        ) from error


def policy_of(store: Store, number: int, key: str) -> Policy:
    """The policy of a round, by its entry's key.

    Raises:
        InputError: there is no such entry.
    """
    try:
        digest = store.digest(store.entry_path("ppo", key) / "policy")
    except FileNotFoundError:
        raise InputError(
            f"the policy of round {number} is not in the store any more: run the round again"
        ) from None
    return Policy(round=number, key=key, digest=digest)


def verify(store: Store, policy: Policy) -> None:
    """Read every file once more: what is promoted is what was made and measured."""
    found = store.find("ppo", policy.key, verify=True)
    if found is None:
        raise InputError(f"{policy} is not in the store any more: run the round again")
    if isinstance(found, Damage):
        store.discard(store.entry_path("ppo", policy.key))
        raise InputError(
            f"{policy} is damaged ({found.reason}) and is not promoted; run the round again, "
            "which makes it anew"
        )


@contextmanager
def deciding(run: Path) -> Iterator[tuple[History, Callable[[Decision], None]]]:
    """The history, which nobody else changes meanwhile, and how to add to it."""
    with FileLock(run / f".{FILE}.lock"):
        history = read(run)

        def decide(decision: Decision) -> None:
            grown = History(decisions=(*history.decisions, decision))
            incumbent = grown.incumbent and grown.incumbent.model_dump(mode="json")
            write_json(run / FILE, {"incumbent": incumbent} | grown.model_dump(mode="json"))

        yield history, decide


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
