from __future__ import annotations

import logging
import os
import secrets
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import embedded
from labeling import page
from labeling.accounts import (
    Account,
    _submit,
    accounts,
    ensure_account,
    invite_link,
    sign_in,
)
from labeling.errors import InputError
from labeling.label_studio import LabelStudio
from labeling.publishing import publish
from labeling.records import Candidates, Completion, Prompt, Ranking


@pytest.fixture
def email() -> str:
    return f"{uuid.uuid4().hex[:8]}@example.org"


@pytest.fixture
def personal(label_studio: LabelStudio) -> Iterator[LabelStudio]:
    """The server with a personal access token, its legacy tokens switched off meanwhile."""
    made = label_studio.client.tokens.create()
    with_token = LabelStudio(label_studio.url, str(made.token))
    settings = with_token.client.jwt_settings
    days = settings.get().api_token_ttl_days

    def allow_legacy(is_allowed: bool) -> None:
        settings.update(
            api_tokens_enabled=True,
            legacy_api_tokens_enabled=is_allowed,
            api_token_ttl_days=days,
        )

    allow_legacy(False)
    try:
        yield with_token
    finally:
        allow_legacy(True)


def answer_as(server: LabelStudio, email: str) -> dict[str, Any]:
    """The one annotation of a new project, made by this labeler."""
    project = server.ensure_project(f"accounts {uuid.uuid4().hex[:8]}", "Rank them.")
    publish(server, project, [Candidates(Prompt(text=email), (Completion("a"), Completion("b")))])
    (task,) = server.export(project)
    ranking = page.annotation_result(Ranking("", "", ((0,), (1,))), 2)
    sign_in(server, email).annotate(task["id"], ranking, lead_time_s=3.5)
    ((annotation,),) = [task["annotations"] for task in server.export(project)]
    return dict(annotation)


def test_a_labeler_answers_as_itself(label_studio: LabelStudio, email: str) -> None:
    annotation = answer_as(label_studio, email)
    assert annotation["completed_by"]["email"] == email
    assert annotation["lead_time"] == 3.5


def test_signing_in_again_finds_the_same_account(label_studio: LabelStudio, email: str) -> None:
    sign_in(label_studio, email.upper(), "Ann", "(simulated)")
    sign_in(label_studio, email, "Ann", "(simulated)")
    assert accounts(label_studio).count(Account(email, "Ann (simulated)")) == 1


def test_an_account_with_another_password_is_an_input_error(
    label_studio: LabelStudio, email: str
) -> None:
    label_studio.client.users.create(username=email, email=email)
    with pytest.raises(InputError, match="give the labeler another name") as error:
        sign_in(label_studio, email)
    assert email in str(error.value)
    assert "\n" not in str(error.value)


def test_the_invitation_signs_up_until_it_is_reset(label_studio: LabelStudio) -> None:
    link = invite_link(label_studio)
    assert link == invite_link(label_studio)
    assert link.startswith(f"{label_studio.url}/user/signup/?token=")
    assert sign_up(link) == 302
    new = invite_link(label_studio, reset=True)
    assert (new == link, invite_link(label_studio)) == (False, new)
    assert sign_up(link) == 403
    assert sign_up(new) == 302


def sign_up(link: str) -> int:
    """HTTP status of a person's sign-up through the link."""
    with httpx.Client(trust_env=False) as browser:
        browser.get(link)
        form = {
            "email": f"{uuid.uuid4().hex[:8]}@example.org",
            "password": secrets.token_urlsafe(12),
            "csrfmiddlewaretoken": browser.cookies["csrftoken"],
        }
        return browser.post(link, data=form).status_code


def test_the_invitation_begins_with_the_public_address(label_studio: LabelStudio) -> None:
    behind = LabelStudio(label_studio.url, label_studio._token, "https://rank.example.org/here/")
    assert invite_link(behind).startswith("https://rank.example.org/here/user/signup/?token=")
    assert behind.page(3) == "https://rank.example.org/here/projects/3"


def test_a_server_without_legacy_tokens_takes_labelers_too(
    personal: LabelStudio, label_studio: LabelStudio, email: str
) -> None:
    legacy = label_studio._token
    with pytest.raises(InputError, match="refuses the token"):
        LabelStudio(personal.url, legacy).check()
    assert "labeler@rankloop.local" in [account.email for account in accounts(personal)]
    assert invite_link(personal).startswith(personal.url)
    assert answer_as(personal, email)["completed_by"]["email"] == email


def test_a_server_that_is_away_is_a_connection_error(
    label_studio: LabelStudio, email: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_in = sign_in(label_studio, email)

    def refuse(*_: object, **__: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.Client, "request", refuse)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        signed_in.annotate(1, [])


def test_an_account_made_for_answers_logs_in_after_the_servers_own_command(
    label_studio: LabelStudio, servers_home: Path, email: str
) -> None:
    """As docs/labeling.md says: it can neither log in nor sign up without."""
    ensure_account(label_studio, email)
    password = secrets.token_urlsafe(12)

    def logs_in() -> bool:
        with httpx.Client(base_url=label_studio.url, timeout=60) as http:
            form = {"email": email, "password": password}
            return _submit(http, "/user/login/", form)

    assert not logs_in()
    subprocess.run(
        (
            str(embedded.label_studio_binary()),
            "reset_password",
            *("--data-dir", str(servers_home / "label-studio")),
            *("--username", email, "--password", password),
        ),
        env=os.environ | {"LATEST_VERSION_CHECK": "false", "COLLECT_ANALYTICS": "false"},
        check=True,
        capture_output=True,
    )
    assert logs_in()


def test_a_deleted_task_is_an_input_error(label_studio: LabelStudio, email: str) -> None:
    with pytest.raises(InputError, match="HTTP 404"):
        sign_in(label_studio, email).annotate(10**9, [])


def test_no_secret_of_a_labeler_is_logged_or_shown(
    label_studio: LabelStudio, email: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "labeling")
    signed_in = sign_in(label_studio, email)
    shown = repr(signed_in) + repr(label_studio) + caplog.text
    session = signed_in._http.headers["Cookie"]
    for secret in (label_studio._token, label_studio.derived_secret(email), session):
        assert secret not in shown
