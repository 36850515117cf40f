"""The people who rank: how they are invited, who is there, and what each has done."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows import servers
from flows.config import project_title

if TYPE_CHECKING:
    from labeling.label_studio import LabelStudio
    from labeling.rankings import Answer

logger = logging.getLogger(__name__)

COLUMNS = ("labeler", "name", "rankings", "not usable", "pace", "last answer")


def invite(home: Path, reset: bool = False) -> tuple[str, str]:
    """The link that signs a labeler up, and a line that says what to do with it.

    Works with the embedded Label Studio and with the one that LABEL_STUDIO_URL names. `reset`: a
    new link, the old one ends. Raises InputError when no server answers.
    """
    from labeling.accounts import invite_link  # noqa: PLC0415 - loads the SDK

    link = invite_link(servers.reach_label_studio(home), reset)
    return link, (
        "send it to your labelers: each opens it, signs up with an email and a password, and finds "
        "the tasks under Projects; whoever has the link can sign up, and --reset ends it"
    )


def list_labelers(home: Path, runs: Path) -> list[tuple[str, ...]]:
    """A row for each account of Label Studio, by COLUMNS: what it ranked in all rounds below
    `runs`, and how fast. Raises InputError when no server answers."""
    from labeling.accounts import accounts  # noqa: PLC0415 - loads the SDK
    from labeling.tally import by_labeler, labeler_parts  # noqa: PLC0415

    server = servers.reach_label_studio(home)
    answers = [
        answer
        for round_ in sorted(runs.glob("*/rounds/*/round.json"))
        for answer in _answers(server, round_)
    ]
    done = {row.labeler: row for row in by_labeler(answers)}
    names = {account.email: account.name for account in accounts(server)}
    rows: list[tuple[str, ...]] = []
    for email in [*done, *sorted(names.keys() - done.keys())]:
        parts = labeler_parts(asdict(done[email])) if email in done else ("0 rankings", "", "", "")
        rows.append((email, names.get(email, "(gone)"), *parts))
    return rows


def _answers(server: LabelStudio, round_: Path) -> list[Answer]:
    """What was answered in a round, by what Label Studio has now; of a project that is not there
    (any more), by the newest snapshot."""
    from flows import answers  # noqa: PLC0415 - loads the SDK

    try:
        document = json.loads(round_.read_text())
        title = project_title(document["name"], document["round"])
        return answers.answers_now(server, title, round_.parent)[0]
    except (OSError, ValueError, KeyError, TypeError) as trouble:
        logger.warning("%s is left out (%s)", round_, type(trouble).__name__)
        return []
