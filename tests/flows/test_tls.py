"""Label Studio behind a real TLS proxy, as labelers at other machines reach it. One server of this
module's own: the session's, copied, so that it starts in seconds."""

from __future__ import annotations

import re
import secrets
import shutil
import sqlite3
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from flows import labelers
from flows.servers import LabelStudioServer, Servers, status
from flows.starting import down, up
from labeling import page
from labeling.accounts import sign_in
from labeling.addresses import Address
from labeling.label_studio import LabelStudio, Project
from labeling.publishing import publish
from labeling.records import Candidates, Completion, Prompt, Ranking
from tests.tls_proxy import TlsProxy

PASSWORD = secrets.token_urlsafe(12)
EMAIL = f"{uuid.uuid4().hex[:8]}@example.org"


@pytest.fixture(scope="module")
def home(
    servers: Servers, servers_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("tls") / "home"
    (home / "label-studio").mkdir(parents=True)
    shutil.copy(servers_home / "credentials.json", home)
    shutil.copy(servers_home / "label-studio" / ".env", home / "label-studio")
    database = Path("label-studio") / "label_studio.sqlite3"
    with (
        sqlite3.connect(servers_home / database) as there,
        sqlite3.connect(home / database) as copy,
    ):
        there.backup(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", servers.prefect.api_url)
        for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"):
            patch.delenv(name, raising=False)
        try:
            yield home
        finally:
            down(home)


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TlsProxy]]:
    """One whose address the server knows, one that it does not know, and one under a path."""
    made = {
        name: TlsProxy(tmp_path_factory.mktemp(name), prefix)
        for name, prefix in (("known", ""), ("unknown", ""), ("path", "/rank"))
    }
    yield made
    for proxy in made.values():
        proxy.leave()


@pytest.fixture(scope="module")
def served(home: Path, proxies: dict[str, TlsProxy]) -> LabelStudioServer:
    found = up(home, address=Address("0.0.0.0", proxies["known"].url)).label_studio
    for proxy in proxies.values():
        proxy.stand_before(int(found.url.rpartition(":")[2]))
    return found


@pytest.fixture(scope="module")
def project(served: LabelStudioServer) -> Project:
    server = LabelStudio(served.url, served.token, served.public_url)
    project = server.ensure_project("behind TLS", "Rank them.")
    tasks = [
        Candidates(Prompt(text=f"{n}"), (Completion("yes"), Completion("no"))) for n in range(2)
    ]
    publish(server, project, tasks)
    return server.ensure_project("behind TLS", "Rank them.")


class Browser:
    """What a browser does with forms: it keeps cookies, checks the certificate and names the
    origin."""

    def __init__(self, proxy: TlsProxy) -> None:
        trusted = ssl.create_default_context(cafile=str(proxy.certificate))
        self.http = httpx.Client(verify=trusted, trust_env=False, follow_redirects=True)

    def open(self, url: str) -> httpx.Response:
        return self.http.get(url)

    def submit(self, url: str, **fields: str) -> httpx.Response:
        form = self.open(url)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
        assert token is not None
        origin = f"{form.url.scheme}://{form.url.netloc.decode()}"
        return self.http.post(
            str(form.url),
            data=fields | {"csrfmiddlewaretoken": token[1]},
            headers={"Origin": origin, "Referer": str(form.url)},
        )

    def log_in(self, proxy: TlsProxy) -> httpx.Response:
        return self.submit(f"{proxy.url}/user/login/", email=EMAIL, password=PASSWORD)

    def rank_next(self, proxy: TlsProxy, project: Project) -> None:
        task = self.open(f"{proxy.url}/api/projects/{project.id}/next").json()["id"]
        result = page.annotation_result(Ranking("", "", ((0,), (1,))), 2)
        answer = self.http.post(
            f"{proxy.url}/api/tasks/{task}/annotations/",
            json={"result": result},
            headers={"Origin": proxy.url.removesuffix("/rank")},
        )
        assert answer.status_code == 201, answer.text


def answered_by(server: LabelStudio, project: Project) -> list[str]:
    exported = server.export(project)
    return [a["completed_by"]["email"] for task in exported for a in task["annotations"]]


def test_a_labeler_signs_up_logs_in_and_ranks_through_tls(
    home: Path, served: LabelStudioServer, project: Project, proxies: dict[str, TlsProxy]
) -> None:
    proxy = proxies["known"]
    link, _ = labelers.invite(home)
    assert link.startswith(proxy.url)
    assert Browser(proxy).submit(link, email=EMAIL, password=PASSWORD).status_code == 200
    browser = Browser(proxy)
    assert browser.log_in(proxy).url.path == "/"
    assert all(c.secure for c in browser.http.cookies.jar)
    assert project.url.startswith(proxy.url)
    assert browser.open(project.url).status_code == 200
    browser.rank_next(proxy, project)
    assert answered_by(LabelStudio(served.url, served.token), project) == [EMAIL]


def test_without_the_origin_set_the_login_is_refused(
    served: LabelStudioServer, proxies: dict[str, TlsProxy]
) -> None:
    refused = Browser(proxies["unknown"]).log_in(proxies["unknown"])
    assert refused.status_code == 403
    assert "CSRF" in refused.text


def test_we_talk_to_it_directly_though_its_cookies_are_for_https(
    home: Path, served: LabelStudioServer
) -> None:
    server = LabelStudio(served.url, served.token)
    assert served.url.startswith("http://127.0.0.1:")
    assert sign_in(server, "direct@example.org").email == "direct@example.org"
    there = status(home)[1]
    assert (there.ready, there.public_url) == (True, served.public_url)
    sockets = psutil.Process(there.pid).net_connections(kind="tcp")
    assert {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN} == {"0.0.0.0"}


def test_a_restart_for_a_path_on_the_host_leaves_labelers_logged_in(
    home: Path, served: LabelStudioServer, project: Project, proxies: dict[str, TlsProxy]
) -> None:
    browser, proxy = Browser(proxies["known"]), proxies["path"]
    browser.log_in(proxies["known"])
    moved = up(home, address=Address("0.0.0.0", proxy.url)).label_studio
    assert moved.url == served.url
    again = Browser(proxy)
    again.http.cookies = browser.http.cookies  # the same host
    assert again.open(f"{proxy.url}/projects/").url.path == "/rank/projects/"
    again.rank_next(proxy, project)
    server = LabelStudio(moved.url, moved.token, moved.public_url)
    assert answered_by(server, project) == [EMAIL, EMAIL]
    assert labelers.invite(home)[0].startswith(f"{proxy.url}/user/signup/?token=")
    assert Browser(proxy).log_in(proxy).url.path == "/rank/"
    assert sign_in(server, "direct@example.org").email == "direct@example.org"


def test_no_password_or_token_is_in_the_logs(home: Path, served: LabelStudioServer) -> None:
    """The link's token stands in the server's own log of requests, which only the owner reads."""
    server = LabelStudio(served.url, served.token)
    made_up = server.derived_secret("direct@example.org")
    (log,) = (home / "logs").iterdir()
    text = log.read_text()
    assert "/user/login/" in text
    for secret in (PASSWORD, served.token, made_up):
        assert secret not in text
    assert home.stat().st_mode & 0o077 == 0
