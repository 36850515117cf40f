"""`rankloop doctor`: whether everything is there and works that rounds need, and what to do where
not. Starts nothing, changes nothing, and shows no secret."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows import doctor_machine, doctor_servers, servers
from flows.finding import Check, Finding, Findings, Plans, Site, warning, wrong
from flows.servers import Servers
from labeling.errors import InputError

ALWAYS: tuple[Check, ...] = (
    doctor_machine.python,
    doctor_machine.packages,
    doctor_machine.label_studio_package,
    doctor_machine.disk,
    doctor_machine.memory,
    doctor_machine.gpu,
    doctor_servers.home_folder,
    doctor_servers.private_files,
    doctor_servers.servers_answer,
    doctor_servers.tokens,
    doctor_servers.database_files,
    doctor_servers.clocks,
    doctor_servers.worker_process,
)
_COLORS = {"ok": "green", "warning": "yellow", "wrong": "red"}
# Whoever named a server with a name and a password in its address shows them to nobody here.
_IN_AN_ADDRESS = re.compile(r"(?<=//)[^\s/@]+@")


def show(config: Path | None, console: Console) -> bool:
    """Print a line for each finding as soon as it is known; whether nothing is wrong."""
    counts = {"ok": 0, "warning": 0, "wrong": 0}
    for finding in examine(Site(servers.default_home(), Path.cwd()), config):
        counts[finding.mark] += 1
        told = " → ".join(part for part in (finding.what, finding.to_do) if part)
        mark = f"[{_COLORS[finding.mark]}]{finding.mark:<8}[/]"
        console.print(f"{mark} {escape(_hidden(told))}", highlight=False, soft_wrap=True)
    more = f", {counts['warning']} to look at" if counts["warning"] else ""
    said = f"{counts['wrong']} wrong" if counts["wrong"] else "nothing is wrong"
    console.print(f"{said}{more}", highlight=False)
    return not counts["wrong"]


def _hidden(text: str) -> str:
    return _IN_AN_ADDRESS.sub("…@", " ".join(text.splitlines()))


def examine(site: Site, config: Path | None = None) -> Iterator[Finding]:
    """All findings, each once. A check that fails is one, too."""
    told = set()
    for finding in _findings(site, config):
        if finding not in told:
            told.add(finding)
            yield finding


def _findings(site: Site, path: Path | None) -> Iterator[Finding]:
    for check in ALWAYS:
        yield from _survived(check.__name__, partial(check, site))
    plans = None
    if path is not None:
        from flows import doctor_config as ours  # noqa: PLC0415 - takes a second

        try:
            plans = ours.load(site, path)
        except InputError as error:
            yield wrong(str(error), "")
        for of_config in (ours.inputs, ours.devices, ours.disk_and_memory, ours.labeling_address):
            if plans is not None:
                yield from _survived(of_config.__name__, partial(of_config, plans))
    yield from _survived("prefect", partial(_prefect, site, plans))


def _survived(name: str, check: Callable[[], Findings]) -> Iterator[Finding]:
    try:
        yield from check()
    except (InputError, ConnectionError) as error:
        yield wrong(str(error) or type(error).__name__, "")
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        yield wrong(
            f"the check '{name.replace('_', ' ')}' itself failed ({reason})",
            "see to what it names; if it names nothing of yours, it is a bug of Rankloop",
        )


def _prefect(site: Site, plans: Plans | None) -> Findings:
    """What only Prefect knows, while it answers and lets us in."""
    server = next(server for server in site.servers if server.name == "prefect")
    if not server.ready:
        yield warning(
            "pool, deployments, schedules, limits and waiting rounds could not be looked at",
            "mend Prefect first",
        )
        return
    if server.where == "embedded" and doctor_servers.lacks_credentials(site.home, "prefect"):
        return  # told with the tokens
    found = site.prefect
    if found is None:
        return  # it went away just now
    from flows.launch import set_prefect_environment  # noqa: PLC0415 - takes a second

    set_prefect_environment(Servers(found, None))
    from flows import doctor_prefect as ours  # noqa: PLC0415 - imports Prefect
    from flows import doctor_schedules as schedules  # noqa: PLC0415

    with ours.client(found) as client:
        prefect = ours.Prefect(site, client, found.ui_url)
        for check in (
            ours.pool,
            ours.worker_is_heard,
            ours.deployments,
            ours.gpu_limit,
            schedules.scheduled_runs,
            schedules.watch_works,
            schedules.waiting_rounds,
        ):
            yield from _survived(check.__name__, partial(check, prefect))
        if plans is not None:
            yield from _survived("schedule", partial(schedules.own_schedule, prefect, plans))
