"""Of the doctor: this machine, and the packages that are installed on it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from flows import embedded, given_servers
from flows.embedded import ROOT
from flows.finding import Finding, Findings, Site, ok, warning, wrong
from flows.memory import GB
from flows.store import kind_of_device

# What goes wrong without an error message that says so.
_WHY = {
    "fastapi": "0.155 and newer break Prefect's server",
    "sqlalchemy": "with 2.1 schedules silently make no runs",
}
_MEND = "`make -B .venv` installs what constraints.txt says"
_SHOWN = 4
_DISK_WRONG, _DISK_FEW, _MEMORY_FEW = 1 * GB, 5 * GB, 1 * GB


# --- what is installed ----------------------------------------------------------------------------


def python(_: Site) -> Findings:
    there, wanted = platform.python_version(), _project()["requires-python"]
    if there in SpecifierSet(wanted):
        yield ok(f"Python {there}")
    else:
        yield wrong(f"Python is {there}, and {wanted} is needed", "`make clean`, `make .venv`")


def packages(_: Site) -> Findings:
    """Those that we need must be in their ranges; all others are told that are not as pinned."""
    pins, broken = _pins(ROOT / "constraints.txt"), set()
    for requirement in map(Requirement, _project()["dependencies"]):
        name = canonicalize_name(requirement.name)
        there = _installed(name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            broken.add(name)
            why = f" ({_WHY[name]})" if name in _WHY else ""
            said = "is not installed" if there is None else f"is {there}"
            yield wrong(
                f"{requirement.name} {said}, and {requirement.specifier} is needed{why}", _MEND
            )
    there_now = {name: _installed(name) for name in pins}
    others = {
        name: version
        for name, version in there_now.items()
        # Packages for tests and benchmarks are pinned, too, and not always there.
        if version and version.public != pins[name].public and name not in broken
    }
    if others:
        told = [f"{name} {version} (pinned: {pins[name]})" for name, version in others.items()]
        more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        yield warning(f"not as pinned: {', '.join(told[:_SHOWN])}{more}", _MEND)
    elif not broken:
        main = ("prefect", "fastapi", "sqlalchemy", "torch", "trl", "transformers")
        told = [f"{name} {there_now[name]}" for name in main]
        yield ok(f"packages as pinned: {', '.join(told)} …")


def label_studio_package(site: Site) -> Findings:
    """Label Studio's environment of its own, where its server is embedded."""
    if given_servers.url(site.home, "label_studio") is not None:
        return
    binary = embedded.label_studio_binary()
    pinned = _pins(ROOT / "infra" / "constraints-label-studio.txt")["label-studio"]
    folders = [str(p) for p in binary.parent.parent.glob("lib/python*/site-packages")]
    found = [d.version for d in metadata.distributions(name="label-studio", path=folders)]
    if not found:
        yield warning(f"the version of {binary} is not known (pinned: {pinned})", "see to it")
    elif Version(found[0]) != pinned:
        yield warning(
            f"Label Studio is {found[0]} (pinned: {pinned})", "`make -B .venv-label-studio`"
        )
    else:
        yield ok(f"Label Studio {found[0]}, in {binary.parent.parent}")


def _project() -> Mapping[str, str]:
    project: Mapping[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _pins(path: Path) -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


def _installed(name: str) -> Version | None:
    try:
        return Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


# --- the machine ----------------------------------------------------------------------------------


def disk(site: Site) -> Findings:
    disks = {existing(f).stat().st_dev: f for f in (site.folder / "runs", site.home)}
    for folder in disks.values():
        free = shutil.disk_usage(existing(folder)).free
        told = f"{free / GB:.1f} GB of disk are free for {folder}"
        hint = "free some; the oldest entries of `store` may go, they are made anew when needed"
        if free < _DISK_WRONG:
            yield wrong(told, hint)
        elif free < _DISK_FEW:
            yield warning(told, hint)
        else:
            yield ok(told)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def memory(_: Site) -> Findings:
    now = psutil.virtual_memory()
    told = f"{now.available / GB:.1f} of {now.total / GB:.1f} GB of memory are free"
    if now.available < _MEMORY_FEW:
        yield warning(told, "end other programs: the servers and the worker alone take about 1 GB")
    else:
        yield ok(told)


def gpu(_: Site) -> Findings:
    """Whether torch will find the GPU that is there, without the seconds that its import takes."""
    cards, hidden = visible_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    torch = _installed("torch")
    if kind_of_device("auto") == "cpu":
        yield _no_gpu(cards, hidden)
    elif not cards:
        yield wrong(
            "there is a GPU's driver, but `nvidia-smi` shows no GPU",
            "run `nvidia-smi` and mend what it says; or set `device: cpu` in each section",
        )
    elif torch and (torch.local or "").startswith("cpu"):
        yield wrong(
            f"{', '.join(cards)}: but torch {torch} is built for the CPU alone",
            "install torch for CUDA (https://pytorch.org/get-started); or set `device: cpu`",
        )
    else:
        yield ok(f"GPU: {', '.join(cards)}; stages with `device: auto` run there")


def _no_gpu(cards: list[str], hidden: str | None) -> Finding:
    if cards:
        return warning(
            f"{', '.join(cards)}: hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "unset it to use it"
        )
    return ok("no GPU: stages run on the CPU")


def visible_gpus() -> list[str]:
    """Name and memory of each GPU that the driver shows; none without a driver."""
    query = "--query-gpu=name,memory.used,memory.total"
    try:
        done = subprocess.run(
            ("nvidia-smi", query, "--format=csv,noheader,nounits"),
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if line.count(",") >= 2]
    return [f"{name} ({used.strip()} of {total.strip()} MiB used)" for name, used, total in rows]
