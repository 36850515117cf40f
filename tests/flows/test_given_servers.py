"""Which addresses of servers of others are taken from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import cli, given_servers
from flows.server_home import Name

VARIABLES: list[tuple[Name, str, str]] = [
    ("prefect", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"),
    ("label_studio", "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that nothing was started in, and no servers given."""
    for _, variable, key in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "address", ["http://ann:hidden@host:80/x", "ann:hid/den@host", "http://@h"]
)
@pytest.mark.parametrize(("name", "variable", "key"), VARIABLES)
def test_an_address_with_a_password_is_refused_without_showing_it(
    home: Path,
    name: Name,
    variable: str,
    key: str,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status"])
    line = capsys.readouterr().err
    assert ended.value.code == 2
    assert variable in line
    assert f"put the key into {key}" in line
    assert "hid" not in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(("name", "variable", "key"), VARIABLES)
def test_an_address_without_a_password_is_taken(
    home: Path, name: Name, variable: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "https://rank.example.org/at/")
    assert given_servers.url(home, name) == "https://rank.example.org/at"
