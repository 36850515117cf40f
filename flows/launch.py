"""Brings the servers up and runs a round in this process, with everything that a person at the
terminal sees of it. Sets Prefect's environment before importing it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import processes, server_home, servers, starting
from flows.check import check_inputs
from flows.lineage import look
from flows.plan import needed_steps
from flows.prefect_environment import prefect_environment
from flows.progress import Step, Terminal, hear_our_loggers
from flows.server_home import HINT, NAMES, Name, check_writable
from flows.servers import Servers
from flows.summary import step_rows
from labeling.addresses import LOOPBACK, Address
from labeling.errors import InputError

if TYPE_CHECKING:
    from flows.config import RoundConfig
    from labeling.config import Labeling

logger = logging.getLogger(__name__)


def bring_up(
    console: Console,
    wanted: Collection[Name] = NAMES,
    labeling: Labeling | None = None,
    with_worker: bool = False,
) -> Servers:
    """Start the servers that do not run, and print where they are; the logins only once.
    `labeling` may name where Label Studio listens; `with_worker`: what takes submitted rounds is
    started, too."""
    clock, home = time.monotonic(), servers.default_home()
    with Terminal(console):
        logger.info("starting", extra={"step": Step("servers", "begin")})
        address = named_address(labeling) if labeling else None
        up = starting.up(home, wanted, address)
        if with_worker:
            _start_worker(up, home)
        seconds = time.monotonic() - clock
        logger.info("ready", extra={"step": Step("servers", "made", seconds, "ready")})
    kept = f"(shown once; kept in {home / 'credentials.json'})"
    console.print(f"Prefect       {up.prefect.ui_url}", highlight=False)
    if up.prefect.is_new:
        console.print(
            f"              its dashboard asks for {escape(up.prefect.access)} {kept}",
            highlight=False,
            soft_wrap=True,
        )
    if up.label_studio:
        console.print(f"Label Studio  {up.label_studio.public_url}", highlight=False)
        if up.label_studio.public_url != up.label_studio.url:
            console.print(f"              behind it: {up.label_studio.url}", highlight=False)
    if up.label_studio and (login := up.label_studio.login):
        console.print(
            f"              log in as {escape(login.email)} with {escape(login.password)} {kept}",
            highlight=False,
            soft_wrap=True,
        )
    if with_worker:
        console.print(f"Worker        rounds run in {Path.cwd()}", highlight=False, soft_wrap=True)
    return up


def _start_worker(up: Servers, home: Path) -> None:
    set_prefect_environment(up)
    from flows import worker  # noqa: PLC0415 - imports Prefect

    worker.ensure(home, Path.cwd(), prefect_environment(up, home))


def connected(what: str) -> Servers:
    """The servers, running, with Prefect's environment set; `what` is done with the worker.

    Raises InputError when a server or the worker does not run.
    """
    home = servers.default_home()
    up, process = servers.connect(home), server_home.recall(home, "worker").process
    if up is None or process is None or processes.find(process) is None:
        down = [server.title for server in servers.status(home) if not server.ready]
        missing = " and ".join(down) or "a worker"
        raise InputError(f"{what} needs {missing} to be running: call `rankloop up`")
    set_prefect_environment(up)
    return up


def submit_round(config: RoundConfig, number: int | None, follow: bool, console: Console) -> None:
    """Start a round on the worker, and `follow` it if asked; Ctrl-C leaves it running.

    Raises InputError when it cannot begin, or was followed and did not end well.
    """
    up = connected("a submitted round")
    check_inputs(config.for_round(number or 0), number or 0)
    from flows import submit  # noqa: PLC0415 - imports Prefect

    made = submit.submit(config, number, up.prefect.ui_url)
    console.print(
        f"round {made.round} of {config.name} is submitted: {made.page}",
        highlight=False,
        soft_wrap=True,
    )
    if not follow:
        return
    try:
        end = submit.follow(
            made, config.name, partial(console.print, highlight=False, markup=False, soft_wrap=True)
        )
    except KeyboardInterrupt:
        console.print("the run goes on; `rankloop status` tells how it is", highlight=False)
        return
    console.print(f"the run is {str(end.name).lower()}", highlight=False)
    if not end.is_completed():
        raise InputError(f"{made.name}: {end.message or end.name}")


def schedule_rounds(config: RoundConfig, cron: str, timezone: str, console: Console) -> None:
    """Start a round of the run on the worker at these times.

    Raises InputError when it could not begin, or for what is no time.
    """
    connected("a schedule")
    check_inputs(config)
    from flows import submit  # noqa: PLC0415 - imports Prefect

    first = submit.schedule(config, cron, timezone)
    console.print(f"{config.name}: the first round begins {first:%a %d %b %Y, %H:%M %Z}")


def schedules(off: str | None, console: Console) -> None:
    """Print what is scheduled, or turn a run's schedule `off`."""
    connected("a schedule")
    from flows import submit  # noqa: PLC0415 - imports Prefect

    if off is not None:
        ended = submit.unschedule(off)
        console.print(f"{off}: {'not scheduled any more' if ended else 'was not scheduled'}")
        return
    found = submit.schedules()
    for name, when in found.items():
        console.print(f"{name}: {when}", highlight=False)
    if not found:
        console.print("nothing is scheduled")


