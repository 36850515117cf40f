"""The command line: parses and calls, nothing else. Anything slow to import waits for its use."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.arguments import make_parser
from labeling.errors import InputError, disk_refusal

if TYPE_CHECKING:
    from rich.console import Console

    from flows.config import RoundConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `rankloop`. Exits with 0, 1 (our trouble), 2 (the user can mend it) 130
    (Ctrl-C) or 143 (SIGTERM)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _dispatch(given)
    except InputError as error:
        where = f" (traceback in {_keep_traceback(error)})" if error.__cause__ else ""
        sys.exit(_complain(f"{error}{where}", 2))
    except KeyboardInterrupt as stop:
        again = " ".join(["rankloop", *given])
        message = f"stopped; what is finished is kept, `{again}` goes on from there"
        sys.exit(_complain(message, 143 if isinstance(stop, Terminated) else 130))
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        sys.exit(_complain(*_tell(error)))


class Terminated(KeyboardInterrupt):
    """SIGTERM: what ends the machine or the session ends a round as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise Terminated


def _dispatch(given: Sequence[str]) -> None:
    parser, run = make_parser()
    options, flags = parser.parse_known_args(given)
    if options.command == "run":
        if options.fields:
            return _print_fields()
        if options.config is None:
            run.error("give a CONFIG, e.g. examples/support/config.yaml")
        if options.dry_run:
            return _dry_run(options.config, options.round, flags)
        return _run(options.config, options.round, options.rounds, flags)
    if options.command == "submit":
        return _submit(options.config, options.round, options.follow, flags)
    if options.command == "schedule" and options.cron:
        if options.config is None:
            parser.error("schedule: give a CONFIG with --cron")
        return _schedule(options.config, options.cron, options.timezone, flags)
    if flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    commands: dict[str, Callable[[], None]] = {
        "up": lambda: _up(options.config),
        "down": _down,
        "status": _status,
        "doctor": lambda: _doctor(options.config),
        "labelers": lambda: _labelers() if options.about == "list" else _invite(options.reset),
        "schedule": lambda: _schedules(options.config, options.off),
        "demo": lambda: _demo(options.seed, options.rounds),
        "report": lambda: _report(options.run),
        "promote": lambda: _promote(options.run, options.round, options.reason),
        "rollback": lambda: _rollback(options.run, options.to, options.reason),
    }
    return commands[options.command]()


# --- rounds --------------------------------------------------------------------------------------


def _demo(seed: int | None, rounds: int) -> None:
    from flows import demo  # noqa: PLC0415

    _run(demo.prepare(), None, rounds, [] if seed is None else ["--seed", str(seed)])


def _run(
    path: Path, number: int | Literal["next"] | None, rounds: int, flags: Sequence[str]
) -> None:
    from flows import launch  # noqa: PLC0415
    from flows.load import load_config  # noqa: PLC0415

    config = load_config(path, flags)
    numbers = range(rounds) if number is None else [_resolved(config, number)]
    launch.run_rounds(config, numbers, _console())


def _dry_run(path: Path, number: int | Literal["next"] | None, flags: Sequence[str]) -> None:
    from flows.dry_run import show  # noqa: PLC0415
    from flows.load import load_config  # noqa: PLC0415

    config = load_config(path, flags)
    show(config, _resolved(config, number or 0), _console())


def _submit(path: Path, number: int | Literal["next"], follow: bool, flags: Sequence[str]) -> None:
    from flows import launch  # noqa: PLC0415
    from flows.load import load_config  # noqa: PLC0415

    config = load_config(path, flags)
    launch.submit_round(config, None if number == "next" else number, follow, _console())


def _schedule(path: Path, cron: str, timezone: str, flags: Sequence[str]) -> None:
    from flows import launch  # noqa: PLC0415
    from flows.load import load_config  # noqa: PLC0415

    launch.schedule_rounds(load_config(path, flags), cron, timezone, _console())


def _schedules(path: Path | None, is_off: bool) -> None:
    from flows import launch  # noqa: PLC0415

    if path and not is_off:
        raise InputError(f'{path}: say when, e.g. --cron "0 6 * * 1", or --off')
    launch.schedules(_name(str(path)) if path else None, _console())


