"""Every mistake in prompts is told by `rankloop run` before any server starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.config import Prompts
from labeling.errors import InputError
from labeling.prompts import prepare_prompts
from tests.flows.complaints import assert_says, complaint_of, make_project, rows


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["prompts.jsonl holds no prompts"]),
        ("\n\n", ["prompts.jsonl holds no prompts"]),
        (rows({"prompt": "a"}), ["1 distinct prompt", "at least 2", "add prompts"]),
        (rows({"prompt": "a"}, {"prompt": "a"}), ["1 distinct prompt"]),
        (rows({"prompt": "a"}) + "{prompt: b}\n", ["prompts.jsonl, line 2", "not JSON"]),
        (rows({"prompt": "a"}) + '{"prompt": "b', ["prompts.jsonl, line 2", "not JSON"]),
        (rows({"prompt": "a"}, "b"), ["line 2", "must be an object"]),
        (rows([{"prompt": "a"}]), ["line 1", "must be an object"]),
        (rows({"text": "a"}), ["line 1", "'prompt' is missing", "'text'", "prompts.column"]),
        (rows({"prompt": "a"}, {"prompt": 5}), ["line 2", "'prompt' is int 5", "a text"]),
        (rows({"prompt": None}), ["line 1", "'prompt' is null"]),
        (rows({"prompt": "a"}, {"prompt": " "}), ["line 2", "'prompt' is empty"]),
        (rows({"prompt": USER}), ["line 1", "list of messages"]),
        (rows({"prompt": [{"role": "user"}]}), ["line 1", "'role' and 'content'"]),
        (rows({"prompt": [USER, USER | {"role": "assistant"}]}), ["line 1", "the assistant's"]),
        (rows({"prompt": "a"}, {"prompt": [USER]}), ["1 prompts are conversations and 1 are"]),
        (
            rows({"prompt": [{"role": "user\ud800", "content": "a"}]}),
            ["line 1", r"\ud800", "half a character"],
        ),
        (rows({"prompt": "a"}, {"prompt": "\ud800"}), ["line 2", r"\ud800", "half a character"]),
        ('{"prompt": "a", "n": ' + "9" * 5000 + "}\n", ["line 1", "cannot be read"]),
        ('{"prompt": ' + "[" * 99999 + "]" * 99999 + "}\n", ["line 1", "cannot be read"]),
    ],
)  # fmt: skip
def test_a_mistake_in_prompts_names_file_and_line(
    content: str, expected: list[str], project: Path
) -> None:
    (project / "prompts.jsonl").write_text(content)
    assert_says(complaint_of(project, "run", "config.yaml"), expected)


def write_text(path: Path) -> None:
    path.write_text("prompt\nhello\n")


def write_column(name: str) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table({name: ["a", "b"]}), path)


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("p.jsonl", lambda path: path.write_bytes(b'{"prompt": "\xe9"}\n'), ["line 1: not UTF-8"]),
        ("p.parquet", write_text, ["p.parquet cannot be read as Parquet"]),
        ("p.parquet", lambda path: path.touch(), ["p.parquet cannot be read as Parquet"]),
        ("p.parquet", write_column("text"), ["row 1", "'prompt' is missing", "'text'"]),
        ("p.csv", write_text, ["p.csv", "only .jsonl and .parquet", "convert it"]),
        ("prompts", write_text, ["prompts", "only .jsonl and .parquet"]),
        ("folder", lambda path: path.mkdir(), ["folder is a folder"]),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(
    name: str, write: Callable[[Path], None], expected: list[str], project: Path
) -> None:
    write(project / name)
    line = complaint_of(project, "run", "config.yaml", "--prompts.path", name)
    assert_says(line, expected)


def test_evaluation_prompts_that_are_the_training_prompts_leave_nothing_to_train(
    project: Path,
) -> None:
    flags = ("--prompts.evaluation_path", "prompts.jsonl")
    line = complaint_of(project, "run", "config.yaml", *flags)
    assert_says(line, ["every prompt of", "too", "prompts.evaluation_path"])


def test_demonstrations_that_are_no_json_name_the_line(project: Path) -> None:
    (project / "sft.jsonl").write_text('{"prompt": "a", "completion": "b"}\nx\n')
    line = complaint_of(project, "run", "config.yaml", "--sft.data", "sft.jsonl")
    assert_says(line, ["sft.jsonl, line 2: not JSON"])


def test_duplicates_are_used_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "p.jsonl"
    source.write_text(rows({"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}))
    metrics = prepare_prompts(Prompts(path="unused"), str(source), tmp_path)
    assert (metrics.train + metrics.evaluation, metrics.duplicates) == (2, 1)
    assert "1 prompts are there more than once" in caplog.text


def test_nothing_is_written_of_prompts_that_are_wrong_at_the_end(tmp_path: Path) -> None:
    source, out = tmp_path / "p.jsonl", tmp_path / "out"
    out.mkdir()
    source.write_text(rows(*({"prompt": f"p {n}"} for n in range(1000)), {"prompt": 7}))
    with pytest.raises(InputError, match="line 1001"):
        prepare_prompts(Prompts(path="unused"), str(source), out)
    assert list(out.iterdir()) == []
