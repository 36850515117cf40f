"""Stages that do next to nothing, for tests of the store and of the child process."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field
from safetensors.numpy import save_file

from flows.stages import Stage
from labeling.errors import InputError
from labeling.records import write_table
from labeling.scoring import load_score_function

logger = logging.getLogger("flows.toy")


class Toy(BaseModel, frozen=True, extra="forbid"):
    seed: int = 0
    factor: float = 1.0
    device: str = Field("auto", json_schema_extra={"keyed": False})
    fail: str = ""
    folder: str = Field("", json_schema_extra={"keyed": False})


@dataclass(frozen=True)
class ToyMetrics:
    characters: int
    lost: float


COPY = Stage("copy", "tests.flows.toy_stages:copy", {"source": "path"}, "copied.txt")
WAIT = Stage("wait", "tests.flows.toy_stages:wait", {}, "done.txt")
TALK = Stage("talk", "tests.flows.toy_stages:talk", {}, "done.txt")


def copy(config: Toy, source: Path, out: Path) -> ToyMetrics:
    """Copies a file; `folder` counts how often it really ran."""
    assert list(out.iterdir()) == []
    with (Path(config.folder) / "calls").open("a") as calls:
        calls.write("call\n")
    logger.info("half of it", extra={"progress": (1, 2), "metrics": {"loss": 0.5}})
    print("somebody prints")
    print("an unfinished line", end="")
    logger.info("the other half", extra={"progress": (2, 2)})
    if config.fail == "input":
        raise InputError("the source is wrong: mend it")
    if config.fail:
        raise {"bug": KeyError, "away": ConnectionError}[config.fail]("no\nluck")
    text = source.read_text()
    (out / "copied.txt").write_text(text)
    (out / "folder").mkdir()
    (out / "folder" / "seed.txt").write_text(str(config.seed))
    (out / "timings.json").write_text('{"reading": 0.1}')
    return ToyMetrics(len(text), float("nan"))


def wait(config: Toy, out: Path) -> ToyMetrics:
    """Says who it is, leaves half of a file, and waits for a file `go` in `folder`."""
    folder = Path(config.folder)
    (out / "half.txt").write_text("half")
    with (folder / "calls").open("a") as calls:
        calls.write(f"{sorted(p.name for p in out.iterdir())}\n")
    (folder / "pid.partial").write_text(str(os.getpid()))
    os.replace(folder / "pid.partial", folder / "pid")
    while not (folder / "go").exists():
        time.sleep(0.02)
    (out / "done.txt").write_text("done")
    return ToyMetrics(0, 0.0)


def talk(config: Toy, out: Path) -> ToyMetrics:
    """Prints what looks like this project's own messages."""
    for text in ('{"level": "info"}', '{"error": "mine"}', '{"result": 1}', '{"rankloop": 2}'):
        print(text)
    (out / "done.txt").write_text("done")
    print('{"error": "mine again"}', flush=True)
    return ToyMetrics(0, 0.0)


def environment(config: Toy, out: Path) -> ToyMetrics:
    (out / "names.txt").write_text("\n".join(sorted(os.environ)))
    return ToyMetrics(0, 0.0)


RAISE = Stage("raise", "tests.flows.toy_stages:fail", {}, "done.txt")
BREED = Stage("breed", "tests.flows.toy_stages:breed", {}, "done.txt")


def fail(config: Toy, out: Path) -> ToyMetrics:
    """Fails in the way that `fail` says; `folder` is an address where nobody answers."""
    if config.fail == "memory of torch":
        import torch  # noqa: PLC0415

        torch.empty(10**15)
    if config.fail == "network":
        httpx.get(config.folder, trust_env=False)
    if config.fail == "input":
        raise InputError("the rubric is wrong: mend it")
    raise FloatingPointError("the loss is not finite in step 3")


def breed(config: Toy, out: Path) -> ToyMetrics:
    """Starts a process in a session of its own, which starts another one in another session. Both
    are deaf to SIGTERM and keep the stage's output open; `folder` gets their ids. Then waits."""
    family = Path(config.folder) / "family"
    script = "trap '' TERM; setsid sleep 600 & echo $$ $! >family.partial; mv family.partial family"
    subprocess.Popen(["sh", "-c", f"{script}; wait"], cwd=family.parent, start_new_session=True)
    while not family.exists():
        time.sleep(0.02)
    return wait(config, out)


JUDGE = Stage("judge", "tests.flows.toy_stages:judge", {"function": "function"}, "done.txt")
FILL = Stage("fill", "tests.flows.toy_stages:fill", {}, "done.txt")


def judge(config: Toy, function: str, out: Path) -> ToyMetrics:
    """Asks a user's function, after writing half of its output."""
    (out / "half.txt").write_text("half")
    scores = load_score_function(function)(["p", "q"], ["a", "b"])
    (out / "done.txt").write_text(str(scores))
    return ToyMetrics(0, 0.0)


def fill(config: Toy, out: Path) -> ToyMetrics:
    """Writes a million bytes, in the way that `fail` says."""
    weights = np.zeros(250_000, dtype=np.float32)
    if config.fail == "safetensors":
        save_file({"weights": weights}, out / "model.safetensors")
    elif config.fail == "parquet":
        noise = np.random.default_rng(0).random(125_000)  # it would compress zeros
        write_table(pa.table({"noise": noise}), out / "noise.parquet")
    else:
        (out / "bytes").write_bytes(weights.tobytes())
    (out / "done.txt").write_text("done")
    return ToyMetrics(0, 0.0)
