"""A run's schedule on a real Prefect server; what it begins on a worker is in test_worker.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import submit
from flows.config import RoundConfig
from flows.servers import Servers
from labeling.config import Prompts

CONFIG = RoundConfig(name="desk", model="m", prompts=Prompts(path="p"))


@pytest.fixture
def client(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """Prefect with a deployment of our own in the place of the rounds'."""
    monkeypatch.setattr(submit, "ROUND_DEPLOYMENT", "scheduled/scheduled")
    with (
        temporary_settings({PREFECT_API_URL: servers.prefect.api_url}),
        get_client(sync_client=True) as client,
    ):
        made = client.create_deployment(client.create_flow_from_name("scheduled"), "scheduled")
        yield client
        client.delete_deployment(made)


def test_a_schedule_takes_the_place_of_the_earlier_one(client: SyncPrefectClient) -> None:
    submit.schedule(CONFIG, "0 6 * * 1", "Europe/Berlin")
    (first,) = submit._deployment(client).schedules
    client.update_deployment_schedule(submit._deployment(client).id, first.id, active=False)
    changed = CONFIG.model_copy(update={"seed": 7})
    submit.schedule(changed, "30 7 * * 2", "UTC")
    submit.schedule(CONFIG.model_copy(update={"name": "other"}), "0 0 1 * *", "UTC")
    assert submit.schedules() == {"desk": "30 7 * * 2 (UTC)", "other": "0 0 1 * * (UTC)"}
    (now,) = [s for s in submit._deployment(client).schedules if s.slug == "desk"]
    assert now.active
    assert now.parameters == submit._parameters(changed, None)
    assert submit.unschedule("desk")
    assert not submit.unschedule("desk")
    assert list(submit.schedules()) == ["other"]


def test_a_schedule_that_cannot_be_changed_stays_as_it_was(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: Any, **__: Any) -> None:
        raise httpx.ReadError("the server went away")

    submit.schedule(CONFIG, "0 6 * * 1", "UTC")
    for name in ("create_deployment_schedules", "update_deployment_schedule"):
        monkeypatch.setattr(SyncPrefectClient, name, break_off)
    with pytest.raises(httpx.ReadError):
        submit.schedule(CONFIG, "30 7 * * 2", "UTC")
    assert submit.schedules() == {"desk": "0 6 * * 1 (UTC)"}
