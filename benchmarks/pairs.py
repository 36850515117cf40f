"""Rankings to preference pairs: a million pairs, and the memory that takes.

    python benchmarks/pairs.py

166,667 tasks with K = 4 completions of 300 to 1,200 characters and prompts of 100 to 500, each
ranked once without ties: 1,000,002 pairs. The clock runs from `completions.parquet` and
`labels.parquet` on the disk to `pairs.parquet` on the disk; making the data is left out. Texts are
made of 20,000 invented words, used as often as Zipf's law says, so that they compress as prose
does. Each repeat runs in a process of its own, on one thread, for its peak memory is measured too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TASKS, K = 166_667, 4
_MEASURE = """
import json, sys, time
from pathlib import Path
import pyarrow as pa
from labeling.config import Pairs
from labeling.pairs import make_pairs

def peak():
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's as well
    return int(status.split("VmHWM:")[1].split()[0]) / 1024  # MiB

def waited():  # seconds in which this process could have run, and another one did
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9

folder = Path(sys.argv[1])
before, others, cpu, start = peak(), waited(), time.process_time(), time.perf_counter()
metrics = make_pairs(Pairs(), folder / "completions.parquet", folder / "labels.parquet", folder)
seconds = time.perf_counter() - start
cpu_seconds = time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds,
    "waited_seconds": waited() - others, "pairs": metrics.pairs,
    "peak_mib": peak(), "imports_mib": before,
    "file_mib": (folder / "pairs.parquet").stat().st_size / 2**20}))
"""


def million_pairs_seconds(repeats: int = 3) -> float:
    """Seconds from labels to a million pairs on the disk: the median of some repeats."""
    return float(statistics.median(run["seconds"] for run in measure(repeats)))


def measure(repeats: int, tasks: int = TASKS) -> list[dict[str, float]]:
    """Each repeat's seconds, those on the CPU and those spent waiting for other processes, its
    pairs, and in MiB the peak memory (of which the imports) and the file."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "ARROW_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as scratch:
        make_data(Path(scratch), tasks)
        return [
            json.loads(
                subprocess.run(
                    [sys.executable, "-c", _MEASURE, scratch],
                    env=os.environ | one,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for _ in range(repeats)
        ]


def make_data(folder: Path, tasks: int) -> None:
    """Write `completions.parquet` and `labels.parquet`."""
    import numpy as np  # noqa: PLC0415 - the threads are set by then

    from labeling.records import (  # noqa: PLC0415
        Candidates,
        Completion,
        Prompt,
        Ranking,
        write_candidates,
        write_rankings,
    )

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwyp"))
    words = ["".join(rng.choice(letters, size=rng.integers(2, 10))) for _ in range(20_000)]
    often = 1 / np.arange(1, 20_001)
    prose = " ".join(np.array(words)[rng.choice(20_000, 2_000_000, p=often / often.sum())])

    def text(low: int, high: int) -> str:
        length = int(rng.integers(low, high))
        start = int(rng.integers(len(prose) - length))
        return prose[start : start + length]

    made = [
        Candidates(
            Prompt(text=f"{i} {text(100, 500)}"),
            tuple(Completion(text(300, 1_200)) for _ in range(K)),
        )
        for i in range(tasks)
    ]
    orders = rng.permuted(np.tile(np.arange(K), (tasks, 1)), axis=1).tolist()
    write_candidates(made, folder / "completions.parquet")
    write_rankings(
        [
            Ranking(task.key, "labeler@example.org", tuple((i,) for i in order))
            for task, order in zip(made, orders, strict=True)
        ],
        folder / "labels.parquet",
    )


if __name__ == "__main__":
    for run in measure(3):
        print({name: round(value, 2) for name, value in run.items()})
