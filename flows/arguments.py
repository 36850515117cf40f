"""What `rankloop` takes on its command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

DEMO_ROUNDS = 2  # how many `rankloop demo` runs
RUN_HELP = """\
CONFIG is a YAML file. Every field can be overridden: --seed 7, --ppo.kl_coef 0.1 …; another seed
than the file's is another run, runs/<name>-seed-7/. `rankloop run --fields` lists all of them."""


def make_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser of `rankloop`, and that of `rankloop run`, for what argparse cannot say."""
    parser = argparse.ArgumentParser(
        "rankloop",
        description="Human rankings in, an aligned model out, round after round.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser(
        "up", help="start Prefect, Label Studio and a worker for rounds, or find them running"
    )
    up.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG",
        help="put Label Studio where its labeling.bind and labeling.public_url say",
    )
    commands.add_parser("down", help="end what `up` started")
    commands.add_parser("status", help="how the servers and the rounds are")
    doctor = commands.add_parser(
        "doctor", help="what is wrong, and what to do; starts and changes nothing"
    )
    doctor.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="look at what it will need, too"
    )
    labelers = commands.add_parser("labelers", help="the people who rank")
    about = labelers.add_subparsers(dest="about", required=True, metavar="invite|list")
    invite = about.add_parser("invite", help="print the link that signs a labeler up")
    invite.add_argument("--reset", action="store_true", help="make a new link; the old one ends")
    about.add_parser("list", help="who is there, and how much and how fast each has ranked")
    demo = commands.add_parser("demo", help="the support-desk example, from its corpus to a report")
    demo.add_argument("--seed", type=int, help="another seed than the example's is another run")
    demo.add_argument("--rounds", type=_count, default=DEMO_ROUNDS, metavar="N", help="how many")
    run = commands.add_parser(
        "run",
        help="rounds of CONFIG, here and now",
        epilog=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="rankloop run CONFIG [--rounds N | --round K] [--dry-run] [--section.field VALUE …]",
    )
    run.add_argument("config", type=Path, nargs="?", metavar="CONFIG")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be made, reused and needed; start and write nothing",
    )
    which = run.add_mutually_exclusive_group()
    which.add_argument(
        "--rounds",
        type=_count,
        default=1,
        metavar="N",
        help="the first N rounds, one after the other; what is finished is reused (default: 1)",
    )
    which.add_argument(
        "--round",
        type=_number,
        metavar="K",
        help="round K alone (the first is 0), or `next`: the unfinished one, else a new one",
    )
    _add_worker_commands(commands)
    run.add_argument("--fields", action="store_true", help="list every field, then stop")
    report = commands.add_parser("report", help="print the path of a run's newest report")
    report.add_argument("run", nargs="?", help="a config file or a run's name; default: the newest")
    promote = commands.add_parser("promote", help="make a round's policy the incumbent, by hand")
    rollback = commands.add_parser("rollback", help="go back to an earlier incumbent")
    for command in (promote, rollback):
        command.add_argument("run", metavar="RUN", help="a config file or a run's name")
        command.add_argument("--reason", default="", help="why; kept in the history")
    promote.add_argument("round", type=int, metavar="ROUND", help="its number, as in rounds/001")
    rollback.add_argument(
        "--to",
        type=_to,
        metavar="ROUND",
        help="a round's number, or `initial`; default: the incumbent before this one",
    )
    return parser, run


def _add_worker_commands(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="a round of CONFIG on the worker, where it waits for people without a process",
        epilog=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="rankloop submit CONFIG [--round K] [--follow] [--section.field VALUE …]",
    )
    submit.add_argument("config", type=Path, metavar="CONFIG")
    submit.add_argument(
        "--round",
        type=_number,
        metavar="K",
        default="next",
        help="which round (the first is 0); default: the unfinished one, else a new one",
    )
    submit.add_argument(
        "--follow", action="store_true", help="show what it does; Ctrl-C leaves it running"
    )
    schedule = commands.add_parser(
        "schedule",
        help="a round of CONFIG on the worker every so often; without CONFIG: what is scheduled",
        allow_abbrev=False,
        usage='rankloop schedule [CONFIG --cron "0 6 * * 1" [--timezone ZONE] '
        "[--section.field VALUE …] | CONFIG --off]",
    )
    schedule.add_argument("config", type=Path, nargs="?", metavar="CONFIG")
    schedule.add_argument("--cron", help='when, e.g. "0 6 * * 1": every Monday at six')
    schedule.add_argument(
        "--timezone", default="UTC", metavar="ZONE", help="of these times, e.g. Europe/Berlin"
    )
    schedule.add_argument("--off", action="store_true", help="end the schedule of CONFIG")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text!r}")
    return int(text)


def _number(text: str) -> int | Literal["next"]:
    if text == "next":
        return "next"
    return _round_number(text, "next")


def _to(text: str) -> int | Literal["initial"]:
    if text == "initial":
        return "initial"
    return _round_number(text, "initial")


def _round_number(text: str, other: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a round's number or {other!r}, not {text!r}")
    return int(text)
