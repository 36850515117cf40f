"""The command line as a person meets it: exit codes, one line on stderr, no tracebacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli, demo, launch, round_folder
from labeling.errors import InputError

RANKLOOP = (sys.executable, "-m", "flows.cli")


def rankloop(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "LABEL"))}
    return subprocess.run(
        (*RANKLOOP, *arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(str(end.value.code))


def test_help_names_every_command(tmp_path: Path) -> None:
    done = rankloop(tmp_path, "--help")
    assert done.returncode == 0
    commands = (
        *("up", "down", "status", "doctor", "labelers", "demo", "run", "submit", "schedule"),
        *("report", "promote", "rollback"),
    )
    for command in commands:
        assert f"\n    {command} " in done.stdout


def test_what_a_person_can_mend_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\nmodel: gpt2\nprompts: {path: p.jsonl}\n")
    (tmp_path / "good.yaml").write_text("name: good\nmodel: gpt2\nprompts: {path: hub/name}\n")
    for arguments, expected in (
        (("run", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("run", "config.yaml"), "p.jsonl does not exist"),
        (("run", "config.yaml", "--ppo.kl", "1"), "there is no field --ppo.kl"),
        (("report", "unknown"), "no report in"),
        (("up", "--config", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("labelers", "invite"), "Label Studio is not running: `rankloop up` starts it"),
        (("run", "good.yaml", "--round", "3"), "round 3 of good comes after round 2"),
        (("promote", "unknown", "0"), "there is no run 'unknown' in"),
        (("rollback", "unknown", "--to", "initial"), "there is no run 'unknown' in"),
    ):
        done = rankloop(tmp_path, *arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("rankloop: ")
        assert expected in line
    assert not (tmp_path / ".rankloop").exists()


def test_the_next_round_is_the_one_that_was_stopped_once_the_config_ends_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("name: c\nmodel: gpt2\nprompts: {path: hub/name}\n")
    folder = tmp_path / "runs" / "c" / "rounds" / "000"
    folder.mkdir(parents=True)
    (folder / "round.json").write_text('{"status": "complete", "stopped_after": "labels"}')
    begun: list[int] = []
    monkeypatch.setattr(launch, "run_rounds", lambda _, numbers, __: begun.extend(numbers))
    cli.main(("run", "c.yaml", "--round", "next"))
    cli.main(("run", "c.yaml", "--round", "next", "--stop_after", "labels"))
    assert begun == [0, 1]


def test_wrong_commands_end_with_usage(tmp_path: Path) -> None:
    for arguments in (
        *((), ("dance",), ("run",), ("labelers",), ("up", "--now"), ("demo", "--seed", "x")),
        *(("demo", "--rounds", "0"), ("run", "c.yaml", "--rounds", "2", "--round", "1")),
        *(("run", "c.yaml", "--round", "last"), ("promote", "x"), ("rollback", "x", "--to", "-1")),
    ):
        done = rankloop(tmp_path, *arguments)
        assert done.returncode == 2
        assert "usage: rankloop" in done.stderr
        assert "Traceback" not in done.stderr


def test_our_own_bug_leaves_its_traceback_in_a_log_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKLOOP_HOME", raising=False)
    monkeypatch.setattr(cli, "_status", lambda: 1 / 0)
    assert run_main("status") == 1
    (line,) = capsys.readouterr().err.splitlines()
    log = Path(line.rpartition("traceback in ")[2].rstrip(")"))
    assert "ZeroDivisionError" in line
    assert "Traceback" in log.read_text()


def test_what_needs_the_worker_names_the_servers_that_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path))
    for name in ("PREFECT_API_URL", "LABEL_STUDIO_URL"):
        monkeypatch.delenv(name, raising=False)
    assert run_main("schedule") == 2
    assert (
        "a schedule needs Prefect and Label Studio to be running: call `rankloop up`"
        in capsys.readouterr().err
    )


def test_an_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert run_main("run", "config.yaml", "--seed", "7") == 130
    assert "`rankloop run config.yaml --seed 7` goes on" in capsys.readouterr().err


def test_sigterm_ends_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli, "_run", terminated)
    assert run_main("run", "config.yaml") == 143
    assert "`rankloop run config.yaml` goes on" in capsys.readouterr().err


def test_the_newest_report_is_found_by_name_by_config_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("late", "early")):
        report = tmp_path / "runs" / name / "rounds" / "000" / "report.html"
        report.parent.mkdir(parents=True)
        report.touch()
        os.utime(report, (1000 - age, 1000 - age))
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "c.yaml").write_text("name: early\nmodel: gpt2\nprompts: {path: prompts.jsonl}\n")
    for arguments, name in (((), "late"), (("early",), "early"), (("c.yaml",), "early")):
        cli.main(("report", *arguments))
        assert capsys.readouterr().out.strip() == str(
            tmp_path / "runs" / name / "rounds" / "000" / "report.html"
        )
    with pytest.raises(InputError, match="there are reports of early, late"):
        round_folder.newest_report(tmp_path / "runs", "lost")


def test_every_field_is_listed(tmp_path: Path) -> None:
    listed = rankloop(tmp_path, "run", "--fields").stdout
    assert "--ppo.kl_coef  (default: 0.05)\n" in listed
    assert "--labeling.simulated.noise" not in listed  # a list's items have no flags


def test_the_demo_makes_its_data_again_only_when_the_generator_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = tmp_path / "support"
    example.mkdir()
    for name in ("base_model.py", "sentences.yaml", "config.yaml"):
        (example / name).touch()
    (example / "world.py").write_text(
        "import pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "out.mkdir(exist_ok=True)\n"
        "with (out / 'made').open('a') as made: made.write('x')\n"
    )
    monkeypatch.setattr(demo, "EXAMPLE", example)
    monkeypatch.setenv("RANKLOOP_HOME", str(tmp_path / "home"))
    made = example / "data" / "made"
    assert demo.prepare() == example / "config.yaml"
    demo.prepare()
    assert made.read_text() == "x"
    (example / "sentences.yaml").write_text("changed")
    demo.prepare()
    assert made.read_text() == "xx"
    (example / "world.py").write_text("raise SystemExit('no luck')")
    with pytest.raises(InputError, match="no luck"):
        demo.prepare()
