from __future__ import annotations

import pytest

from labeling.addresses import (
    Address,
    checked_bind,
    checked_public_url,
    is_own_address,
    is_this_machine,
)


def test_addresses_of_this_machine_are_known() -> None:
    for url in ("http://127.0.0.1:8080", "http://localhost/x", "http://127.0.0.1/health"):
        assert is_this_machine(url)
    for url in ("https://rank.example.org", "http://192.0.2.1:80", "words", "http://[", ""):
        assert not is_this_machine(url)
    assert is_own_address("0.0.0.0")
    assert not is_own_address("192.0.2.1")


@pytest.mark.parametrize("bind", ["", "localhost", "127.0.0.1:8080", "::1", "1.2.3"])
def test_only_ipv4_addresses_can_be_bound(bind: str) -> None:
    with pytest.raises(ValueError, match="must be an IPv4 address"):
        checked_bind(bind)


@pytest.mark.parametrize(
    "url",
    [
        "rank.example.org",
        "ftp://rank.example.org",
        "https://",
        "https://a:b@c",
        "https://a:x",
        "//a",
    ],
)
def test_what_no_browser_opens_is_no_public_address(url: str) -> None:
    with pytest.raises(ValueError, match="must be an address like"):
        checked_public_url(url)


def test_a_public_address_loses_its_last_slash() -> None:
    assert checked_public_url("https://rank.example.org/here/") == "https://rank.example.org/here"


def test_the_origin_has_no_path() -> None:
    assert Address(public_url="https://a.example:444/here").origin == "https://a.example:444"
    assert Address().origin is None


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (Address(), None),
        (Address("127.0.0.1", "https://rank.example.org"), None),
        (Address("127.0.0.1", "http://localhost:9000"), None),
        (Address("0.0.0.0"), "reachable at 0.0.0.0 without TLS"),
        (Address("0.0.0.0", "http://rank.example.org"), "reachable at http://rank.example.org"),
        (Address("127.0.0.1", "http://rank.example.org"), "reads labelers' passwords"),
        (Address("0.0.0.0", "https://rank.example.org"), "only the proxy reach its port"),
    ],
)
def test_what_others_on_the_network_can_see_is_said(address: Address, said: str | None) -> None:
    assert (address.exposure is None) == (said is None)
    if said:
        assert said in str(address.exposure)
