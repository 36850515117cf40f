"""The last lines of `make faults` leave nothing out."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.faults import Tally

Outcome = Literal["passed", "failed", "skipped"]


def report(
    test: str, outcome: Outcome, when: Literal["setup", "call", "teardown"] = "call"
) -> pytest.TestReport:
    return pytest.TestReport(test, (test, None, test), {}, outcome, None, when)


def test_a_file_that_cannot_be_collected_is_a_failure_and_skips_are_told() -> None:
    tally = Tally()
    tally.pytest_collectreport(pytest.CollectReport("a.py", "passed", None, []))
    for test in ("1", "2"):
        tally.pytest_runtest_logreport(report(test, "passed"))
    assert tally.closing() == ["2 passed, 0 failed"]
    tally.pytest_collectreport(pytest.CollectReport("broken.py", "failed", None, []))
    tally.pytest_runtest_logreport(report("2", "failed", "teardown"))
    tally.pytest_runtest_logreport(report("3", "skipped", "setup"))
    assert tally.closing() == ["1 skipped: not tried here", "1 passed, 2 failed"]
