from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from flows.inputs import function_digest, pin, resolve_inputs
from flows.stages import Stage
from flows.store import Damage, Entry, Store, keyed, make_key
from labeling.config import UNKEYED
from labeling.errors import InputError
from reward.config import Compute

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TIMES = {"seconds": 1.0}


class Inner(BaseModel, frozen=True):
    rate: float = 0.1
    device: str = Field("auto", json_schema_extra=UNKEYED)


class Outer(BaseModel, frozen=True):
    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(),)
    named: dict[str, Inner] = {"a": Inner()}
    path: str = Field("here", json_schema_extra=UNKEYED)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make_entry(store: Store, key: str = "k1", text: str = "hello") -> Entry:
    partial = store.begin("stage", key)
    (partial / "policy").mkdir()
    (partial / "policy" / "weights").write_text(text)
    (partial / "rows.jsonl").write_text("{}\n")
    return store.finish("stage", key, {"metrics": {}}, {"seconds": 1.5})


def test_fields_that_change_nothing_are_left_out_at_any_depth() -> None:
    assert keyed(Outer()) == {
        "inner": {"rate": 0.1},
        "several": [{"rate": 0.1}],
        "named": {"a": {"rate": 0.1}},
    }


def test_the_key_follows_everything_that_can_change_a_result() -> None:
    same = {
        make_key("s", 1, Inner(), {"a": "x"}),
        make_key("s", 1, Inner(device="cuda"), {"a": "x"}),
    }
    others = {
        make_key("t", 1, Inner(), {"a": "x"}),
        make_key("s", 2, Inner(), {"a": "x"}),
        make_key("s", 1, Inner(rate=0.2), {"a": "x"}),
        make_key("s", 1, Inner(), {"a": "y"}),
        make_key("s", 1, Inner(), {"b": "x"}),
        make_key("s", 1, Inner(), {}),
    }
    assert len(same) == 1
    assert len(others) == 6
    assert not same & others


def test_an_entry_is_there_only_after_it_was_finished(store: Store) -> None:
    store.begin("stage", "k1")
    assert store.find("stage", "k1") is None
    made = make_entry(store)
    found = store.find("stage", "k1")
    assert isinstance(found, Entry)
    assert found.path == made.path
    assert found.seconds == 1.5
    assert not store.partial_path("stage", "k1").exists()


def test_an_entry_is_as_readable_as_the_umask_says(store: Store) -> None:
    before = os.umask(0o027)
    try:
        partial = store.begin("toy", "key")
        (partial / "deep").mkdir()
        for name in ("model.safetensors", "deep/other"):
            (partial / name).write_text("weights")
            (partial / name).chmod(0o600)
        entry = store.finish("toy", "key", {"metrics": {}}, TIMES)
    finally:
        os.umask(before)
    modes = {f.name: f.stat().st_mode & 0o777 for f in entry.path.rglob("*") if f.is_file()}
    assert set(modes.values()) == {0o640}, modes
    assert isinstance(store.find("toy", "key", verify=True), Entry)


def test_work_starts_from_nothing_unless_the_stage_can_go_on(store: Store) -> None:
    (store.begin("stage", "k1") / "checkpoint").write_text("step 7")
    assert (store.begin("stage", "k1", resumable=True) / "checkpoint").read_text() == "step 7"
    assert list(store.begin("stage", "k1").iterdir()) == []


def test_an_entry_under_a_strange_key_is_not_trusted(store: Store) -> None:
    made = make_entry(store)
    shutil.copytree(made.path, store.entry_path("stage", "k2"))
    assert isinstance(store.find("stage", "k2"), Damage)


def test_inside_an_entry_the_recorded_digest_is_that_of_the_same_content_outside(
    store: Store, tmp_path: Path
) -> None:
    entry = make_entry(store).path
    outside = tmp_path / "elsewhere"
    shutil.copytree(entry / "policy", outside)
    assert store.digest(entry / "policy") == store.digest(outside)
    assert store.digest(entry / "policy" / "weights") == store.digest(outside / "weights")
    assert store.digest(entry / "policy") != store.digest(entry)


def test_inside_an_entry_nothing_is_read_again(store: Store) -> None:
    entry = make_entry(store).path
    recorded = json.loads((entry / "manifest.json").read_text())
    recorded["outputs"]["rows.jsonl"]["sha256"] = "as recorded"
    (entry / "manifest.json").write_text(json.dumps(recorded))
    assert store.digest(entry / "rows.jsonl") == "as recorded"


