"""The demo's data: made by examples/support/world.py, again only when its files changed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from flows.servers import default_home
from flows.store import write_json
from labeling.errors import InputError

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "support"
# What the data are made of; the rubric and the config only use them.
_GENERATOR = ("world.py", "base_model.py", "sentences.yaml")


def prepare() -> Path:
    """The demo's config, with its data in place.

    Raises:
        InputError: the examples are not there (Rankloop runs from a clone), or the generator
            failed.
    """
    config = EXAMPLE / "config.yaml"
    if not config.is_file():
        raise InputError(f"{config} does not exist; the demo needs a clone of the repository")
    data, stamp = EXAMPLE / "data", default_home() / "demo-data.json"
    generator = {n: hashlib.sha256((EXAMPLE / n).read_bytes()).hexdigest() for n in _GENERATOR}
    wanted = {"data": str(data), "generator": generator}
    if data.is_dir() and _read(stamp) == wanted:
        return config
    print(f"making the demo's data in {data} …", flush=True)
    done = subprocess.run(
        (sys.executable, str(EXAMPLE / "world.py"), "--out", str(data)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{EXAMPLE / 'world.py'} failed: {last}")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    write_json(stamp, wanted)
    return config


def _read(stamp: Path) -> object:
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError):
        return None
