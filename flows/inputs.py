"""What a stage is given, and the digest by which its key knows it."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.stages import Kind, Stage
from flows.store import Store, file_digest
from labeling.errors import InputError
from labeling.hub import name_and_revision
from labeling.scoring import split_reference

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_inputs(
    stage: Stage, inputs: Mapping[str, Any], store: Store
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(given, digests)` by input name: what the stage's function gets, and what its key holds.

    Inputs that are None are left out: the function's own default holds.

    Raises:
        InputError: a file or function is missing, or a hub name cannot be resolved.
    """
    given: dict[str, Any] = {}
    digests: dict[str, Any] = {}
    for name, value in inputs.items():
        if value is not None:
            given[name], digests[name] = _resolve(stage, name, stage.inputs[name], value, store)
    return given, digests


def _resolve(stage: Stage, name: str, kind: Kind, value: Any, store: Store) -> tuple[Any, Any]:
    if kind == "value":
        return value, value
    if kind == "paths":
        found = [_resolve(stage, name, "path", item, store) for item in value]
        return [path for path, _ in found], [digest for _, digest in found]
    if kind == "functions":
        return dict(value), {k: function_digest(v) for k, v in sorted(value.items())}
    if kind == "function":
        return value, function_digest(value)
    path = Path(value)
    if path.exists():
        # Links stay as they are: caches keep files under names without an ending.
        path = path.absolute()
        return str(path), store.entry_digest(path) if kind == "entry" else store.digest(path)
    if kind in ("model", "dataset"):
        pinned = pin(str(value), kind)
        return pinned, pinned
    raise InputError(f"{stage.name}: {path} does not exist (input '{name}')")


def function_digest(reference: str) -> str:
    """Digest of a user's function: its file's content and its name.

    Raises:
        InputError: there is no such file or module.
    """
    place, name = split_reference(reference)
    file = Path(place) if place.endswith(".py") else _module_file(place)
    if not file.is_file():
        raise InputError(f"{place} does not exist; it should hold the function '{name}'")
    return hashlib.sha256(f"{file_digest(file)}:{name}".encode()).hexdigest()


def _module_file(module: str) -> Path:
    # The child looks into the current folder first; the console script, whose search path begins
    # with its own folder, does not look there at all.
    here = Path.cwd() / module.replace(".", "/")
    for file in (here / "__init__.py", here.with_name(f"{here.name}.py")):
        if file.is_file():
            return file
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # it imports the packages above, and these may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"there is no module {module} that can be imported ({reason})") from error
    if spec is None or spec.origin is None:
        raise InputError(f"there is no module {module}; a function's place is a .py file or module")
    return Path(spec.origin)


def pin(reference: str, kind: str) -> str:
    """A hub name, with or without `@revision`, as `name@commit`.

    Asks the hub; when it does not answer, the revision that the local cache last saw is taken.

    Raises:
        InputError: the name is unknown, or the hub cannot be reached and nothing is cached.
        ConnectionError: the hub is overloaded or fails, and nothing is cached; try again later.
    """
    name, revision = name_and_revision(reference)
    if revision and _COMMIT.fullmatch(revision):
        return reference
    import huggingface_hub  # noqa: PLC0415 - only hub names need it
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    api = huggingface_hub.HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    try:
        return f"{name}@{ask(name, revision=revision, timeout=20).sha}"
    except Exception as error:  # transport errors come from several libraries
        trouble, status = error, None
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
    if status is not None and status != 429 and status < 500:
        raise InputError(
            f"'{reference}' is no file or folder here, and the hub has no {kind} of that name "
            f"that you may read (HTTP {status})"
        ) from trouble
    commit = _cached_commit(name, revision or "main", kind)
    if commit is not None:
        logger.warning("the hub does not answer; %s is taken from the cache", reference)
        return f"{name}@{commit}"
    if status is not None:
        raise ConnectionError(f"the hub answers HTTP {status} for '{reference}'") from trouble
    raise InputError(
        f"'{reference}' is no file or folder here, and the hub cannot be reached "
        f"({type(trouble).__name__}); give a local path, or go online"
    ) from trouble


def _cached_commit(name: str, revision: str, kind: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415

    reference = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None
