"""round.json: what a round is at, what it is made of and what came of it. Written by the process
that is at work on the round."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from flows import history, lineage, round_folder
from flows.config import RoundConfig
from flows.lineage import Lineage, used_data
from flows.runner import StageResult
from flows.store import MANIFEST, write_json
from labeling.errors import InputError
from labeling.tally import Tally

logger = logging.getLogger(__name__)


class Taken(InputError):
    """The round is another run's, which waits, or another process is at work on it."""


class AtWork(Taken):
    """Another process is at work on the round."""


class RoundRecord:
    """One round's folder and its round.json, which is rewritten whole after every step. `lineage`,
    from when the record is entered, is what the round starts from.

    `document` is what round.json holds: name, round, status (`running`, `waiting` for people
    without a process, `complete`, `failed`, `interrupted`), stopped_after, error, `step` (the one
    at work, or at which it ended), `waiting` (while the gate is closed: labeling/tally.py's Tally,
    and the page to rank at), config, seed, versions, commit, times, addresses, `stages.<name>` with
    seconds, reused, key, path and commit, and the metrics of the main ones under `prompts`,
    `labels`, `reward`, `ppo` and `evaluation`; `data`, digests of all that it was made from;
    `started_from`, the policy that was promoted when it began (none: the initial one), and
    `lineage`, the rounds before it; `promotion`, what the gate said; `flow_runs`, the ids of the
    Prefect runs that were at work on it, the newest last.
    `noted`: keys of the steps that the same Prefect run made when it was at work before.
    `killed` holds the dashboard's addresses of earlier runs of this round that had no time to write
    down how they ended, until the dashboard is told.
    """

    def __init__(
        self,
        runs: Path,
        config: RoundConfig,
        number: int = 0,
        flow_run: str = "",
        patience_s: float = 1.0,
        waits: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`flow_run`: the id of the Prefect run that is at work; `patience_s`: how long it waits
        for another to leave the round (`rankloop status` holds it for a moment); `waits`: whether
        another run goes on with the round by itself, to which it is left."""
        self.run = runs.resolve() / config.name
        self.lineage = Lineage(round=number)
        self.is_suspended = False
        self.noted: dict[str, str] = {}
        self._flow_run, self._waits = flow_run, waits
        self._config, self._patience_s = config, patience_s
        self._manifests: dict[str, dict[str, Any]] = {}
        self.folder = self.place(runs, config, number)
        self._look_back()  # before there is a folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / round_folder.LOCK)
        self.document: dict[str, Any] = {
            "name": config.name,
            "round": number,
            "status": "running",
            "stopped_after": None,
            "error": None,
            "step": None,
            "waiting": None,
            "killed": [],
            "flow_runs": [flow_run] if flow_run else [],
            "noted": {},
            "seed": config.seed,
            "started": _now(),
            "finished": None,
            "addresses": {},
            "labels": {},
            "stages": {},
            "versions": {},
            "commit": None,
            "started_from": None,
            "lineage": [],
            "config": config.model_dump(mode="json"),
        }

    @staticmethod
    def place(runs: Path, config: RoundConfig, number: int = 0) -> Path:
        return runs.resolve() / config.name / "rounds" / f"{number:03d}"

    @property
    def path(self) -> Path:
        return self.folder / "round.json"

    @property
    def labels_path(self) -> Path:
        return self.folder / "labels.parquet"

    def _earlier(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.path.read_text()))
        except (OSError, ValueError):
            return {}

    def _carry_on(self) -> None:
        """Keep what an earlier run of this round left that still holds.

        With the same config that is all it measured, so that a re-run that is stopped blanks
        nothing. With another config it is the labels alone: nothing that the old config made may
        stand beside the new one.
        """
        earlier = self._earlier()
        killed = earlier.get("killed", [])
        if earlier.get("status") == "running":  # and we hold the lock
            killed = [*killed, earlier.get("addresses", {}).get("dashboard")]
        # A run that was begun again is at work itself.
        others = [a for a in killed if a and not (self._flow_run and a.endswith(self._flow_run))]
        self.document["killed"] = list(dict.fromkeys(others))
        before = earlier.get("flow_runs", [])
        runs = [*before, *self.document["flow_runs"]]
        self.document["flow_runs"] = list(dict.fromkeys(reversed(runs)))[::-1]
        labels = earlier.get("labels", {})
        if "given" not in labels:  # how labels were frozen is known only once
            self.document["labels"] = labels
        # A Prefect run keeps its parameters, whatever fields an upgrade adds to them meanwhile.
        if before[-1:] == [self._flow_run] or _is_same(earlier.get("config"), self._config):
            self.document |= {k: v for k, v in earlier.items() if k not in self.document}
            self.document["addresses"] = earlier.get("addresses", {})
            if self._flow_run in before:
                steps = earlier.get("stages", {}).items()
                made = {name: step["key"] for name, step in steps if "key" in step}
                self.noted = earlier.get("noted", {}) | made
                self.document["noted"] = self.noted
            return
        round_folder.clear(self.folder)

    def __enter__(self) -> RoundRecord:
        try:
            self._lock.acquire(timeout=self._patience_s)
        except Timeout:
            raise AtWork(
                f"another process is at work on {self.folder}: wait for it, or give this run "
                "another name with --name"
            ) from None
        try:
            self._leave_to_others()
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _leave_to_others(self) -> None:
        runs = self._earlier().get("flow_runs", [])
        if runs and runs[-1] != self._flow_run and self._waits(runs[-1]):
            raise Taken(
                f"round {self.lineage.round} of {self._config.name} is another run's, which waits "
                f"and goes on by itself (Prefect's run {runs[-1]}): cancel that one on the "
                "dashboard to begin here, or give this run another name with --name"
            )

    def _begin(self) -> None:
        self._carry_on()
        begun = lineage.begin(self.run, self.lineage.round, history.read(self.run).incumbent)
        noted = begun.model_dump(mode="json")
        self.document |= {"started_from": noted["incumbent"], "lineage": noted["earlier"]}
        self.lineage = begun
        self.save()

    def _look_back(self) -> None:
        """Raises InputError when the round cannot begin."""
        lineage.look(self.run, self.lineage.round, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        status = "interrupted" if interrupted else "failed" if kind else "complete"
        if self.is_suspended:
            status, interrupted = "waiting", True
        message = None
        if error is not None and not interrupted:
            message = (str(error) or type(error).__name__).splitlines()[0]
        self.document |= {"status": status, "error": message, "finished": _now()}
        if status == "complete":
            self.document["stopped_after"] = self.document["config"]["stop_after"]
        try:
            self.save()
        except OSError as trouble:  # a full disk: what came before is the cause to tell
            if error is None:
                raise
            logger.warning("%s is not up to date (%s)", self.path, trouble.strerror)
        finally:
            self._lock.release()

    def save(self) -> None:
        write_json(self.path, self.document, is_private=True)  # it names the labelers

    def begin(self, step: str) -> None:
        """Note the step that is at work now."""
        self.document |= {"step": step, "waiting": None}
        self.save()

    def wait(self, stands: Tally, page: str) -> None:
        """Note what the gate waits for: `rankloop status` reads it."""
        waiting = stands.document() | {"page": page}
        if waiting != self.document["waiting"]:
            self.document["waiting"] = waiting
            self.save()

    def add(self, result: StageResult, line: str) -> None:
        """Note a stage's result, with one line for people, and link its output."""
        manifest = json.loads((result.path / MANIFEST).read_text())
        self.document["stages"][result.stage] = {
            "seconds": round(result.seconds, 3),
            "made_seconds": round(result.made_seconds, 3),
            "reused": result.reused,
            "result": line,
            "where": str(self._show(result)),
            "key": result.key,
            "path": str(result.path),
            "device": manifest["device"],
            "commit": manifest["commit"],
        }
        self._manifests[result.stage] = manifest
        self.document["data"] = self.document.get("data", {}) | {
            what: digest for what, _, digest in used_data(self._config, self._manifests)
        }
        metrics = result.metrics
        if result.stage == "preferences":
            data = self.document["config"]["preferences"]["data"]
            self.document["labels"] = {"given": data, **metrics}
        elif result.stage == "pairs":
            self.document["labels"] |= {k: v for k, v in metrics.items() if k != "rankings"}
        elif result.stage == "evaluate":
            self.document["evaluation"] = metrics
        else:
            self.document[result.stage] = metrics
        self.document["versions"] |= manifest["libraries"]
        self.document["commit"] = manifest["commit"]
        self.save()

    def _show(self, result: StageResult) -> Path:
        shown = round_folder.show(self.folder, result)
        if result.stage == "report":
            self.document["addresses"]["report"] = shown.as_uri()
        return shown

    def add_sync(self, name: str, seconds: float, reused: bool, line: str, where: str) -> None:
        self.document["stages"][name] = {
            "seconds": round(seconds, 3),
            "reused": reused,
            "result": line,
            "where": where,
        }
        self.save()


def _is_same(earlier: Any, config: RoundConfig) -> bool:
    """Whether the config that round.json holds is this one. Fields that it was written without have
    their defaults, and where the round ends changes nothing that was made before."""
    try:
        known = RoundConfig.model_validate(earlier)
    except ValidationError:
        return False
    return known.model_copy(update={"stop_after": config.stop_after}) == config


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