def _resolved(config: RoundConfig, number: int | Literal["next"]) -> int:
    from flows.lineage import next_round  # noqa: PLC0415

    if isinstance(number, int):
        return number
    return next_round(Path.cwd() / "runs" / config.name, config.stop_after)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415

    # Without a terminal nobody said how wide a line may be.
    return Console(width=None if sys.stdout.isatty() else 140)


def _report(run: str | None) -> None:
    from flows.round_folder import newest_report  # noqa: PLC0415

    print(newest_report(Path.cwd() / "runs", None if run is None else _name(run)))


def _promote(run: str, number: int, reason: str) -> None:
    from flows import by_hand  # noqa: PLC0415

    print(by_hand.promote(_name(run), number, reason))


def _rollback(run: str, to: int | Literal["initial"] | None, reason: str) -> None:
    from flows import by_hand  # noqa: PLC0415

    print(by_hand.roll_back(_name(run), to, reason))


def _name(run: str) -> str:
    """A run's name, from a config file or as it is."""
    if not run.endswith((".yaml", ".yml")):
        return run
    from flows.load import load_config  # noqa: PLC0415

    return load_config(Path(run)).name


def _print_fields() -> None:
    from flows.load import fields  # noqa: PLC0415

    for name, field in fields():
        default = "required" if field.is_required() else f"default: {field.default}"
        if field.description:  # a section has none of its own
            print(f"--{name}  ({default})\n    {field.description}\n")


# --- servers -------------------------------------------------------------------------------------


def _up(config: Path | None) -> None:
    from rich.console import Console  # noqa: PLC0415

    from flows import launch  # noqa: PLC0415
    from flows.load import load_config  # noqa: PLC0415

    labeling = load_config(config).labeling if config else None
    launch.bring_up(Console(), labeling=labeling, with_worker=True)


def _down() -> None:
    from flows import servers, starting  # noqa: PLC0415

    stopped = starting.down(servers.default_home())
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing of ours was running")


def _labelers() -> None:
    from rich.table import Table  # noqa: PLC0415

    from flows import labelers, servers  # noqa: PLC0415

    table = Table(*labelers.COLUMNS)
    for row in labelers.list_labelers(servers.default_home(), Path.cwd() / "runs"):
        table.add_row(*row)
    _console().print(table)


def _invite(reset: bool) -> None:
    from flows import labelers, servers  # noqa: PLC0415

    for line in labelers.invite(servers.default_home(), reset):
        print(line)


def _status() -> None:
    from flows import server_status, servers, status  # noqa: PLC0415

    home = servers.default_home()
    for line in server_status.describe_servers(home):
        print(line)
    for line in status.describe_rounds(
        Path.cwd() / "runs",
        partial(servers.open_label_studio, home),
        partial(server_status.flow_run_end, home),
    ):
        print(line)


def _doctor(config: Path | None) -> None:
    from flows import doctor  # noqa: PLC0415

    if not doctor.show(config, _console()):
        sys.exit(2)


# --- what goes wrong -----------------------------------------------------------------------------


def _complain(message: str, code: int) -> int:
    print(f"rankloop: {message}", file=sys.stderr)
    return code


def _tell(error: Exception) -> tuple[str, int]:
    """One line for the terminal and the exit code: 2 when the disk, a server or the machine is to
    blame, 1 for our own bug. The traceback goes to a log that the line names."""
    reason = (str(error).splitlines() or [""])[0][:300]
    if hasattr(error, "log"):  # a stage that failed has named its own
        return reason, 2 if getattr(error, "retriable", False) else 1
    log = _keep_traceback(error)
    if refusal := disk_refusal(error):
        return f"{refusal} (traceback in {log})", 2
    if isinstance(error, (ConnectionError, TimeoutError)):
        return f"{reason or type(error).__name__} (traceback in {log})", 2
    return f"{type(error).__name__}: {reason} (traceback in {log})", 1


def _keep_traceback(error: Exception) -> Path:
    home = Path(os.environ.get("RANKLOOP_HOME") or ".rankloop")
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (home / "logs", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("".join(traceback.format_exception(error)))
        except OSError:
            continue
        return folder / name
    return Path(os.devnull)


if __name__ == "__main__":
    main()
