"""All kills and interruptions: `make faults`. Ends with a table of the kills and their moments,
and with `N passed, N failed`."""

from __future__ import annotations

import sys

import pytest

# The rest of what goes wrong on purpose is in the ordinary suite.
KILLS = (
    "tests/flows/test_crashes.py",
    "tests/flows/test_faults_on_worker.py",
    "tests/flows/test_publish_kills.py",
    "tests/flows/test_guard.py",
    "tests/flows/test_gpu.py",
    "tests/ppo/test_checkpoint.py",
)


class Tally:
    """Counts tests, not phases of tests, and keeps what they noted."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        self.skipped: set[str] = set()
        self.notes: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count(report)
        if report.passed and report.when == "call":
            self.passed.add(report.nodeid)
        if report.when == "call":
            self.notes += [str(text) for name, text in report.user_properties if name == "note"]

    def _count(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.skipped:
            self.skipped.add(report.nodeid)

    def closing(self) -> list[str]:
        """What was not tried, if anything, and what came of the rest."""
        skipped = [f"{len(self.skipped)} skipped: not tried here"] if self.skipped else []
        return [*skipped, f"{len(self.passed - self.failed)} passed, {len(self.failed)} failed"]


def main() -> int:
    tally = Tally()
    code = pytest.main(["-m", "", *KILLS, *sys.argv[1:]], plugins=[tally])
    print("\nsignal | step | victim | moment in it | really hit | whole again after")
    print("\n".join(tally.notes))
    print("\n".join(tally.closing()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
