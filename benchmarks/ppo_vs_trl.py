"""One PPO step of Rankloop against one of TRL 1.12.0, the last TRL with a PPOTrainer.

    python benchmarks/ppo_vs_trl.py --sizes S V --json ppo_vs_trl.json

Both do the same work in float32 on one thread: 64 prompts of 32 to 64 random tokens, responses of
the same forced lengths (about 2,050 tokens), a reference and a reward model of the policy's size,
4 epochs of 4 minibatches. TRL trains two networks, policy and critic, as always. Rankloop is
measured with its default, `shared`, which trains one (the value is a head on the policy), and with
`separate`, which trains two and is the same algorithm as TRL's. Each has its default micro-batches:
Rankloop's hold 512 tokens on a CPU, TRL's a whole minibatch, which is part of the memory's ratio.

Measured are the process' CPU seconds of a step, as the median of several after a warm-up, and how
far resident memory rises above what it was before any model was built. Each side is a process of
its own, and they take turns step by step, so that what else the machine does meets all of them: at
most one computes, but all of them stay in memory. TRL 1.12.0 is installed beside this file, into a
folder that git ignores; torch and transformers are those of this Python. Needs Linux.

On a GPU, `--device cuda --sizes 0.5B 1.5B` takes the same steps in bfloat16, times them by the
clock, and adds response tokens a second and the MFU of the update (the critic's work included,
where it is a network of its own).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ppo_sides import SECTIONS, Measured, Side

HERE = Path(__file__).resolve().parent
TRL = "1.12.0"
TRL_FOLDER = HERE / ".trl-1.12"
STEPS = {"XS": 2, "S": 5, "M": 3, "L": 2, "V": 5, "0.5B": 5, "1.5B": 3}  # after the warm-up
SIZES = ("S", "V", "M", "L")
CRITICS = ("shared", "separate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", nargs="+", choices=list(STEPS), default=SIZES, metavar="SIZE",
        help=f"of {', '.join(STEPS)} (default: {' '.join(SIZES)})",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, help="counted steps of a size (default: S 5, V 5, M 3, L 2)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0,
        help="of the GPU in dense bfloat16, for the MFU (default: 989, an H100's or H200's)",
    )  # fmt: skip
    parser.add_argument("--critic", nargs="+", choices=CRITICS, default=CRITICS)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    if options.steps is not None and options.steps < 1:
        parser.error("--steps is at least 1")

    install_trl()
    results = {}
    for size in dict.fromkeys(options.sizes):
        results[size] = compare(size, options.steps or STEPS[size], options.critic, options.device)
        if options.json:  # after each size: a run that is stopped leaves what it found
            write_json(options.json, {s: summary(sides) for s, sides in results.items()})
    print("\n".join(table(results)))
    if options.device == "cuda":
        print("\n".join(gpu_table(results, options.peak_tflops * 1e12)))


def install_trl() -> None:
    """Make the side environment, unless it is there."""
    if TRL_FOLDER.is_dir():
        return
    say(f"installs trl=={TRL} into {TRL_FOLDER.name}")
    partial = TRL_FOLDER.with_name(f"{TRL_FOLDER.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    done = subprocess.run((*pip, "--no-deps", "--target", str(partial), f"trl=={TRL}"), check=False)
    if done.returncode:
        sys.exit(f"trl=={TRL} could not be installed; see pip's message above")
    partial.rename(TRL_FOLDER)


def compare(size: str, steps: int, critics: list[str], device: str) -> dict[str, Measured]:
    """TRL and Rankloop at one size, by side: `trl`, `shared`, `separate`."""
    with contextlib.ExitStack() as stack:
        where = ("--device", device)
        trl = Side(HERE / "trl_side.py", size, steps, TRL_FOLDER, *where)
        sides = {"trl": stack.enter_context(trl)}
        for critic in CRITICS:
            if critic in critics:
                side = Side(
                    HERE / "rankloop_side.py", size, steps, HERE.parent, *where, "--critic", critic
                )
                sides[critic] = stack.enter_context(side)
        for count in range(steps + 1):
            for name, side in sides.items():
                seconds = sum(side.step().values())
                which = f"step {count}" if count else "warm-up"
                say(f"{size}, {name}: {which}, {seconds:.2f} s")
        measured = {name: side.end() for name, side in sides.items()}
    assert len({(m.parameters, m.response_tokens) for m in measured.values()}) == 1
    return measured


def summary(sides: dict[str, Measured]) -> dict[str, Any]:
    """The figures of one size. Ratios are TRL's over Rankloop's: above 1, Rankloop needs less. The
    shared critic's stand at the top, the separate one's under `separate`."""
    trl = sides["trl"]
    ratios = {
        critic: {
            "speedup": trl.seconds / sides[critic].seconds,
            "memory_ratio": trl.peak_bytes / sides[critic].peak_bytes,
            "rankloop": sides[critic].figures(),
        }
        for critic in CRITICS
        if critic in sides
    }
    return {
        **ratios.pop("shared", {}),
        **ratios,
        "trl": trl.figures(),
        "parameters": trl.parameters,
        "response_tokens": trl.response_tokens,
        "machine": machine(),
    }


def table(results: dict[str, dict[str, Measured]]) -> Iterator[str]:
    """Markdown: a row for each side at each size, then where it was measured."""
    yield "| size | side | generate | score | update | CPU s a step | peak | speed-up | memory |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for size, sides in results.items():
        trl = sides["trl"]
        for name, side in sides.items():
            ratios = (
                ("", "")
                if side is trl
                else (
                    f"{trl.seconds / side.seconds:.2f}×",
                    f"{trl.peak_bytes / side.peak_bytes:.2f}× less",
                )
            )
            cells = [
                f"{size}, {side.parameters / 1e6:.1f}M",
                f"TRL {TRL}" if side is trl else f"Rankloop, {name} critic",
                *(f"{side.section(section):.2f}" for section in SECTIONS),
                f"{side.seconds:.2f}",
                megabytes(side),
                *ratios,
            ]
            yield f"| {' | '.join(cells)} |"
    yield ""
    yield (
        "TRL trains two networks, policy and critic. Rankloop's `shared` critic (the default) "
        "trains one; its `separate` critic is TRL's own algorithm. Rankloop's micro-batches "
        "are smaller by default (512 tokens on a CPU, not a whole minibatch), which is part of the "
        "memory's ratio."
    )
    yield ""
    yield (
        ", ".join(f"{what} {which}" for what, which in machine().items())
        + "; one thread, fp32 (on a GPU bf16)."
    )


def gpu_table(results: dict[str, dict[str, Measured]], peak: float) -> Iterator[str]:
    """Markdown: what a GPU makes of it, in bfloat16 and seconds of the clock."""
    yield "\n| size | side | response tokens a second | MFU of the update |\n|---|---|---|---|"
    for size, sides in results.items():
        for name, side in sides.items():
            speed = side.response_tokens / side.seconds
            yield f"| {size} | {name} | {speed:,.0f} | {side.mfu(peak):.1f} % |"


def machine() -> dict[str, str]:
    """Processor and versions."""
    return {
        "processor": f"{_processor()} ({os.cpu_count()} CPUs)",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "rankloop")},
        "trl": TRL,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def megabytes(side: Measured) -> str:
    return f"{side.peak_bytes / 1e6:,.0f} MB"


def write_json(path: Path, document: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.replace(path)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
