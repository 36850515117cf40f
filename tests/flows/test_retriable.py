"""Which errors are worth another try, on errors as libraries really raise them."""

from __future__ import annotations

import errno
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import requests
import torch
import urllib3
from huggingface_hub.errors import OfflineModeIsEnabled

from flows.embedded import free_port
from flows.retriable import may_pass
from flows.runner import StageError, run_stage
from labeling.errors import InputError
from tests.flows.toy_stages import RAISE, Toy

NOBODY = f"http://127.0.0.1:{free_port([])}"


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any
        call()
    return caught.value


def fail(error: BaseException, cause: BaseException | None = None) -> Callable[[], object]:
    def call() -> None:
        raise error from cause

    return call


def answer(status: int) -> Callable[[], object]:
    request = httpx.Request("GET", NOBODY)
    return httpx.Response(status, request=request).raise_for_status


def requests_answer(status: int) -> Callable[[], object]:
    response = requests.Response()
    response.status_code = status
    return response.raise_for_status


def hub_without_network() -> None:
    huggingface_hub.hf_hub_download("nobody/nothing", "config.json", endpoint=NOBODY)


def from_a_handler() -> None:
    try:
        httpx.get(NOBODY, trust_env=False)
    except httpx.ConnectError:
        raise RuntimeError("the download failed")  # noqa: B904 - so do some libraries


# `from None`: who raised it says that what came before has nothing to do with it.
def despite_a_handler() -> None:
    try:
        httpx.get(NOBODY, trust_env=False)
    except httpx.ConnectError:
        raise KeyError("column") from None


PASSING: dict[str, Callable[[], object]] = {
    "httpx": lambda: httpx.get(NOBODY, trust_env=False),
    "requests": lambda: requests.get(NOBODY, timeout=5),
    "urllib3": lambda: urllib3.PoolManager().request("GET", NOBODY, retries=False),
    "urllib3, after retries": lambda: urllib3.PoolManager().request("GET", NOBODY, retries=1),
    "urllib": lambda: urllib.request.build_opener().open(NOBODY),
    "hub": hub_without_network,
    "transformers": fail(
        OSError("We couldn't connect to 'https://huggingface.co'"), httpx.ConnectError("away")
    ),
    "named nowhere": from_a_handler,
    "HTTP 503": answer(503),
    "HTTP 429": answer(429),
    "HTTP 502 of requests": requests_answer(502),
    "reset": fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")),
    "no route": fail(OSError(errno.EHOSTUNREACH, "No route to host")),
    "time-out": fail(TimeoutError("too slow")),
    "name server": fail(socket.gaierror(socket.EAI_AGAIN, "Temporary failure")),
    "fork": fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
    "input and output": fail(OSError(errno.EIO, "Input/output error")),
    "NumPy's memory": lambda: np.zeros(10**15),
    "Arrow's memory": lambda: pa.allocate_buffer(2**60),
    "torch's memory": lambda: torch.empty(10**15),
    "CUDA's memory": fail(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 G")),
    "CUDA's memory, below torch": fail(RuntimeError("CUDA error: out of memory")),
    "cuBLAS's memory": fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")),
    "a lost loader": fail(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")),
    "a lost process": fail(BrokenProcessPool("terminated abruptly")),
}
LASTING: dict[str, Callable[[], object]] = {
    "input": fail(InputError("mend it")),
    "input, with a network that is away": fail(InputError("go online"), ConnectionError("away")),
    "bug": fail(KeyError("column")),
    "bug, after another error": despite_a_handler,
    "value": fail(ValueError("not finite")),
    "assertion": fail(AssertionError("a check failed")),
    "CUDA's assertion": fail(RuntimeError("CUDA error: device-side assert triggered")),
    "HTTP 404": answer(404),
    "HTTP 401 of requests": requests_answer(401),
    "HTTP 403 of urllib": fail(urllib.error.HTTPError(NOBODY, 403, "no", {}, None)),  # type: ignore[arg-type]
    "no such file": lambda: Path("/nowhere").read_text(),
    "a folder": lambda: Path("/").read_text(),
    "not allowed": fail(PermissionError(errno.EACCES, "denied")),
    "full disk": fail(OSError(errno.ENOSPC, "No space left on device")),
    "no such model": fail(OSError("nobody/nothing is not a local folder")),
    "a wrong address": lambda: httpx.get("ftp://nowhere"),
    "a wrong address of requests": lambda: requests.get("nowhere", timeout=5),
    "certificate": fail(httpx.ConnectError("no"), ssl.SSLCertVerificationError("self-signed")),
    "HF_HUB_OFFLINE": fail(OfflineModeIsEnabled("offline mode is enabled")),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_another_try_may_mend(name: str) -> None:
    error = raised(PASSING[name])
    assert may_pass(error), repr(error)


@pytest.mark.parametrize("name", LASTING)
def test_what_no_other_try_mends(name: str) -> None:
    error = raised(LASTING[name])
    assert not may_pass(error), repr(error)


@pytest.mark.parametrize(
    ("fail", "retriable"), [("memory of torch", True), ("network", True), ("divergence", False)]
)
def test_a_stages_process_tells_its_parent(fail: str, retriable: bool, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        run_stage(RAISE, Toy(fail=fail, folder=NOBODY), {}, tmp_path, lambda _: None)
    assert caught.value.retriable is retriable
    assert len(str(caught.value).splitlines()) == 1
