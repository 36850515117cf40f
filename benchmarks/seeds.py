"""The demo on several seeds: does every one of them learn?

    python benchmarks/seeds.py --seeds 0-4

Each seed is the whole demo, through Label Studio and Prefect, on one thread; two run at once. They
share servers and a store of their own in `--home`, so a run that was stopped goes on where it was,
and a seed that is finished takes seconds. Prints a Markdown table and writes `seeds.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq

from flows import demo, stages
from flows.arguments import DEMO_ROUNDS
from flows.config import RoundConfig
from flows.runner import run_stage
from flows.store import write_json
from labeling.records import read_prompts

Row = dict[str, Any]

STEPS = ("sft", "completions", "simulated", "reward", "ppo", "evaluate")
COLUMNS: dict[str, Callable[[Row], str]] = {
    "seed": lambda r: str(r["seed"]),
    "win rate, round by round": lambda r: " → ".join(f"{win:.3f}" for win in r["wins"]),
    "promoted": lambda r: ", ".join("yes" if p else "no" for p in r["promoted"]),
    "win rate, 95 % interval": lambda r: "{:.3f} [{:.3f}, {:.3f}]".format(r["win"], *r["interval"]),
    "rubric": lambda r: "{:.2f} → {:.2f}".format(*r["rubric"]),
    "right fix": lambda r: _change(r, "right_fix"),
    "product": lambda r: _change(r, "right_product"),
    "greeting": lambda r: _change(r, "named"),
    "empathy": lambda r: _change(r, "empathy"),
    "closing": lambda r: _change(r, "closing"),
    "rude": lambda r: _change(r, "rude"),
    "wrong fix": lambda r: _change(r, "wrong_fix"),
    "repeated": lambda r: _change(r, "repeated"),
    "unfinished": lambda r: _change(r, "unfinished"),
    "valid": lambda r: "{:.3f} → {:.3f} ({:+.1f})".format(
        *r["valid"], 100 * (r["valid"][1] - r["valid"][0])
    ),
    "KL": lambda r: f"{r['kl']:.2f}",
    "reward model": lambda r: f"{r['accuracy']:.3f}",
    "greedy rubric": lambda r: "{:.2f} → {:.2f}".format(*r["greedy_rubric"]),
    "greedy win rate": lambda r: f"{r['greedy_win']:.3f}",
    **{f"{step}, s": (lambda r, step=step: f"{r['seconds'][step]:.0f}") for step in STEPS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0-4", help="e.g. 0-4 or 0,3,7 (default: 0-4)")
    parser.add_argument("--rounds", type=int, default=DEMO_ROUNDS, help="of each seed")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at once (default: 2)")
    parser.add_argument("--home", type=Path, default=Path(__file__).parent / "home")
    options = parser.parse_args()
    home = options.home.resolve()
    (home / "logs").mkdir(parents=True, exist_ok=True)
    os.environ["RANKLOOP_HOME"] = str(home / ".rankloop")

    demo.prepare()
    _rankloop(home, "servers", "up")
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(
            pool.map(lambda seed: _measure(home, seed, options.rounds), _seeds(options.seeds))
        )
    write_json(home / "seeds.json", rows)
    print("\n".join(_table([row for row in rows if "failed" not in row])))
    for row in rows:
        if "failed" in row:
            print(f"seed {row['seed']} failed: {row['failed']}")
    sys.exit(any("failed" in row for row in rows))


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _measure(home: Path, seed: int, rounds: int) -> Row:
    """The figures of one seed; `failed` in their place when its demo did not end well."""
    print(f"seed {seed} begins", file=sys.stderr, flush=True)
    try:
        _rankloop(home, f"seed-{seed}", "demo", "--seed", str(seed), "--rounds", str(rounds))
        row = _figures(home, seed, rounds)
    except (RuntimeError, ValueError) as error:
        print(f"seed {seed}: {error}", file=sys.stderr, flush=True)
        return {"seed": seed, "failed": str(error)}
    print(f"seed {seed}: win rate {row['win']:.3f}", file=sys.stderr, flush=True)
    return row


def _rankloop(home: Path, log: str, *arguments: str) -> None:
    path = home / "logs" / f"{log}.log"
    with path.open("a") as out:
        done = subprocess.run(
            (sys.executable, "-m", "flows.cli", *arguments),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"rankloop {' '.join(arguments)} ended with {done.returncode}: {path}")


def _figures(home: Path, seed: int, rounds: int) -> Row:
    """Of the last round, but for the seconds, which are those of all."""
    name = "support" if seed == 0 else f"support-seed-{seed}"
    folders = [home / "runs" / name / "rounds" / f"{number:03d}" for number in range(rounds)]
    documents = [json.loads((folder / "round.json").read_text()) for folder in folders]
    folder, document = folders[-1], documents[-1]
    evaluation = document["evaluation"]
    before, after = _parts(folder / "evaluation", folder / "prompts.parquet")
    initial = (folders[0] / "initial_policy").resolve()
    greedy = _greedy(home, initial, folder, RoundConfig.model_validate(document["config"]))
    seconds: Counter[str] = Counter()
    for made in documents:
        for step, found in made["stages"].items():
            seconds[step] += found.get("made_seconds", found["seconds"])
    return {
        "seed": seed,
        "wins": [made["evaluation"]["win_rate"] for made in documents],
        "promoted": [made["promotion"]["what"] == "promoted" for made in documents],
        "win": evaluation["win_rate"],
        "interval": evaluation["win_rate_interval"],
        "rubric": (evaluation["initial"]["judge"], evaluation["judge"]),
        "parts": {part: (before[part], after[part]) for part in before},
        "valid": (evaluation["initial"]["guards"]["valid"], evaluation["guards"]["valid"]),
        "kl": evaluation["kl"],
        "accuracy": document["reward"]["held_out_accuracy"],
        "greedy_rubric": (greedy["initial"]["judge"], greedy["judge"]),
        "greedy_win": greedy["win_rate"],
        "greedy_valid": (greedy["initial"]["guards"]["valid"], greedy["guards"]["valid"]),
        "seconds": dict(seconds),
    }


def _greedy(home: Path, initial: Path, folder: Path, config: RoundConfig) -> dict[str, Any]:
    """The same evaluation with the likeliest token each time."""
    return run_stage(
        stages.EVALUATE,
        config.evaluation.model_copy(update={"temperature": 0.0}),
        {
            "initial": initial,
            "candidate": (folder / "policy").resolve(),
            "prompts": (folder / "prompts.parquet").resolve(),
            "reward_model": (folder / "reward_model").resolve(),
            "judge": config.evaluation.judge,
            "guards": config.evaluation.guards,
        },
        home / ".rankloop",
        on_line=lambda line: None,
    ).metrics


def _parts(evaluation: Path, prompts: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The rubric's parts, as shares of the replies: of the initial policy, of the candidate."""
    rubric = _rubric()
    texts = {p.key: p.readable for p in read_prompts(prompts, "evaluation")}
    rows = pq.read_table(evaluation / "comparisons.parquet").to_pylist()
    before, after = (
        [asdict(rubric.parts(texts[row["prompt"]], row[side])) for row in rows]
        for side in ("b", "a")
    )
    return _means(before), _means(after)


def _means(found: Sequence[dict[str, bool]]) -> dict[str, float]:
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


def _rubric() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rubric", demo.EXAMPLE / "rubric.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rubric"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _change(row: Row, part: str) -> str:
    return "{:.2f} → {:.2f}".format(*row["parts"][part])


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for row in rows:
        yield "| " + " | ".join(show(row) for show in COLUMNS.values()) + " |"
    if rows:
        win = [row["win"] for row in rows]
        lost = [100 * (row["valid"][0] - row["valid"][1]) for row in rows]
        yield ""
        yield (
            f"Win rate: least {min(win):.3f}, mean {sum(win) / len(win):.3f}. Points of validity "
            f"lost: most {max(lost):.1f}, mean {sum(lost) / len(lost):.1f}. Greedy reply better on "
            f"{sum(r['greedy_rubric'][1] > r['greedy_rubric'][0] for r in rows)} of {len(rows)}."
        )


if __name__ == "__main__":
    main()
