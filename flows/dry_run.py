"""`rankloop run --dry-run`: what a run would make, reuse and need. Starts no server, writes
nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import memory, servers
from flows.check import check_inputs
from flows.config import RoundConfig, project_title
from flows.history import read
from flows.lengths import Lengths, measure
from flows.lineage import Lineage, Start, named
from flows.lineage import look as look_back
from flows.memory import GB, StageMemory
from flows.model_shape import ModelShape, read_shape
from flows.plan import Planned, look, not_used
from flows.record import RoundRecord
from flows.store import Store, kind_of_device
from labeling.errors import InputError
from labeling.goal import in_words
from labeling.wording import counted

# What Python, torch, the trainers and their bookkeeping take beside the model, measured on the CPU.
LIBRARIES_GB = 0.7


def show(config: RoundConfig, number: int, console: Console) -> None:
    """Print the resolved config of a round, its steps, the labels, the disk and the memory.

    Raises:
        InputError: the config cannot be followed, or an input or the round before is missing.
    """
    config = config.for_round(number)
    check_inputs(config, number)
    home = servers.default_home()
    plan, lineage = planned(config, number, home)
    console.print(
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for line in not_used(config):
        console.print(f"[yellow]{escape(line)}[/]", highlight=False)
    console.print(_steps(config, number, plan))
    if number:
        _say(console, "starts from", _origin(lineage))
    if "publish" in plan:
        _say(console, "labels", _labels(config, number, plan, home))
    reference = f"{config.model}@{config.revision}" if config.revision else config.model
    try:
        shape = read_shape(reference)
    except InputError as error:
        _say(console, "disk and memory", f"cannot be told: {error}")
        return
    _print_disk(config, plan, shape, home, console)
    _print_memory(config, plan, shape, measure(config, shape.context), console)


def planned(config: RoundConfig, number: int, home: Path) -> tuple[dict[str, Planned], Lineage]:
    """The steps of a round of this folder, and what it starts from. `config` is the round's own.

    Raises:
        InputError: the config cannot be followed, or an input or the round before is missing.
    """
    folder = RoundRecord.place(Path.cwd() / "runs", config, number)
    run = folder.parent.parent
    lineage = look_back(run, number, read(run).incumbent)
    store = Store(home / "store")
    try:
        return look(config, store, folder / "labels.parquet", Start(lineage, store)), lineage
    except ConnectionError as error:
        raise InputError(f"{error}; try again later") from None


def _say(console: Console, title: str, text: str) -> None:
    console.print(f"[bold]{title}[/]: {escape(text)}", highlight=False, soft_wrap=True)


# --- steps and labels -----------------------------------------------------------------------------


def _origin(lineage: Lineage) -> str:
    rankings = sum(earlier.labels.get("rankings", 0) for earlier in lineage.earlier)
    return (
        f"{named(lineage.incumbent)}; its reward model learns from "
        f"{counted(rankings, 'earlier ranking')} too"
    )


def _steps(config: RoundConfig, number: int, plan: Mapping[str, Planned]) -> Table:
    which = f", round {number}" if number else ""
    table = Table(title=f"{config.name}{which}: what a run would do", title_justify="left")
    for column in ("step", "key", "state", "took"):
        table.add_column(column, overflow="fold")
    people = not config.labeling.simulated and not _is_frozen(plan)
    for step in plan.values():
        took = f"{step.entry.seconds:.1f} s" if step.entry else ""
        if step.entry:
            state = "reused"
        elif step.is_stage:
            state = "to make"
        else:
            state = "needs people" if step.step == "gate" and people else "each time"
        if step.step == "freeze":
            state = "frozen" if step.output else "to do"
        if step.step == "promote" and isinstance(step.output, dict):
            state = f"{step.output['what']}"
        table.add_row(
            step.step, step.key or (f"after {step.after}" if step.after else ""), state, took
        )
    return table


def _is_frozen(plan: Mapping[str, Planned]) -> bool:
    return "freeze" in plan and plan["freeze"].output is not None


def _labels(config: RoundConfig, number: int, plan: Mapping[str, Planned], home: Path) -> str:
    from flows.freezing import find_frozen  # noqa: PLC0415 - the SDK takes a second
    from flows.publication import find_project  # noqa: PLC0415

    completions = plan["completions"].entry
    frozen = plan.get("freeze")
    if completions and frozen and isinstance(frozen.output, Path):
        found = find_frozen(frozen.output, completions.path / "completions.parquet")
        assert found is not None
        return f"{found.rankings} rankings of {found.labelers} labelers are frozen"
    prompts = plan["prompts"].entry
    limit = config.sampling.prompts
    if completions:
        tasks = f"{completions.metrics['prompts']}"
    elif prompts:
        tasks = f"at most {min(limit or prompts.metrics['train'], prompts.metrics['train'])}"
    else:
        tasks = f"at most {limit}" if limit else "not yet known how many"
    labeling = config.labeling
    said = f"{in_words(labeling.wanted)} wanted of {tasks} tasks"
    if labeling.overlap > 1:
        share = labeling.overlap_share
        said += f", {labeling.overlap} of {'each' if share == 1 else f'about {share:.0%}'}"
    if labeling.deadline_hours is not None:
        said += f"; after {labeling.deadline_hours:g} hours {in_words(labeling.minimum)} will do"
    try:
        label_studio = servers.open_label_studio(home)
        if label_studio is None:
            return f"{said}; Label Studio is not running"
        folder = RoundRecord.place(Path.cwd() / "runs", config, number)
        project = find_project(label_studio, project_title(config.name, number), folder)
        if project is None:
            return f"{said}; nothing is published yet"
        counts = label_studio.count(project)
    except ConnectionError as error:
        return f"{said}; {error}"
    return f"{said}; {counts.answers} answers to {counts.tasks} published tasks are there now"


# --- disk -----------------------------------------------------------------------------------------


def parameters_to_write(plan: Mapping[str, Planned], shape: ModelShape) -> dict[str, int]:
    """Of the models that are yet to be made, by step, in 4 bytes each. Each is written once, into
    the folder that is then renamed; trainers leave no checkpoints."""
    models = {"sft": shape.parameters, "reward": shape.trunk, "ppo": shape.parameters}
    return {step: n for step, n in models.items() if step in plan and plan[step].entry is None}


def _print_disk(
    config: RoundConfig,
    plan: Mapping[str, Planned],
    shape: ModelShape,
    home: Path,
    console: Console,
) -> None:
    table = Table(title="disk, in GB", title_justify="left")
    for column in ("step", "GB", "arithmetic"):
        table.add_column(column, overflow="fold")
    total = 0
    for step, parameters in parameters_to_write(plan, shape).items():
        total += 4 * parameters
        table.add_row(step, f"{4 * parameters / GB:.3f}", f"{parameters:,} × 4 bytes")
    there = home
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    table.add_row("in all", f"{total / GB:.3f}", f"{free / GB:.1f} GB are free in {there}")
    console.print(table)
    if total > free:
        _say(
            console, "not enough disk", f"{total / GB:.1f} GB are needed, {free / GB:.1f} are free"
        )


# --- memory ---------------------------------------------------------------------------------------


def memory_of(config: RoundConfig, shape: ModelShape, lengths: Lengths) -> dict[str, StageMemory]:
    """The heavy stages' memory, by stage."""

    def precision(section: object) -> memory.Precision:
        dtype = getattr(section, "dtype", "auto")
        if dtype == "auto":
            device = kind_of_device(getattr(section, "device", "auto"))
            return "bfloat16" if device == "cuda" else "float32"
        return "bfloat16" if dtype == "bfloat16" else "float32"

    found = [
        memory.of_sampling(
            shape,
            config.sampling,
            lengths.prompt,
            precision(config.sampling),
            kind_of_device(config.sampling.device),
        ),
        memory.of_reward(
            shape,
            config.reward,
            lengths.pair,
            precision(config.reward),
            kind_of_device(config.reward.device),
        ),
        memory.of_ppo(
            shape,
            config.ppo,
            lengths.prompt,
            precision(config.ppo),
            kind_of_device(config.ppo.device),
            lengths.demonstration,
        ),
        memory.of_evaluation(
            shape,
            config.evaluation,
            lengths.prompt,
            precision(config.evaluation),
            kind_of_device(config.evaluation.device),
            has_reward_model=config.ppo.needs_reward_model or not config.evaluation.judge,
        ),
    ]
    if config.sft:
        sft = memory.of_sft(shape, config.sft, lengths.demonstration, precision(config.sft))
        found.insert(0, sft)
    return {stage.stage: stage for stage in found}


