"""A config file as YAML: its text → fields by name, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from labeling.errors import InputError


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's fields.

    Raises:
        InputError: there is no such file, or it is not YAML with fields; names the line.
    """
    try:
        content = path.read_bytes()
        given = yaml.load(content.decode(), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of a config file") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the path of a config file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML ({_problem(error)})") from None
    if not isinstance(given, dict):
        empty = "is empty: it " if given is None else ""
        raise InputError(f"{path} {empty}must hold fields such as `name: …` and `model: …`")
    return given


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what YAML forbids and PyYAML passes over: of two values of one key
    only the last would hold. Keys that are no text are no fields."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                problem = f"{name!r} is no field's name"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if name in seen:
                problem = f"'{name}' is here twice: keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _problem(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    return f"{problem}; indent with spaces" if "'\\t'" in problem else problem