def test_how_and_how_fast_an_entry_was_made_is_not_part_of_its_digest(store: Store) -> None:
    first = make_entry(store)
    partial = store.begin("stage", "k2")
    shutil.copytree(first.path / "policy", partial / "policy")
    shutil.copy(first.path / "rows.jsonl", partial)
    (partial / "timings.jsonl").write_text("7\n")
    second = store.finish("stage", "k2", {"metrics": {"loss": 2.0}}, {"seconds": 99.0})
    assert store.digest(first.path) == store.digest(second.path)


def test_a_whole_entry_as_input_is_known_by_its_manifest_too(store: Store) -> None:
    first = make_entry(store)
    digests = {store.entry_digest(first.path)}
    partial = store.begin("stage", "k2")
    shutil.copytree(first.path / "policy", partial / "policy")
    shutil.copy(first.path / "rows.jsonl", partial)
    digests.add(store.entry_digest(store.finish("stage", "k2", {"metrics": {}}, TIMES).path))
    partial = store.begin("stage", "k3")
    (partial / "rows.jsonl").write_text("{}")
    other = store.finish("stage", "k3", {"metrics": {"loss": 1.0}}, TIMES)
    digests.add(store.entry_digest(other.path))
    manifest = json.loads((other.path / "manifest.json").read_text())
    manifest["metrics"]["loss"] = 2.0
    (other.path / "manifest.json").write_text(json.dumps(manifest))
    digests.add(store.entry_digest(other.path))
    assert len(digests) == 4
    stage = Stage("report", "unused:unused", {"one": "entry"})
    _, known = resolve_inputs(stage, {"one": other.path}, store)
    assert known == {"one": store.entry_digest(other.path)}


def test_what_auto_means_for_precision_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**given: Any) -> str:
        return make_key("s", 1, Compute(**given), {})

    monkeypatch.setattr("shutil.which", lambda name: f"/somewhere/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert key() == key(device="cuda") != key(device="cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert key() == key(device="cpu") != key(device="cuda")
    assert key(dtype="float32", device="cpu") == key(dtype="float32", device="cuda")


def test_a_folders_digest_follows_names_and_contents(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    digests = set()
    for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
        for old in folder.iterdir():
            old.unlink()
        (folder / name).write_text(text)
        digests.add(store.digest(folder))
    assert len(digests) == 3


def test_a_users_function_is_known_by_its_files_content_and_its_name(tmp_path: Path) -> None:
    first, moved = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("def score(p, c): return [0.0] * len(c)\ndef other(p, c): ...\n")
    moved.write_text(first.read_text())
    before = function_digest(f"{first}:score")
    assert function_digest(f"{moved}:score") == before
    assert function_digest(f"{first}:other") != before
    first.write_text("def score(p, c): return [1.0] * len(c)\n")
    assert function_digest(f"{first}:score") != before
    assert function_digest("json.decoder:JSONDecoder")
    for missing in (f"{tmp_path / 'c.py'}:score", "no_such_module:score", "no.such:score"):
        with pytest.raises(InputError, match=r"does not exist|no module"):
            function_digest(missing)


def test_a_module_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taste").mkdir()
    (tmp_path / "taste" / "kind.py").write_text("def score(p, c): ...\n")
    assert function_digest("taste.kind:score") == function_digest("taste/kind.py:score")


def test_a_package_that_fails_on_import_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brokenpackage").mkdir()
    (tmp_path / "brokenpackage" / "__init__.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"brokenpackage\.rubric .*ZeroDivisionError"):
        function_digest("brokenpackage.rubric:score")


# --- names on the hub -----------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path.startswith(("/api/models/org/known", "/api/datasets/org/rows"))
        answer = json.dumps({"id": "org/known", "sha": COMMIT} if known else {"error": "no"})
        self.send_response(503 if "busy" in self.path else 200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A stand-in for the hub, on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield address
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_hub_name_becomes_that_of_a_commit() -> None:
    assert pin("org/known", "model") == f"org/known@{COMMIT}"
    assert pin("org/known@main", "model") == f"org/known@{COMMIT}"
    assert pin("org/rows", "dataset") == f"org/rows@{COMMIT}"


@pytest.mark.usefixtures("hub")
def test_an_unknown_hub_name_is_an_input_error_of_one_line() -> None:
    with pytest.raises(InputError, match="no model of that name") as caught:
        pin("org/unknown", "model")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_a_hub_in_trouble_is_no_missing_name(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="HTTP 503"):
        pin("org/busy", "model")
    reference = tmp_path / "cache" / "models--org--busy" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    assert pin("org/busy", "model") == f"org/busy@{COMMIT}"


def test_without_the_hub_a_commit_or_the_cache_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert pin(f"org/any@{COMMIT}", "model") == f"org/any@{COMMIT}"
    with pytest.raises(InputError, match="the hub cannot be reached"):
        pin("org/known", "model")
    reference = tmp_path / "models--org--known" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    assert pin("org/known", "model") == f"org/known@{COMMIT}"
