"""What one look at a round leaves for the next, and that they do not meet."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows import looks
from flows.looks import FILE, Notes, Seen, alone

NOTES = Notes(
    seen=Seen(project=3, tasks=4, answers=2, skipped=0, changed="2026", snapshot="abc"),
    told={7: 2},
    withdrawn=frozenset({("key", "ann@example.org")}),
    restored=(datetime(2026, 3, 2, tzinfo=UTC),),
    reminded=datetime(2026, 3, 3, tzinfo=UTC),
)
HOLDER = """
import sys, time
from pathlib import Path
from flows.looks import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_what_a_look_notes_the_next_one_reads_and_only_the_owner(tmp_path: Path) -> None:
    NOTES.write(tmp_path)
    assert Notes.read(tmp_path) == NOTES
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    Notes.forget_told(tmp_path)
    assert Notes.read(tmp_path) == NOTES.model_copy(update={"told": {}})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"told": 5}', '{"restored": ["2026-03-02"]}'])
def test_notes_that_cannot_be_read_are_begun_anew(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(text)
    assert Notes.read(tmp_path) == Notes()
    assert "begun anew" in caplog.text


def test_one_look_waits_for_another_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "_PATIENCE_S", 0.05)
    with alone(tmp_path):
        failed: list[str] = []

        def second() -> None:
            try:
                with alone(tmp_path):
                    pass
            except ConnectionError as error:
                failed.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(30)
        (line,) = failed
        assert str(tmp_path) in line
    with alone(tmp_path):
        pass


def test_a_look_that_was_killed_holds_up_nobody(tmp_path: Path) -> None:
    command = (sys.executable, "-c", HOLDER, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    with alone(tmp_path):
        pass
