"""Brings the servers up and runs a round in this process, with everything that a person at the
terminal sees of it. Sets Prefect's environment before importing it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import servers
from flows.check import check_inputs
from flows.lineage import look
from flows.plan import needed_steps
from flows.progress import LOGGERS, Step, Terminal
from flows.server_home import HINT, NAMES, Name, check_writable
from flows.servers import Servers
from flows.summary import step_rows
from labeling.addresses import LOOPBACK, Address

if TYPE_CHECKING:
    from flows.config import RoundConfig
    from labeling.config import Labeling

logger = logging.getLogger(__name__)


def bring_up(
    console: Console, wanted: Collection[Name] = NAMES, labeling: Labeling | None = None
) -> Servers:
    """Start the servers that do not run, and print where they are; the login only once.
    `labeling` may name where Label Studio listens."""
    clock = time.monotonic()
    with Terminal(console):
        logger.info("starting", extra={"step": Step("servers", "begin")})
        address = named_address(labeling) if labeling else None
        up = servers.up(servers.default_home(), wanted, address)
        seconds = time.monotonic() - clock
        logger.info("ready", extra={"step": Step("servers", "made", seconds, "ready")})
    console.print(f"Prefect       {up.prefect.ui_url}", highlight=False)
    if up.label_studio:
        console.print(f"Label Studio  {up.label_studio.public_url}", highlight=False)
        if up.label_studio.public_url != up.label_studio.url:
            console.print(f"              behind it: {up.label_studio.url}", highlight=False)
    if up.label_studio and (login := up.label_studio.login):
        console.print(
            f"              log in as {escape(login.email)} with {escape(login.password)} "
            f"(shown once; kept in {servers.default_home() / 'credentials.json'})",
            highlight=False,
            soft_wrap=True,
        )
    return up


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
    from flows.round import rankloop_round  # noqa: PLC0415 - imports Prefect

    try:
        for number in numbers:
            with Terminal(console):
                document = rankloop_round(config, number)
            _print_closing(document, console)
    except httpx.TransportError as error:  # Label Studio's are told apart where they arise
        raise ConnectionError(
            f"Prefect at {up.prefect.ui_url} went away ({type(error).__name__}): start it "
            "(`rankloop up`) and run the same command again; what is finished is kept"
        ) from error


def set_prefect_environment(up: Servers) -> None:
    """Point Prefect at the server, and its logging at the dashboard alone: the terminal has our
    own bars."""
    home = servers.default_home()
    os.environ.update(
        {
            "PREFECT_API_URL": up.prefect.api_url,
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS),
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
            # A server that goes away is told once and by us, not by each of Prefect's workers.
            "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
            "PREFECT_CLIENT_MAX_RETRIES": "3",
        }
    )
    logging.raiseExceptions = False  # its log worker writes to stderr what it cannot send
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


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
