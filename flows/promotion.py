"""The gate that makes a round's policy the incumbent, from which the next round starts, or refuses
it with its reasons. No Prefect.

It compares what a round was evaluated against with what is promoted when it decides: two
rounds never promote over each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config import Promotion
from flows.history import Decision, deciding, now, read, verify
from flows.lineage import Policy, named
from flows.store import Store, digest_of_json


@dataclass(frozen=True)
class Candidate:
    """A round's policy before the gate: what it was evaluated against (None: the initial policy),
    and the metrics of that evaluation."""

    policy: Policy
    against: Policy | None
    evaluation: Mapping[str, Any]

    def question(self, config: Promotion) -> str:
        """Digest of all that the gate's answer depends on, but for what is promoted meanwhile."""
        asked = [self.policy, self.against, config]
        return digest_of_json([v and v.model_dump(mode="json") for v in asked] + [self.figures])

    @property
    def figures(self) -> dict[str, Any]:
        """What the gate reads."""
        names = ("win_rate", "win_rate_vs_incumbent", "win_rate_vs_incumbent_interval")
        e = self.evaluation
        figures = {name: e[name] for name in (*names, "kl", "kl_vs_incumbent", "judged_by")}
        return figures | {"guards": e["guards"], "incumbent_guards": e["incumbent"]["guards"]}


def failings(candidate: Candidate, config: Promotion) -> list[str]:
    """Why the candidate is not to be promoted, a line for each reason; empty when it is."""
    e, whom = candidate.evaluation, named(candidate.against)
    low, high = e["win_rate_vs_incumbent_interval"]
    said = []
    if low < config.min_win_rate:
        said.append(
            f"its win rate over {whom} is {e['win_rate_vs_incumbent']:.3f} "
            f"[{low:.3f}, {high:.3f}]: the lower bound is below promotion.min_win_rate "
            f"{config.min_win_rate:g}"
        )
    if config.kl_budget is not None and e["kl"] > config.kl_budget:
        said.append(
            f"its KL to the initial policy is {e['kl']:.2f} nats, over promotion.kl_budget "
            f"{config.kl_budget:g}"
        )
    for name, drop in sorted(config.max_guard_drop.items()):
        before, after = e["incumbent"]["guards"][name], e["guards"][name]
        if before - after > drop:
            said.append(
                f"the guard '{name}' fell from {before:.3f} to {after:.3f}, by more than "
                f"promotion.max_guard_drop {drop:g}"
            )
    return said


def ask_gate(
    run: Path, store: Store, candidate: Candidate, config: Promotion
) -> tuple[Decision, bool]:
    """Promote the candidate or refuse it; and whether that was decided before. The same question
    is answered once: a run that goes on or is repeated changes nothing, even when people decided
    otherwise meanwhile.

    Raises:
        InputError: the policy's files are not what its evaluation saw.
    """
    question = candidate.question(config)
    if known := read(run).answer(question):
        return known, True
    said = failings(candidate, config)
    if not said:
        verify(store, candidate.policy)
    with deciding(run) as (history, decide):
        if overtaken := _overtaken(history.incumbents, candidate):
            said.insert(0, overtaken)
        low, high = candidate.evaluation["win_rate_vs_incumbent_interval"]
        reason = "; ".join(said) or (
            f"its win rate over {named(candidate.against)} is "
            f"{candidate.evaluation['win_rate_vs_incumbent']:.3f} [{low:.3f}, {high:.3f}], judged "
            f"by {candidate.evaluation['judged_by']}"
        )
        decision = Decision(
            time=now(),
            what="refused" if said else "promoted",
            by="gate",
            policy=candidate.policy,
            over=history.incumbent,
            reason=reason,
            figures=candidate.figures,
            question=question,
        )
        decide(decision)
    return decision, False


def _overtaken(incumbents: Sequence[Policy], candidate: Candidate) -> str | None:
    """What is wrong when another policy is promoted than the candidate was evaluated against. A
    round that is made anew takes the place of what it promoted before."""
    others = [policy for policy in incumbents if policy.round != candidate.policy.round]
    incumbent = others[-1] if others else None
    if incumbent == candidate.against:
        return None
    return (
        f"it was evaluated against {named(candidate.against)}, but {named(incumbent)} is promoted "
        "now"
    )
