"""What a run tells while it runs: a row of metrics an iteration, timings, samples, TensorBoard."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from labeling.durable import put_in_place
from labeling.records import Prompt
from ppo.advantages import masked_mean
from ppo.rollout import Experience, Rollout

METRICS, TIMINGS, SAMPLES = "metrics.jsonl", "timings.jsonl", "samples.jsonl"
TENSORBOARD = "tensorboard"
SAMPLES_SHOWN = 4

logger = logging.getLogger(__name__)


def describe(rollout: Rollout, experience: Experience, kl_coef: float) -> dict[str, float]:
    """One row of metrics about a rollout, in TRL's names. Every mean is over valid tokens."""
    mask = rollout.sequences.mask
    lengths = mask.sum(dim=1).float()
    returns_variance = masked_variance(experience.returns, mask)
    residual_variance = masked_variance(experience.returns - rollout.values, mask)
    finished = [float(c.finished) for c in rollout.completions]
    return {
        "objective/scores": rollout.raw_scores.mean().item(),
        "objective/scores_std": rollout.raw_scores.std(correction=0).item(),
        "objective/kl": rollout.kl.mean().item(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": rollout.entropy,
        "objective/non_score_reward": (-kl_coef * rollout.kl).mean().item(),
        "objective/rlhf_reward": (rollout.scores - kl_coef * rollout.kl).mean().item(),
        "val/explained_variance": (
            1 - residual_variance / returns_variance if returns_variance > 0 else 0.0
        ),
        "response/length": lengths.mean().item(),
        "response/tokens": lengths.sum().item(),
        "response/finished": sum(finished) / len(finished),
        "response/distinct": len({c.text for c in rollout.completions}) / len(finished),
    }


def masked_variance(values: Tensor, mask: Tensor) -> float:
    """Variance of the valid entries."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask).item()


class Journal:
    """The files of a run. What was written after the checkpoint that a run goes on from is cut
    off, so that every iteration stands there once."""

    def __init__(self, out: Path, iterations: int) -> None:
        """`iterations`: how many are done already."""
        self.rows = _cut(out / METRICS, iterations, "iteration")
        _cut(out / TIMINGS, iterations, "iteration")
        self.sampled = {row["iteration"] for row in _cut(out / SAMPLES, iterations, "iteration")}
        self._files = {
            name: (out / name).open("a", encoding="utf-8") for name in (METRICS, TIMINGS, SAMPLES)
        }
        self._board = _board(out / TENSORBOARD, iterations)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        self._board.close()

    def metrics(self, row: dict[str, float]) -> None:
        """An iteration's figures, without any timing: two runs with one seed write the same."""
        self.rows.append(row)
        self._write(METRICS, row)
        self._plot(row, int(row["iteration"]))

    def timings(self, row: dict[str, float]) -> None:
        """An iteration's seconds and tokens a second."""
        self._write(TIMINGS, row)
        self._plot({f"time/{k}": v for k, v in row.items()}, int(row["iteration"]))

    def samples(self, iteration: int, prompts: Sequence[Prompt], rollout: Rollout) -> None:
        """The first few responses of a rollout."""
        shown = range(min(SAMPLES_SHOWN, len(prompts)))
        rows = [
            {
                "iteration": iteration,
                "prompt": prompts[i].readable,
                "response": rollout.completions[i].text,
                "finished": rollout.completions[i].finished,
                "score": rollout.raw_scores[i].item(),
                "kl": rollout.kl[i].item(),
            }
            for i in shown
        ]
        self._write(SAMPLES, *rows)
        self.sampled.add(iteration)
        table = "\n".join(
            f"| {_cell(r['prompt'])} | {_cell(r['response'])} | {r['score']:.2f} |" for r in rows
        )
        self._board.add_text(
            "samples", f"| prompt | response | score |\n|---|---|---|\n{table}", iteration
        )

    def sync(self) -> None:
        """Make sure that all rows are on the disk, before a checkpoint counts on them."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def _write(self, name: str, *rows: dict[str, Any]) -> None:
        self._files[name].write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        self._files[name].flush()

    def _plot(self, row: dict[str, float], iteration: int) -> None:
        for name, value in row.items():
            if name != "iteration":
                self._board.add_scalar(name, value, iteration)


def _cut(path: Path, iterations: int, counter: str) -> list[dict[str, float]]:
    """The rows of the first iterations; the file then holds those alone."""
    rows = list(_whole_rows(path))
    kept = [row for row in rows if row[counter] <= iterations]
    if path.exists():
        partial = path.with_name(path.name + ".partial")
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept)
        partial.write_text(text, encoding="utf-8")
        put_in_place(partial, path)  # or a power cut could take the rows that a checkpoint needs
    return kept


def rows_there(out: Path) -> int:
    """How many iterations have their row of metrics, from the first one without a gap."""
    numbers = (row.get("iteration") for row in _whole_rows(out / METRICS))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], enumerate(numbers, 1)))


def _whole_rows(path: Path) -> Iterable[dict[str, Any]]:
    """Rows up to the first that a kill tore."""
    # As bytes: a kill tears characters too, and text may hold other line ends than ours.
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            return


def _board(folder: Path, iterations: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (slow to import)

    return SummaryWriter(str(folder), purge_step=iterations + 1)


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")[:300]
