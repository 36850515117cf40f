"""What `rankloop doctor` looks at, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from flows import servers
from flows.servers import PrefectServer, ServerStatus

if TYPE_CHECKING:
    from flows.config import RoundConfig


@dataclass(frozen=True)
class Finding:
    """One line. `to_do` is for what is not ok: a command where there is one. It is empty where
    `what` is an error's own line, which says it."""

    mark: Literal["ok", "warning", "wrong"]
    what: str
    to_do: str = ""


def ok(what: str) -> Finding:
    return Finding("ok", what)


def warning(what: str, to_do: str) -> Finding:
    """Works now, and may not for long, or not as one thinks."""
    return Finding("warning", what, to_do)


def wrong(what: str, to_do: str) -> Finding:
    """Rounds cannot begin, go on or end."""
    return Finding("wrong", what, to_do)


@dataclass(frozen=True)
class Site:
    """A home of servers, and the folder that `rankloop` is called in."""

    home: Path
    folder: Path

    @cached_property
    def servers(self) -> list[ServerStatus]:
        """As they are when the first check asks."""
        return servers.status(self.home)

    @cached_property
    def prefect(self) -> PrefectServer | None:
        """Raises InputError when it refuses our password."""
        return servers.find_prefect(self.home)


@dataclass(frozen=True)
class Plans:
    """The next round of a config, on a site."""

    site: Site
    path: Path
    whole: RoundConfig
    number: int

    @cached_property
    def config(self) -> RoundConfig:
        """The round's own."""
        return self.whole.for_round(self.number)


Findings: TypeAlias = Iterator[Finding]
Check: TypeAlias = Callable[[Site], Findings]


def age(of: timedelta) -> str:
    """`40 s`, `12 min`, `5 h`, `3 days`."""
    seconds = max(of.total_seconds(), 0)
    for unit, size, above in (("days", 86400, 2 * 86400), ("h", 3600, 2 * 3600), ("min", 60, 120)):
        if seconds >= above:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
