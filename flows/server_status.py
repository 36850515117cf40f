"""How the servers, the worker and the schedules are, in lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows import asking, given_servers, processes, server_home, servers
from flows.prefect_environment import ROUND_DEPLOYMENT
from labeling.errors import InputError

_INDENT = " " * 14


def describe_servers(home: Path) -> list[str]:
    """Lines for each server, the worker and each schedule. Starts nothing."""
    lines = []
    for server in servers.status(home):
        state = "ready" if server.ready else "not running" if server.pid is None else "not ready"
        memory = f", {server.memory_mb:.0f} MB" if server.memory_mb else ""
        database = f", {server.database}" if server.database else ""
        lines.append(
            f"{server.title:<13} {state:<12} {server.url} ({server.where}{memory}{database})"
        )
        if server.public_url and server.public_url != server.url:
            lines.append(f"{_INDENT}for labelers: {server.public_url}")
        if server.log and not server.ready and server.pid is not None:
            lines.append(f"{_INDENT}log: {server.log}")
    return [*lines, f"{'Worker':<13} {_worker(home)}", *_schedules(home)]


def flow_run_end(home: Path, flow_run: str) -> str | None:
    """How a Prefect run ended (`cancelled`, …), if it did and the server tells."""
    state = _ask_prefect(home, f"flow_runs/{flow_run}").get("state") or {}
    is_final = state.get("type") in ("CANCELLED", "FAILED", "CRASHED", "COMPLETED")
    return str(state["name"]).lower() if is_final else None


def _worker(home: Path) -> str:
    process = server_home.recall(home.resolve(), "worker").process
    found = processes.find(process) if process else None
    if process is None or found is None:
        return "not running  (for submitted and scheduled rounds; `rankloop up` starts it)"
    return f"at work      (pid {found.pid}, {processes.memory_mb(process):.0f} MB)"


def _schedules(home: Path) -> list[str]:
    deployment = _ask_prefect(home, f"deployments/name/{ROUND_DEPLOYMENT}")
    is_paused = deployment.get("paused", False)
    return [
        f"{'Schedule':<13} {'paused' if is_paused or not one['active'] else 'on':<12} "
        f"{one.get('slug')}: {one['schedule']['cron']} ({one['schedule'].get('timezone') or 'UTC'})"
        for one in deployment.get("schedules", [])
        if "cron" in one["schedule"]
    ]


def _ask_prefect(home: Path, path: str) -> dict[str, Any]:
    try:
        found = servers.find_prefect(home)
    except InputError:
        return {}
    if found is None:
        return {}
    access = given_servers.basic(found.access) if found.access else given_servers.prefect_headers()
    return asking.get_json(f"{found.api_url}/{path}", access)
