from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from flows.servers import Servers
    from tests.labeling.driving import LabelingPage


@pytest.fixture
def at(browser: Chrome, servers: Servers, servers_home: Path) -> LabelingPage:
    """The labeling page in the session's browser, logged in."""
    from tests.labeling.driving import LabelingPage  # noqa: PLC0415 (few tests need it)

    assert servers.label_studio is not None
    return LabelingPage(browser, servers.label_studio.url, servers_home)
