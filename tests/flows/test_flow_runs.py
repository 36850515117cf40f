"""What is done to runs from outside, on a real Prefect server; of rounds on a worker it is in
test_worker.py and test_faults_on_worker.py."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Scheduled

from flows import doctor_prefect, flow_runs, worker
from flows.servers import Servers


@pytest.fixture
def client(servers: Servers) -> Iterator[SyncPrefectClient]:
    with doctor_prefect.client(servers.prefect) as client:
        yield client


def deployed(client: SyncPrefectClient, name: str) -> UUID:
    """A deployment that no worker knows."""
    return client.create_deployment(client.create_flow_from_name(name), name)


def plan(client: SyncPrefectClient, deployment: UUID, in_minutes: int) -> UUID:
    """A run that is to begin then."""
    due: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(minutes=in_minutes))
    return client.create_flow_run_from_deployment(deployment, state=due).id


def runs_of(client: SyncPrefectClient, deployment: UUID) -> set[UUID]:
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    return {run.id for run in client.read_flow_runs(flow_run_filter=of_it)}


def test_overdue_runs_of_a_deployment_are_forgotten_and_no_others(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_runs, "_PAGE", 2)
    ours, other = deployed(client, "missed"), deployed(client, "not ours")
    for minutes in range(1, 6):
        plan(client, ours, -minutes)
    kept, others = {plan(client, ours, 5), plan(client, ours, 10)}, {plan(client, other, -5)}
    done = plan(client, ours, -30)
    client.set_flow_run_state(done, Completed(), force=True)
    assert flow_runs.forget_overdue(client, ours) == 5
    assert runs_of(client, ours) == kept | {done}
    assert runs_of(client, other) == others
    assert flow_runs.forget_overdue(client, ours) == 0


def test_a_new_worker_is_not_given_the_looks_that_were_missed(
    client: SyncPrefectClient, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = deployed(client, "missed looks")
    plan(client, watch, -600)
    ahead, begun_with = plan(client, watch, 5), []

    def begin(*_: Any) -> None:
        begun_with.append(runs_of(client, watch))
        raise InterruptedError

    monkeypatch.setattr(worker, "WATCH_DEPLOYMENT", "missed looks/missed looks")
    monkeypatch.setattr(worker, "_register", lambda *_: None)
    monkeypatch.setattr(worker, "_start", begin)
    with (
        temporary_settings({PREFECT_API_URL: servers.prefect.api_url}),
        pytest.raises(InterruptedError),
    ):
        worker.ensure(tmp_path / "home", tmp_path, {})
    assert begun_with == [{ahead}]
