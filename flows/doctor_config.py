"""Of the doctor: whether a config's next round has what it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows import asking, dry_run, given_servers, launch, memory, server_home
from flows.check import check_inputs
from flows.doctor_machine import existing
from flows.dry_run import LIBRARIES_GB
from flows.finding import Finding, Findings, Plans, Site, ok, warning, wrong
from flows.lengths import measure
from flows.lineage import next_round
from flows.load import load_config
from flows.memory import GB
from flows.model_shape import read_shape
from flows.plan import needed_steps
from flows.store import kind_of_device
from labeling.addresses import is_own_address

_DEVICED = ("sft", "sampling", "reward", "ppo", "evaluation")


def load(site: Site, path: Path) -> Plans:
    """Raises InputError when the config, or the run's newest round, cannot be read."""
    config = load_config(path)
    run = site.folder / "runs" / config.name
    return Plans(site, path, config, next_round(run, config.stop_after))


def inputs(plans: Plans) -> Findings:
    check_inputs(plans.config, plans.number)
    yield ok(f"{plans.path}: what round {plans.number} reads is there")


def devices(plans: Plans) -> Findings:
    """A section that insists on a GPU must find one."""
    sections = {name: getattr(plans.config, name) for name in _DEVICED}
    asking = [name for name, s in sections.items() if s and getattr(s, "device", "") == "cuda"]
    if asking and kind_of_device("auto") == "cpu":
        yield wrong(
            f"{plans.path}: {asking[0]}.device is cuda, and no GPU is visible",
            f"set {', '.join(f'{name}.device' for name in asking)} to auto or cpu",
        )


def disk_and_memory(plans: Plans) -> Findings:
    config, home = plans.config, plans.site.home
    plan, _ = dry_run.planned(config, plans.number, home)
    shape = read_shape(f"{config.model}@{config.revision}" if config.revision else config.model)
    there = existing(home)
    needed = 4 * sum(dry_run.parameters_to_write(plan, shape).values())
    free = shutil.disk_usage(there).free
    told = f"{plans.path} needs {needed / GB:.2f} GB of disk, {free / GB:.1f} are free in {there}"
    enough = "free some, or set RANKLOOP_HOME to a folder on a larger disk"
    yield wrong(told, enough) if needed > free else ok(told)
    stages = dry_run.memory_of(config, shape, measure(config, shape.context))
    yield _memory(plans, [stage for stage in stages.values() if stage.stage in plan])


def _memory(plans: Plans, stages: list[memory.StageMemory]) -> Finding:
    what, total = dry_run.device_of(plans.config)
    largest = max(stages, key=lambda stage: stage.bytes, default=None)
    if largest is None:
        return ok(f"{plans.path} needs no model in memory")
    needed = largest.bytes + LIBRARIES_GB * GB
    told = (
        f"{plans.path} needs {needed / GB:.2f} GB of memory for {largest.stage}, and the {what} "
        f"has {total / GB:.1f}"
    )
    if needed > total:
        hint = "lower micro_batch_size, micro_batch_tokens, batch_size or the lengths"
        return wrong(told, f"{hint}; `rankloop run {plans.path} --dry-run` tells every part")
    return ok(told)


def labeling_address(plans: Plans) -> Findings:
    """Whether Label Studio is where the config has it, and browsers find it there."""
    home, labeling = plans.site.home, plans.config.labeling
    wanted = launch.named_address(labeling)
    if wanted is None or "publish" not in needed_steps(plans.config, plans.number):
        return
    if given_servers.url(home, "label_studio") is not None:
        yield warning(
            f"{plans.path}: labeling.bind and labeling.public_url are not used with the Label "
            "Studio of LABEL_STUDIO_URL",
            "remove them, or unset LABEL_STUDIO_URL",
        )
        return
    if not is_own_address(wanted.bind):
        yield wrong(
            f"{plans.path}: labeling.bind {wanted.bind} is no address of this machine",
            "name one of its own, or 0.0.0.0 for all of them",
        )
        return
    known = server_home.recall(home, "label_studio")
    if known.port and known.address != wanted:
        yield warning(
            f"{plans.path} has Label Studio on {wanted.bind}, and it was started on "
            f"{known.address.bind}{_as(known.address.public_url)}",
            f"`rankloop up --config {plans.path}` moves it",
        )
    elif wanted.public_url and asking.get(f"{wanted.public_url}/health") != 200:
        yield wrong(
            f"labelers' address {wanted.public_url} does not lead to Label Studio from here",
            f"start the proxy, and let it pass everything on to {known.url or 'Label Studio'}",
        )
    else:
        yield ok(f"labelers rank at {wanted.public_url or known.url or wanted.bind}")


def _as(public_url: str | None) -> str:
    return f" as {public_url}" if public_url else ""
