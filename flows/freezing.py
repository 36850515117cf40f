"""The rankings that a round learns from, frozen once. No Prefect."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flows.answers import Look, of_export
from flows.publication import Published
from flows.recipe import LABELS_SUMMARY
from labeling import snapshots
from labeling.durable import put_in_place
from labeling.errors import InputError
from labeling.records import read_candidates, read_rankings, write_rankings
from labeling.snapshots import Snapshot
from labeling.tally import listed
from labeling.wording import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenLabels:
    """The rankings that this round learns from: the file, and how it came to be. `snapshot` names
    the export that they were made of, its digest included; `refused` is empty when they were frozen
    before."""

    output: Path
    rankings: int
    labelers: int
    reused: bool
    snapshot: str = ""
    refused: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def where(self) -> str:
        return str(self.output)


def find_frozen(labels: Path, completions: Path) -> FrozenLabels | None:
    """The labels if they were frozen before.

    Raises:
        InputError: they rank other completions than this round's.
    """
    if not labels.exists():
        return None
    try:
        rankings = read_rankings(labels)
    except Exception as error:  # pyarrow's errors are many and unrelated
        raise InputError(
            f"{labels} cannot be read ({type(error).__name__}): remove it to freeze the labels anew"
        ) from error
    known = {task.key for task in read_candidates(completions)}
    strangers = sum(ranking.task not in known for ranking in rankings)
    if strangers:
        raise InputError(
            f"{labels}: {strangers:,} of {len(rankings):,} rankings are of other "
            "completions (the model, the prompts or the sampling changed since); give this run "
            "another name with --name, or remove that file to rank anew"
        )
    pinned = snapshots.pinned(labels.parent / "snapshots")
    return FrozenLabels(
        labels,
        len(rankings),
        len({r.labeler for r in rankings}),
        reused=True,
        snapshot=pinned.path.name if pinned else "",
    )


def freeze(published: Published, snapshot: Snapshot, labels: Path) -> FrozenLabels:
    """Write the usable rankings of a kept export to `labels`, atomically; for a round that has none
    yet. Label Studio is not asked: whatever happens there afterwards changes nothing.

    Raises InputError when the snapshot is damaged.
    """
    tasks = read_candidates(published.completions)
    look = Look(of_export(published.snapshots, snapshot.tasks(), tasks), snapshot)
    rankings, refused = look.rankings, look.refused
    snapshots.pin(snapshot)
    _write_summary(labels.with_name(LABELS_SUMMARY), look)
    write_rankings(rankings, labels)
    if refused:
        logger.warning("%s not used: %s", counted(refused.total(), "answer"), listed(refused))
    return FrozenLabels(
        labels,
        len(rankings),
        len({r.labeler for r in rankings}),
        reused=False,
        snapshot=snapshot.path.name,
        refused={str(reason): count for reason, count in refused.items()},
    )


def _write_summary(path: Path, look: Look) -> None:
    by_labeler = Counter(ranking.labeler for ranking in look.rankings)
    document = {
        "rankings": len(look.rankings),
        "by_labeler": sorted(by_labeler.values(), reverse=True),
        "refused": dict(sorted(look.refused.items())),
    }
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    put_in_place(partial, path)
