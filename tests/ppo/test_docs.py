"""docs/ppo.md speaks of what there is, and of all of it."""

import importlib
import re
from pathlib import Path

from ppo.config import PPO
from ppo.health import warnings_of

PAGE = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()
NAMED = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_every_knob_is_explained():
    assert set(PPO.model_fields) - {"seed"} <= NAMED


def test_every_function_that_it_names_exists():
    modules = {path.stem for path in Path(importlib.import_module("ppo").__path__[0]).glob("*.py")}
    others = {"sft.data", "metrics.jsonl"}
    named = [
        name.split(".") for name in NAMED - others if re.fullmatch(r"[a-z]+(\.[A-Za-z_]+)+", name)
    ]
    functions = [(module, names) for module, *names in named if module in modules]
    assert len(functions) > 10
    for module, names in functions:
        found = importlib.import_module(f"ppo.{module}")
        for name in names:
            found = getattr(found, name)


def test_every_collapse_warning_is_explained():
    fine = {
        "objective/kl": 10.0,
        "objective/entropy": 1.0,
        "response/distinct": 1.0,
        "response/length": 100.0,
    }
    bad = {"objective/kl": 50.0, "objective/entropy": 0.01, "response/distinct": 0.1}
    signs = {
        *warnings_of([fine, bad | {"response/length": 1.0, "policy/clipfrac": 0.9}], PPO()),
        *warnings_of([fine | {"response/length": 10.0}, fine | {"response/length": 128.0}], PPO()),
        *warnings_of([fine, fine | {"objective/kl": -2.0}], PPO()),
    }
    assert len(signs) == 7
    assert all(f"\n| {sign} |" in PAGE for sign in signs)
