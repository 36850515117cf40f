"""Imports run one way, labeling ← reward ← ppo ← flows, and some folders stay free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("labeling", "reward", "ppo", "flows")
DRAGS_TORCH_IN = {"torch", "transformers", "trl", "peft", "accelerate"}
FILES = [path for folder in ORDER for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of every module that the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_folder_imports_one_that_stands_right_of_it(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    right = set(ORDER[ORDER.index(folder) + 1 :])
    assert not packages(path) & (right | {"tests", "examples"})


def test_only_flows_imports_prefect_and_one_file_the_label_studio_sdk() -> None:
    prefect = {name_of(p).split("/")[0] for p in FILES if "prefect" in packages(p)}
    sdk = {name_of(p) for p in FILES if "label_studio_sdk" in packages(p)}
    assert prefect == {"flows"}
    assert sdk == {"labeling/connection.py"}


def test_no_file_of_labeling_or_flows_and_no_config_names_torch() -> None:
    plain = [p for p in FILES if p.parts[-2] in ("labeling", "flows") or p.name == "config.py"]
    assert len(plain) > 20
    assert {
        name_of(p): packages(p) & DRAGS_TORCH_IN for p in plain if packages(p) & DRAGS_TORCH_IN
    } == {}


def loaded_after(statements: str) -> set[str]:
    """Top-level packages that a fresh Python has loaded after the statements."""
    code = f"import sys\n{statements}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        (sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_labeling_flows_and_configs_load_without_torch() -> None:
    plain = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if path.relative_to(ROOT).parts[0] in ("labeling", "flows") or path.name == "config.py"
    ]
    loaded = loaded_after("\n".join(f"import {m.removesuffix('.__init__')}" for m in plain))
    assert "prefect" in loaded  # they were really loaded
    assert not loaded & DRAGS_TORCH_IN


def test_the_command_line_answers_help_without_anything_slow() -> None:
    loaded = loaded_after(
        "from flows.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as end: assert end.code == 0"
    )
    slow = DRAGS_TORCH_IN | {"prefect", "pydantic", "rich", "label_studio_sdk", "matplotlib"}
    assert not loaded & slow


def test_a_stage_process_starts_without_prefect() -> None:
    assert "prefect" not in loaded_after("import flows.stage, flows.runner, flows.report")
