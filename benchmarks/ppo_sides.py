"""The child processes that `ppo_vs_trl.py` lets work in turn, and what they measure."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECTIONS = ("generate", "score", "update")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


@dataclass(frozen=True)
class Measured:
    """One side at one size."""

    parameters: int
    response_tokens: int
    peak_bytes: int
    flops: float  # of an update
    steps: list[dict[str, float]]  # CPU seconds by section, on a GPU those of the clock

    @property
    def seconds(self) -> float:
        """Median CPU seconds of a step."""
        return statistics.median(sum(step.values()) for step in self.steps)

    def section(self, name: str) -> float:
        """Median CPU seconds of a section."""
        return statistics.median(step[name] for step in self.steps)

    def mfu(self, peak: float) -> float:
        """Model FLOPs utilisation of the update, in percent of a device's `peak` a second."""
        return 100 * self.flops / self.section("update") / peak

    def figures(self) -> dict[str, Any]:
        """What the JSON file says of it."""
        return {
            "seconds": self.seconds,
            "tokens_per_second": self.response_tokens / self.seconds,
            "update_flops": self.flops,
            **{f"{name}_seconds": self.section(name) for name in SECTIONS},
            "peak_bytes": self.peak_bytes,
            "steps": self.steps,
        }


class Side:
    """A child process that does one step at a time, with the folder `first` on its import path."""

    def __init__(self, script: Path, size: str, steps: int, first: Path, *more: str) -> None:
        command = (sys.executable, str(script), size, "--steps", str(steps), *more)
        self.name = f"{script.name} {size}"
        self.steps: list[dict[str, float]] = []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self.process = subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(first)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()  # nothing happens if it has ended
        self.process.communicate()
        self.errors.close()

    def step(self) -> dict[str, float]:
        """Let it do a step; CPU seconds by section."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: _read says why
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        self.steps.append(self._read())
        return self.steps[-1]

    def end(self) -> Measured:
        """What it measured; the first step does not count."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None
        return Measured(steps=self.steps[1:], **self._read())

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"'):  # TRL prints its metrics, with other quotes
                return json.loads(line)
        self.errors.seek(0)
        sys.exit(f"{self.errors.read()}\n{self.name} ended before its work was done")