def named_address(labeling: Labeling) -> Address | None:
    """Where a config puts Label Studio, or None when it leaves that as it is."""
    if labeling.bind is None and labeling.public_url is None:
        return None
    return Address(labeling.bind or LOOPBACK, labeling.public_url or None)


def run_rounds(config: RoundConfig, numbers: Sequence[int], console: Console) -> None:
    """Run these rounds one after the other, each to a table and its addresses. Label Studio is
    started only for rounds in which somebody ranks."""
    home = servers.default_home()
    for folder, hint in ((Path.cwd() / "runs", "run from another folder"), (home, HINT)):
        check_writable(folder, hint)
    look(Path.cwd() / "runs" / config.name, numbers[0], incumbent=None)
    for number in (numbers[0], numbers[-1])[: len(numbers)]:  # later rounds are alike
        check_inputs(config.for_round(number), number)
    is_ranked = any("publish" in needed_steps(config, number) for number in numbers)
    wanted: Collection[Name] = NAMES if is_ranked else ("prefect",)
    up = bring_up(console, wanted, config.labeling)
    set_prefect_environment(up)
    from prefect.exceptions import CancelledRun  # noqa: PLC0415

    from flows.round import rankloop_round  # noqa: PLC0415 - imports Prefect

    try:
        for number in numbers:
            with Terminal(console):
                document = rankloop_round(config, number, str(Path.cwd()))
            assert isinstance(document, dict)  # it was told its number
            _print_closing(document, console)
    except CancelledRun as cancelled:
        raise InputError(str(cancelled)) from None
    except httpx.TransportError as error:  # Label Studio's are told apart where they arise
        raise ConnectionError(
            f"Prefect at {up.prefect.ui_url} went away ({type(error).__name__}): start it "
            "(`rankloop up`) and run the same command again; what is finished is kept"
        ) from error


def set_prefect_environment(up: Servers) -> None:
    """Point Prefect at the server, and its logging at the dashboard alone: the terminal has our
    own bars."""
    os.environ.update(
        prefect_environment(up, servers.default_home())
        | {
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
            # A server that goes away is told once and by us, not by each of Prefect's workers.
            "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
            "PREFECT_CLIENT_MAX_RETRIES": "3",
        }
    )
    logging.raiseExceptions = False  # its log worker writes to stderr what it cannot send
    hear_our_loggers()


def _print_closing(document: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{document['name']}, round {document['round']}", title_justify="left")
    for column in ("step", "time", "result", "where it is"):
        table.add_column(column, overflow="fold")
    for row in step_rows(document):
        where = row["where"]
        if where.startswith("/"):
            where = os.path.relpath(where, Path.cwd())
        table.add_row(row["step"], row["time"], escape(row["result"]), escape(where))
    console.print(table)
    if stop := document["stopped_after"]:
        console.print(
            f"stopped after {stop}, as configured; without `stop_after` the next run goes on from "
            "here",
            highlight=False,
        )
    for name, address in document["addresses"].items():
        console.print(f"{name:<10} {address}", highlight=False, soft_wrap=True)
