"""A config file and flags → RoundConfig, with every complaint in one line.

A YAML file gives the sections; `--section.field value` overrides. Relative paths count from the
config's folder, those of a flag from the current folder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError

from flows.config import RoundConfig
from flows.config_file import read_yaml
from flows.plan import needed_steps
from labeling.errors import InputError
from labeling.instructions import is_path, read_instructions
from labeling.scoring import split_reference

# They name user functions, whose paths would have to be found once more.
_SAME_IN_ALL_ROUNDS = ("simulated", "reward_function")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_FILE_ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".csv", ".txt", ".yaml", ".yml", ".py")


def load_config(path: Path, flags: Sequence[str] = ()) -> RoundConfig:
    """The config of the file, overridden by flags such as `--ppo.kl_coef 0.1` or `--seed 7`.

    Another seed than the file's is another run: its name gets `-seed-<seed>`, unless `--name`
    gives one.

    Raises:
        InputError: the file or a flag is wrong; says which, and what is allowed.
    """
    given = read_yaml(path)
    origin = _Origin(path, _named_flags(flags))
    config = _settings(path, flags, origin)
    if "name" not in origin.flags and config.seed != given.get("seed", 0):
        name = f"{config.name}-seed-{config.seed}"
        if len(name) > 64:
            raise InputError(f"'{name}' is too long for a run's name: give a shorter --name")
        config = config.model_copy(update={"name": name})
    try:
        needed_steps(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _check_changes(config, path)
    return _with_absolute_paths(config, origin)


def _check_changes(config: RoundConfig, path: Path) -> None:
    for section, changed in config.later_rounds.changes.items():
        for name in changed:
            if name in _SAME_IN_ALL_ROUNDS:
                raise InputError(
                    f"{path}: later_rounds.changes.{section}.{name}: is the same in all rounds; "
                    f"set it in '{section}'"
                )
    try:
        config.for_round(1)
    except ValidationError as error:
        origin = _Origin(path, frozenset(), "later_rounds.changes: ")
        raise InputError(_first_complaint(error, origin)) from None


@dataclass(frozen=True)
class _Origin:
    """Where a field's value came from: a flag if there is one for it, else the file."""

    path: Path
    flags: frozenset[str]
    section: str = ""

    def flagged(self, field: str) -> str | None:
        parts = field.split(".")
        above = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((f"--{name}" for name in above if name in self.flags), None)

    def name(self, field: str) -> str:
        return self.flagged(field) or f"{self.path}: {self.section}{field}"

    def folder(self, field: str) -> Path:
        return Path.cwd() if self.flagged(field) else self.path.resolve().parent


def _named_flags(flags: Sequence[str]) -> frozenset[str]:
    """Names of the fields that flags set; every one must exist, in full."""
    allowed = dict(fields())
    named = set()
    for flag in flags:
        if not flag.startswith("--"):
            continue
        name = flag[2:].split("=", 1)[0]
        if name not in allowed:
            raise InputError(f"there is no field --{name}{_closest(name, list(allowed), '--')}")
        named.add(name)
    return frozenset(named)


def fields(
    model: type[BaseModel] = RoundConfig, above: str = "", items: bool = False
) -> Iterator[tuple[str, FieldInfo]]:
    """Every field by its dotted name, sections included; with `items` also those of a list's
    items, which no flag can set."""
    for name, info in model.model_fields.items():
        yield f"{above}{name}", info
        is_list = get_origin(info.annotation) in (list, tuple)
        for kind in (info.annotation, *get_args(info.annotation)):
            section = isinstance(kind, type) and issubclass(kind, BaseModel)
            if section and (items or not is_list):
                yield from fields(kind, f"{above}{name}.", items)


