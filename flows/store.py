"""The content-keyed store: the same stage on the same inputs is made once.

An entry is a folder `.rankloop/store/<stage>/<key>/` with the stage's files and `manifest.json`.
The key is a digest of everything that can change those files. Work happens in `<key>.partial`
under `<key>.lock`; the last act is one rename, so an entry is either whole or not there. Nothing
here knows Prefect, or what a stage does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel

from labeling.durable import put_in_place, sync

MANIFEST = "manifest.json"
TIMINGS = "timings.json"
# These describe how the files came to be. They are none of them, or no two runs would compare; a
# stage may leave timings of its own beside the store's.
_NOT_OUTPUTS = frozenset({MANIFEST, TIMINGS, "timings.jsonl", "tensorboard"})


@dataclass(frozen=True)
class Entry:
    """A whole entry of the store. `manifest` is its parsed `manifest.json`."""

    path: Path
    manifest: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest["metrics"]

    @property
    def seconds(self) -> float:
        """How long the stage worked when the entry was made."""
        return float(json.loads((self.path / TIMINGS).read_text())["seconds"])


@dataclass(frozen=True)
class Damage:
    """An entry that cannot be trusted; `reason` is for people."""

    reason: str


class Store:
    """The entries below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def entry_path(self, stage: str, key: str) -> Path:
        return self.folder / stage / key

    def partial_path(self, stage: str, key: str) -> Path:
        """Where the work happens; a stable name, so that checkpoints are found after a crash."""
        return self.folder / stage / f"{key}.partial"

    def lock_path(self, stage: str, key: str) -> Path:
        return self.folder / stage / f"{key}.lock"

    def _discarded_path(self, stage: str, key: str) -> Path:
        return self.folder / stage / f"{key}.damaged"

    def find(self, stage: str, key: str, verify: bool = False) -> Entry | Damage | None:
        """The entry if it can be trusted, what is wrong with it, or None when there is none.

        Each file must be there with its size. A file whose modification time moved is digested
        again; `verify` digests every file.
        """
        path = self.entry_path(stage, key)
        if not path.exists():
            return None
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            found = manifest["stage"], manifest["key"]
            outputs: dict[str, dict[str, Any]] = manifest["outputs"]
            float(json.loads((path / TIMINGS).read_text())["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Damage(f"{MANIFEST} or {TIMINGS} cannot be read ({type(error).__name__})")
        if found != (stage, key):
            return Damage(f"{MANIFEST} is that of {found[0]} {found[1]}")
        for name, expected in outputs.items():
            if reason := _what_is_wrong(path / name, expected, verify):
                return Damage(f"{name} {reason}")
        return Entry(path, manifest)

    def begin(self, stage: str, key: str, resumable: bool = False) -> Path:
        """The folder to work in, empty unless the stage can go on from what a crash left.
        To be called with the lock held."""
        partial = self.partial_path(stage, key)
        shutil.rmtree(self._discarded_path(stage, key), ignore_errors=True)
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        return partial

    def finish(
        self, stage: str, key: str, manifest: Mapping[str, Any], timings: Mapping[str, Any]
    ) -> Entry:
        """Record the digests of what lies in the partial folder and make it the entry.

        Replaces a damaged entry. To be called with the lock held.
        """
        partial = self.partial_path(stage, key)
        _open_to_readers(partial)
        complete = {"stage": stage, "key": key, **manifest, "outputs": outputs_of(partial)}
        (partial / TIMINGS).write_text(json.dumps(finite(timings), indent=2))
        (partial / MANIFEST).write_text(json.dumps(finite(complete), indent=2))
        for inside in partial.rglob("*"):
            if not inside.is_symlink():
                sync(inside)
        path = self.entry_path(stage, key)
        if path.exists():
            discarded = self._discarded_path(stage, key)
            shutil.rmtree(discarded, ignore_errors=True)
            os.replace(path, discarded)
            shutil.rmtree(discarded, ignore_errors=True)
        put_in_place(partial, path)
        return Entry(path, complete)

    def discard(self, entry: Path) -> None:
        """Put a damaged entry aside, so that the next run makes it anew."""
        discarded = self._discarded_path(entry.parent.name, entry.name)
        with FileLock(self.lock_path(entry.parent.name, entry.name)):
            shutil.rmtree(discarded, ignore_errors=True)
            os.replace(entry, discarded)

    def digest(self, path: Path) -> str:
        """Digest of a file's or a folder's content.

        Inside an entry the recorded digests are taken, nothing is read again. Elsewhere a file's
        is the SHA-256 of its bytes, and a folder's that of its sorted relative paths and digests;
        so moving or copying it changes nothing.

        Raises:
            FileNotFoundError: there is nothing at `path`.
        """
        path = path.resolve()
        recorded = self._recorded(path)
        if recorded is not None:
            return recorded
        if path.is_file():
            return file_digest(path)
        if not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist")
        return _digest_of(
            {str(f.relative_to(path)): file_digest(f) for f in path.rglob("*") if f.is_file()}
        )

    def entry_digest(self, path: Path) -> str:
        """Digest of a whole entry, with what its manifest says of how it came to be: for a stage
        that reads the manifest too.

        Raises:
            FileNotFoundError: there is no whole entry at `path`.
        """
        path = path.resolve()
        entry = self.find(path.parent.name, path.name)
        if not isinstance(entry, Entry) or entry.path != path:
            raise FileNotFoundError(f"{path} is no whole entry of the store")
        manifest = entry.manifest
        outputs = {name: o["sha256"] for name, o in manifest["outputs"].items()}
        known = [manifest["key"], manifest.get("version"), manifest["metrics"], outputs]
        return digest_of_json(known)

    def _recorded(self, path: Path) -> str | None:
        if not path.is_relative_to(self.folder):
            return None
        parts = path.relative_to(self.folder).parts
        if len(parts) < 2:
            return None
        stage, key, *inside = parts
        entry = self.find(stage, key)
        if not isinstance(entry, Entry):
            return None
        outputs = {name: o["sha256"] for name, o in entry.manifest["outputs"].items()}
        below = "/".join(inside)
        if below in outputs:
            return str(outputs[below])
        prefix = f"{below}/" if below else ""
        chosen = {n.removeprefix(prefix): d for n, d in outputs.items() if n.startswith(prefix)}
        return _digest_of(chosen) if chosen else None


def make_key(stage: str, version: int, config: BaseModel, inputs: Mapping[str, Any]) -> str:
    """24 hex digits over all that can change a stage's files. `inputs` are digests by name."""
    known: dict[str, Any] = {"stage": stage, "version": version, "config": keyed(config)}
    if getattr(config, "dtype", None) == "auto" and hasattr(config, "device"):
        # The device itself changes nothing that matters, but the precision that goes with it does.
        known["dtype_of"] = kind_of_device(config.device)
    return digest_of_json(known | {"inputs": inputs})[:24]


def kind_of_device(device: str) -> str:
    """`cpu` or `cuda`: for `auto` a guess at what torch would take, without the seconds that its
    import costs. A machine with a GPU but a torch without CUDA is told with `device: cpu`."""
    if device != "auto":
        return device
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if driver and not hidden else "cpu"


def keyed(config: BaseModel) -> dict[str, Any]:
    """The config as JSON values, without fields marked `{"keyed": False}`, at any depth."""
    return _without_unkeyed(config, config.model_dump(mode="json"))


def _without_unkeyed(value: Any, dumped: Any) -> Any:
    if isinstance(value, BaseModel):
        return {
            name: _without_unkeyed(getattr(value, name), dumped[name])
            for name, info in type(value).model_fields.items()
            if not isinstance(info.json_schema_extra, dict)
            or info.json_schema_extra.get("keyed", True)
        }
    if isinstance(value, (list, tuple)):
        return [_without_unkeyed(v, d) for v, d in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        # JSON has text keys only; the order of both is the same.
        return {
            k: _without_unkeyed(v, d)
            for (k, d), v in zip(dumped.items(), value.values(), strict=True)
        }
    return dumped


def outputs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest, size in bytes and modification time in ns of each file below `folder`."""
    outputs = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name.split("/")[0] not in _NOT_OUTPUTS:
            stat = file.stat()
            outputs[name] = {
                "sha256": file_digest(file),
                "size": stat.st_size,
                "mtime_ns": stat.st_mtime_ns,
            }
    return outputs


def _open_to_readers(folder: Path) -> None:
    """Give every file the permissions that the umask asks for: safetensors writes its own for the
    owner alone, whatever that is, and an entry holds no secrets."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~umask)


def _what_is_wrong(file: Path, expected: Mapping[str, Any], verify: bool) -> str | None:
    if not file.is_file():
        return "is missing"
    found = file.stat()
    if found.st_size != expected["size"]:
        return f"has {found.st_size} bytes in place of {expected['size']}"
    if verify or found.st_mtime_ns != expected["mtime_ns"]:
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != expected["sha256"]:
                return "has another content"
    return None


_digests: dict[tuple[int, int, int, int], str] = {}


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Remembered within this process as long as nobody touched the file."""
    stat = path.stat()
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns)
    if identity not in _digests:
        with path.open("rb") as file:
            _digests[identity] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[identity]


def write_json(path: Path, value: Any, is_private: bool = False) -> None:
    """Write JSON so that `path` is either the whole new file or what it was before. For one writer
    at a time: the partial file's name is stable, so that a kill leaves nothing for ever.
    `is_private`: only the owner may read the file."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        if is_private:
            partial.touch()
            partial.chmod(0o600)
        partial.write_text(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")
        put_in_place(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """The value with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def _digest_of(digests: Mapping[str, str]) -> str:
    return digest_of_json(dict(sorted(digests.items())))


def digest_of_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
