"""The terminal while a round runs: a bar for the step at work, a line for each that is done.

It listens to `logging`. Steps announce themselves with `extra={"step": Step(…)}`; any record with
`extra={"progress": (done, total)}` moves the bar. Without a terminal it prints plain lines.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

LOGGERS = ("labeling", "reward", "ppo", "flows")
_PLAIN_EVERY_S = 15.0
_MARKS = {"made": "[green]✓[/]", "reused": "[cyan]=[/]", "failed": "[red]✗[/]"}


Event = Literal["begin", "made", "reused", "failed"]


@dataclass(frozen=True)
class Step:
    """A step begins or ends. `result` is a short line for people, `seconds` what it took."""

    name: str
    event: Event
    seconds: float = 0.0
    result: str = ""


def hear_our_loggers() -> None:
    """Let what our code logs through, for whoever listens."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


class Terminal(logging.Handler):
    """Shows records of LOGGERS between `with Terminal(console):` and its end."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.fields[message]}", style="dim"),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None, visible=False, message="")
        self._step = ""
        self._said = 0.0

    def __enter__(self) -> Terminal:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.addHandler(self)
        self._bars.start()
        self._said = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        step = getattr(record, "step", None)
        if isinstance(step, Step):
            self._show_step(step)
        elif record.levelno >= logging.WARNING:
            self.console.print(f"  [yellow]{escape(record.getMessage())}[/]", highlight=False)
        else:
            self._show_progress(record.getMessage(), getattr(record, "progress", None))

    def _show_step(self, step: Step) -> None:
        if step.event == "begin":
            self._step, self._said = step.name, time.monotonic()
            self._bars.reset(
                self._task, total=None, visible=True, description=step.name, message=""
            )
            return
        self._bars.update(self._task, visible=False)
        mark = _MARKS[step.event]
        seconds = "reused" if step.event == "reused" else f"{step.seconds:.1f} s"
        self.console.print(
            f"{mark} {step.name:<12}{seconds:>9}  {escape(step.result)}", highlight=False
        )

    def _show_progress(self, message: str, progress: tuple[int, int] | None) -> None:
        if self.console.is_terminal:
            first = message.splitlines()[0] if message else ""
            if progress:
                self._bars.update(
                    self._task, completed=progress[0], total=progress[1], message=escape(first)
                )
            else:
                self._bars.update(self._task, message=escape(first))
        elif time.monotonic() - self._said > _PLAIN_EVERY_S:
            self._said = time.monotonic()
            self.console.print(f"  {self._step}: {message}", highlight=False, markup=False)
