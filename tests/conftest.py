"""What the whole suite shares: one Prefect and one Label Studio, real, on a temporary home."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.servers import Servers
from flows.starting import down, up

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from labeling.label_studio import LabelStudio

# A shell starts what it puts into the background deaf to SIGINT, and children inherit that. Some
# tests press Ctrl-C: let their children hear it whoever started the suite.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GIVEN_SERVERS = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "LABEL_STUDIO_URL",
    "LABEL_STUDIO_API_KEY",
    "RANKLOOP_PREFECT_DATABASE",
    "RANKLOOP_LABEL_STUDIO_DATABASE",
)


@pytest.fixture(scope="session")
def servers_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers") / "home"


@pytest.fixture(scope="session")
def servers(servers_home: Path) -> Iterator[Servers]:
    """Both servers, started once for the session and ended with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in GIVEN_SERVERS:
            patch.delenv(name, raising=False)
        try:
            found = up(servers_home)
            patch.setenv("PREFECT_API_AUTH_STRING", found.prefect.access)  # where it is given
            yield found
        finally:
            down(servers_home)


@pytest.fixture(scope="session")
def label_studio(servers: Servers) -> LabelStudio:
    from labeling.label_studio import LabelStudio  # noqa: PLC0415 (takes a second)

    return LabelStudio(servers.label_studio.url, servers.label_studio.token)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One headless chromium for the session. Without one the test is skipped, or fails when
    RANKLOOP_REQUIRE_BROWSER=1."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "chromium" if binary is None else "chromedriver"
        reason = f"{missing} is not installed, so the labeling page was not tried in a browser"
        if os.environ.get("RANKLOOP_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    chrome = start_chromium(binary, driver, tmp_path_factory.mktemp("chromium"))
    try:
        yield chrome
    finally:
        chrome.quit()


def start_chromium(binary: str, driver: str, profile: Path) -> Chrome:
    from selenium import webdriver  # noqa: PLC0415 (few tests need it)

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-quic",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Chrome]:
    """The session's chromium with a page of 1400×900, without the window's own bars."""
    size = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield chromium
    chromium.get("about:blank")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "servers" in fixtures:
            item.add_marker("servers")
        if "browser" in fixtures:
            item.add_marker("browser")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "browser" in r.keywords]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} browser tests did NOT run: {skipped[0].longrepr[2]}", yellow=True
        )