def _settings(path: Path, flags: Sequence[str], origin: _Origin) -> RoundConfig:
    class Settings(BaseSettings, RoundConfig):
        model_config = SettingsConfigDict(
            frozen=True, extra="forbid", yaml_file=path, cli_exit_on_error=False
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            *_: Any,
            **__: Any,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # Not the environment: it has a NAME and a SEED of its own.
            return init_settings, YamlConfigSettingsSource(settings_cls)

    try:
        settings = Settings(_cli_parse_args=list(flags))
    except SettingsError as error:
        raise InputError(_flag_complaint(str(error))) from None
    except ValidationError as error:
        raise InputError(_first_complaint(error, origin)) from None
    return RoundConfig.model_validate(settings.model_dump())


def _flag_complaint(message: str) -> str:
    """argparse's and pydantic's words for a flag that cannot be taken apart, in ours."""
    message = message.removeprefix("error parsing CLI: ").removeprefix("argument ")
    if found := re.fullmatch(r"(--[\w.]+): expected one argument", message):
        flag = found[1]
        return f"{flag} has no value; write `{flag} VALUE`"
    if found := re.match(r'error parsing value for field "(\w+)"', message):
        return f"--{found[1]}: not JSON; set its fields one by one, as --{found[1]}.field VALUE"
    if found := re.fullmatch(r"unrecognized arguments: (.+)", message):
        return (
            f"unrecognized arguments: {found[1]}; fields are set as --field VALUE or "
            "--section.field VALUE"
        )
    return message


def _first_complaint(error: ValidationError, origin: _Origin) -> str:
    # A misspelt field often makes another one missing; and a field that all sections share fails
    # in each of them: name the cause, and the place where it was written.
    worst = min(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", len(e["loc"])))
    place = [str(part) for part in worst["loc"]]
    field = ".".join(place)
    if worst["type"] == "extra_forbidden":
        parent = ".".join(part for part in place[:-1] if not part.isdigit())
        siblings = [n for n, _ in fields(items=True) if n.rpartition(".")[0] == parent]
        names = [n.rpartition(".")[2] for n in siblings]
        elsewhere = [n for n, _ in fields(items=True) if n.endswith(f".{place[-1]}")]
        if elsewhere and not difflib.get_close_matches(place[-1], names, n=1, cutoff=0.5):
            names = elsewhere[:1]  # its name is right, its section is wrong or missing
        section = f" in '{'.'.join(place[:-1])}'" if place[:-1] else ""
        return (
            f"{origin.path}: {origin.section}there is no field '{place[-1]}'{section}"
            f"{_closest(place[-1], names)}"
        )
    info = dict(fields(items=True)).get(re.sub(r"\.\d+", "", field))
    if worst["type"] == "missing":
        meaning = ((info and info.description) or "").split(". ")[0].rstrip(".")
        return f"{origin.path}: '{field}' is missing; add it ({meaning})"
    value = "nothing" if worst["input"] is None else repr(worst["input"])
    value = value if len(value) < 80 else value[:77] + "…"
    return f"{origin.name(field)}: {_allowed(worst, field)}, not {value}"


def _allowed(error: ErrorDetails, field: str) -> str:
    """What the field takes, in words of people who know YAML and no Python."""
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a section with fields of its own, as in `{field}: {{field: value}}`"
    if error["type"] == "tuple_type":
        return f"must be a list, as in `{field}: [{{field: value}}]`"
    if error["type"] == "string_pattern_mismatch":
        return (
            "must be at most 64 lower-case letters, digits, '.', '_' and '-', the first of them a "
            "letter or a digit"
        )
    message = error["msg"].removeprefix("Value error, ").split(", unable to parse")[0]
    return message[:1].lower() + message[1:]


def _closest(name: str, allowed: Sequence[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    if not found:  # the field's name may be right and only its section wrong or missing
        found = [a for a in allowed if a.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if found:
        return f"; did you mean {prefix}{found[0]}?"
    if len(allowed) > 30:
        return "; `rankloop run --fields` lists all that there are"
    return f"; there are {', '.join(allowed)}"


# --- paths ---------------------------------------------------------------------------------------


def _with_absolute_paths(config: RoundConfig, origin: _Origin) -> RoundConfig:
    """Files, folders and user functions as absolute paths, so that a config means the same from
    everywhere."""
    values = config.model_dump()

    def source(section: dict[str, Any] | None, name: str, field: str) -> None:
        if section and section[name] is not None:
            section[name] = _source(section[name], field, origin)

    def function(reference: str | None, field: str) -> str | None:
        return None if reference is None else _function(reference, field, origin)

    source(values, "model", "model")
    if config.revision and Path(values["model"]).exists():
        where = origin.name("revision")
        raise InputError(f"{where}: only for a model on the hub; {values['model']} is a folder")
    source(values["prompts"], "path", "prompts.path")
    source(values["prompts"], "evaluation_path", "prompts.evaluation_path")
    source(values["sft"], "data", "sft.data")
    source(values["preferences"], "data", "preferences.data")
    values["labeling"]["instructions"] = _instructions(
        values["labeling"]["instructions"], "labeling.instructions", origin
    )
    for labeler in values["labeling"]["simulated"]:
        labeler["score"] = function(labeler["score"], "labeling.simulated.score")
    ppo, evaluation = values["ppo"], values["evaluation"]
    ppo["reward_function"] = function(ppo["reward_function"], "ppo.reward_function")
    evaluation["judge"] = function(evaluation["judge"], "evaluation.judge")
    evaluation["guards"] = {
        name: function(reference, f"evaluation.guards.{name}")
        for name, reference in evaluation["guards"].items()
    }
    return RoundConfig.model_validate(values)


def _source(value: str, field: str, origin: _Origin) -> str:
    """A path that exists, made absolute, or what looks like a name on the hub, as it is."""
    if not value.strip():
        raise InputError(f"{origin.name(field)}: is empty; give a path, or a name on the hub")
    path = origin.folder(field) / Path(value).expanduser()
    if path.exists():
        return str(path.absolute())  # not resolved: a link's target may have lost the ending
    if _HUB_NAME.fullmatch(value) and not value.endswith(_FILE_ENDINGS):
        return value
    raise InputError(f"{origin.name(field)}: {path} does not exist; correct the path")


def _instructions(value: str | None, field: str, origin: _Origin) -> str | None:
    """A file's text in place of its path: a corrected file is then a changed config."""
    if value is None or not is_path(value):
        return value
    try:
        return read_instructions(origin.folder(field) / Path(value.strip()).expanduser())
    except InputError as error:
        raise InputError(f"{origin.name(field)}: {error}") from None


def _function(reference: str, field: str, origin: _Origin) -> str:
    """`file.py:function` with an absolute path inside the project, or `module:function`."""
    try:
        place, name = split_reference(reference)
    except InputError as error:
        raise InputError(f"{origin.name(field)}: {error}") from None
    folder = origin.folder(field)
    if not place.endswith(".py"):
        # A module of the project is named as a file: Python does not search these folders.
        for root in (folder, Path.cwd(), origin.path.resolve().parent):
            beside = root / (place.replace(".", "/") + ".py")
            if beside.is_file():
                return f"{beside.absolute()}:{name}"
        return reference
    path = (folder / Path(place).expanduser()).absolute()
    if not path.is_file():
        raise InputError(f"{origin.name(field)}: {path} does not exist; correct the path")
    project = (origin.path.resolve().parent, Path.cwd().resolve())
    if not any(path.resolve().is_relative_to(root) for root in project):
        raise InputError(
            f"{origin.name(field)}: {path} is outside the project; a function's file must be in "
            f"the config's folder {project[0]} or in the current folder"
        )
    return f"{path}:{name}"