def _print_memory(
    config: RoundConfig,
    plan: Mapping[str, Planned],
    shape: ModelShape,
    lengths: Lengths,
    console: Console,
) -> None:
    what, there = device_of(config)
    table = Table(title=f"memory of the {what}, in GB", title_justify="left")
    for column in ("stage", "part", "bytes a parameter", "GB", "arithmetic"):
        table.add_column(column, overflow="fold")
    short = []
    for stage in memory_of(config, shape, lengths).values():
        if stage.stage not in plan:
            continue
        for part in stage.parts:
            counts = part.phase in ("always", stage.peak_phase)
            name = part.name if part.phase == "always" else f"{part.name} ({part.phase})"
            table.add_row(
                stage.stage,
                name,
                f"{part.bytes / shape.parameters:.2f}",
                f"{part.bytes / GB:.3f}",
                part.arithmetic,
                style=None if counts else "dim",
            )
        needed = stage.bytes / GB + LIBRARIES_GB
        share = f"{stage.bytes / shape.parameters:.2f}"
        peak = "" if stage.peak_phase == "always" else f", {stage.peak_phase}"
        table.add_row(
            f"[bold]{stage.stage}[/]",
            f"[bold]peak{peak}[/]",
            share,
            f"[bold]{needed:.3f}[/]",
            f"the parts that are there at once, and {LIBRARIES_GB} for the libraries",
            end_section=True,
        )
        if needed * GB > there:
            short.append(stage.stage)
    console.print(table)
    console.print(
        f"{shape.parameters:,} parameters, {shape.layers} layers × {shape.hidden}; longest prompt "
        f"{lengths.prompt} tokens{lengths.how}; the {what} has {there / GB:.1f} GB",
        highlight=False,
    )
    if short:
        _say(
            console,
            "not enough memory",
            f"for {', '.join(short)}: lower micro_batch_size, micro_batch_tokens, batch_size or "
            "the lengths",
        )


def device_of(config: RoundConfig) -> tuple[str, float]:
    """The device of PPO, and its memory in bytes."""
    if kind_of_device(config.ppo.device) == "cuda":
        command = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
            return "GPU", float(done.stdout.splitlines()[0]) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass  # no GPU that can be asked
    return "CPU", float(psutil.virtual_memory().total)
