"""Servers that answer something else than asked, or stop in the middle of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from flows import asking

BANNER = b"SSH-2.0-OpenSSH_9.2\r\n"
HALF = b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"name": "he'
WHOLE = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"name": 1}'


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that answers every request with these bytes and closes; its address."""
    listeners = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=_serve, args=(listener, answer), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _serve(listener: socket.socket, answer: bytes) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            client.recv(65536)
            client.sendall(answer)


def test_a_whole_answer_is_given(answering: Callable[[bytes], str]) -> None:
    url = answering(WHOLE)
    assert asking.get(url) == 200
    assert asking.get_json(url, {}) == {"name": 1}


@pytest.mark.parametrize("answer", [BANNER, b""], ids=["another protocol", "nothing"])
def test_what_speaks_no_http_is_nobody(answering: Callable[[bytes], str], answer: bytes) -> None:
    url = answering(answer)
    assert asking.get(url) is None
    assert asking.get_json(url, {}) == {}


def test_an_answer_that_breaks_off_is_none(answering: Callable[[bytes], str]) -> None:
    assert asking.get_json(answering(HALF), {}) == {}
