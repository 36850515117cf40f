"""What Prefect is told through the environment: in this process, in the worker, and in the rounds
that the worker starts; and the names that it knows us by. No Prefect."""

from __future__ import annotations

import os
from pathlib import Path

from flows.progress import LOGGERS
from flows.servers import Servers

POOL = "rankloop"
ROUND, WATCH = "rankloop-round", "watch-rankings"  # the flows; each has a deployment of its name
ROUND_DEPLOYMENT, WATCH_DEPLOYMENT = f"{ROUND}/{ROUND}", f"{WATCH}/{WATCH}"
# What opens a server of others.
_ACCESS = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")


def prefect_environment(up: Servers, home: Path) -> dict[str, str]:
    """Where the server is and what it asks for; what we log goes to the dashboard, too."""
    access = {name: os.environ[name] for name in _ACCESS if name in os.environ}
    if up.prefect.access:
        access = {"PREFECT_API_AUTH_STRING": up.prefect.access}
    return {
        "PREFECT_API_URL": up.prefect.api_url,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        **access,
    }
