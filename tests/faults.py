"""All that goes wrong on purpose: `make faults`. Ends with a table of the kills and their moments,
and with `N passed, N failed`."""

from __future__ import annotations

import sys

import pytest


class Tally:
    """Counts tests, not phases of tests, and keeps what they noted."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        self.notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.add(report.nodeid)
        if report.when == "call":
            self.notes += [str(text) for name, text in report.user_properties if name == "note"]


def main() -> int:
    tally = Tally()
    code = pytest.main(["-m", "", "tests/flows", "tests/labeling", *sys.argv[1:]], plugins=[tally])
    print("\nsignal | step | victim | moment in it | really hit | whole again after")
    print("\n".join(tally.notes))
    print(f"{len(tally.passed - tally.failed)} passed, {len(tally.failed)} failed")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
