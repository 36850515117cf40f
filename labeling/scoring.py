"""A user's function: `score(prompts, completions) -> list of floats`, for judging, as a reward, or
as a simulated labeler. One form everywhere, checked at every call."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from labeling.errors import InputError


@dataclass(frozen=True)
class ScoreFunction:
    """A loaded user's function. `reference` is how the user named it."""

    reference: str
    function: Callable[[list[str], list[str]], Sequence[float]]

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """Score `completions[i]` as an answer to `prompts[i]`.

        Raises:
            InputError: the function raised, or did not return one finite number for each
                completion.
        """
        try:
            answer = self.function(list(prompts), list(completions))
            scores = list(answer) if isinstance(answer, Iterable) else None
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{self.reference} raised {_told(error, self.reference)}; it was called with "
                f"{len(completions)} completions: mend it and run again"
            ) from error
        if scores is None:
            raise InputError(
                f"{self.reference} returned {_short(answer)}; it must return a list with one "
                "finite number for each completion"
            )
        if len(scores) != len(completions):
            raise InputError(
                f"{self.reference} returned {len(scores)} scores for {len(completions)} "
                "completions; it must return one for each"
            )
        for index, score in enumerate(scores):
            try:
                finite = math.isfinite(score)
            except (TypeError, ValueError, OverflowError):
                finite = False
            if not finite:
                raise InputError(
                    f"{self.reference} returned {_short(score)} for completion {index}; "
                    "each score must be a finite number"
                )
        return [float(score) for score in scores]


def split_reference(reference: str) -> tuple[str, str]:
    """`"rubric.py:score"` → `("rubric.py", "score")`.

    Raises:
        InputError: the reference is not of the form `module_or_file:function`.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise InputError(
            f"'{reference}' does not name a function; write module_or_file:function, "
            "e.g. rubric.py:score"
        )
    return place, name


def load_score_function(reference: str) -> ScoreFunction:
    """Import the function that `reference` names.

    Raises:
        InputError: there is no such file, module or function, it cannot be called with prompts
            and completions, or importing it fails.
    """
    place, name = split_reference(reference)
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{place} has no function '{name}' (named by '{reference}')")
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{reference} is async; a score function must be a plain `def`")
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise InputError(
            f"{reference} cannot be called as {name}(prompts, completions): {error}"
        ) from None
    except ValueError:  # some that are written in C do not tell
        pass
    return ScoreFunction(reference, function)


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {name}: {_told(error, name)}") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path} does not exist; it should hold a score function")
    name = f"rankloop_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the user's file look themselves up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {path}: {_told(error, str(path))}") from error
    return module


def _told(error: BaseException, place: str) -> str:
    """`ValueError: no luck (rubric.py, line 7)`: kind, first line, and where in the user's file."""
    first = (str(error).splitlines() or [""])[0]
    kind = type(error).__name__
    said = f"{kind}: {_cut(first)}" if first else kind
    frames = [f for f in traceback.extract_tb(error.__traceback__) if place.startswith(f.filename)]
    if isinstance(error, SyntaxError) or not frames:  # a syntax error tells its place itself
        return said
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


def _short(value: object) -> str:
    return _cut(" ".join(repr(value).split()))


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"
