"""A config file and flags → RoundConfig, and every complaint as one line that names its cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.config import RoundConfig, project_title
from flows.load import fields, load_config
from labeling.errors import InputError

BASIC = """\
name: demo
model: model
seed: 3
prompts: {path: prompts.jsonl}
sft: {data: sft.jsonl}
ppo: {iterations: 5}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder; the current folder is another one."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for path in (project / "model", elsewhere):
        path.mkdir(parents=True)
    for name in ("prompts.jsonl", "sft.jsonl", "rubric.py"):
        (project / name).touch()
    monkeypatch.chdir(elsewhere)
    return project


def load(folder: Path, text: str = BASIC, *flags: str) -> RoundConfig:
    (folder / "config.yaml").write_text(text)
    return load_config(folder / "config.yaml", flags)


def complaint(folder: Path, text: str = BASIC, *flags: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- values ---------------------------------------------------------------------------------------


def test_flags_override_the_file_and_leave_the_rest(folder: Path) -> None:
    config = load(folder, BASIC, "--ppo.kl_coef", "0.3", "--sft.epochs=2", "--ppo.kl_target=null")
    assert config.ppo.kl_coef == 0.3
    assert config.ppo.iterations == 5
    assert config.sft is not None
    assert config.sft.epochs == 2
    assert load(folder, BASIC, "--sft", "null").sft is None


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("400", 400), ("1", 1), ("0.8", 0.8), ("1.0", None), ("null", None)],
)
def test_rankings_are_wanted_as_a_number_or_a_share_in_the_file_and_in_a_flag(
    folder: Path, given: str, wanted: float | None
) -> None:
    labeling = f"labeling: {{wanted: {given}}}\n"
    of_file = load(folder, BASIC + labeling).labeling.wanted
    of_flag = load(folder, BASIC + "labeling: {wanted: 7}\n", "--labeling.wanted", given)
    for found in (of_file, of_flag.labeling.wanted):
        assert (found, type(found)) == (wanted, type(wanted))


def test_shared_fields_reach_every_section_that_does_not_set_its_own(folder: Path) -> None:
    config = load(folder, BASIC + "reward: {seed: 9}\nmax_new_tokens: 7\n", "--device", "cpu")
    assert (config.ppo.seed, config.prompts.seed, config.reward.seed) == (3, 3, 9)
    assert (config.sampling.max_new_tokens, config.ppo.max_new_tokens) == (7, 7)
    assert config.evaluation.device == "cpu"


def test_another_seed_is_another_run(folder: Path) -> None:
    assert load(folder, BASIC, "--seed", "3").name == "demo"
    other = load(folder, BASIC, "--seed", "7")
    assert (other.name, other.seed, other.ppo.seed) == ("demo-seed-7", 7, 7)
    assert load(folder, BASIC, "--seed", "7", "--name", "mine").name == "mine"


def test_the_environment_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAME", "SEED", "MODEL", "PPO"):
        monkeypatch.setenv(name, "from-the-environment")
    config = load(folder)
    assert (config.name, config.seed) == ("demo", 3)


def test_every_field_is_described() -> None:
    assert [name for name, field in fields() if not field.description and "." in name] == []


# --- paths ----------------------------------------------------------------------------------------


def test_paths_of_the_file_count_from_its_folder(folder: Path) -> None:
    config = load(folder, BASIC + "evaluation: {judge: 'rubric.py:score'}\n")
    assert config.model == str(folder / "model")
    assert config.prompts.path == str(folder / "prompts.jsonl")
    assert config.sft is not None
    assert config.sft.data == str(folder / "sft.jsonl")
    assert config.evaluation.judge == f"{folder / 'rubric.py'}:score"


def test_paths_of_a_flag_count_from_the_current_folder(folder: Path) -> None:
    Path("mine.jsonl").touch()
    config = load(folder, BASIC, "--prompts.path", "mine.jsonl")
    assert config.prompts.path == str(Path.cwd() / "mine.jsonl")
    assert "mine2.jsonl does not exist" in complaint(folder, BASIC, "--model", "./mine2.jsonl")


def test_a_config_that_cannot_be_followed_is_refused_when_it_is_read(folder: Path) -> None:
    without = BASIC.replace("prompts: {path: prompts.jsonl}\n", "")
    assert complaint(folder, without).endswith("config.yaml: 'prompts' is missing")
    given = without + "preferences: {data: sft.jsonl}\nstop_after: reward\n"
    config = load(folder, given)
    assert config.prompts is None
    assert config.preferences is not None
    assert config.preferences.data == str(folder / "sft.jsonl")
    message = complaint(folder, given, "--stop_after", "labels")
    assert "stop_after: labels is not reached with preferences.data" in message


def test_a_hub_name_stays_and_a_path_that_is_not_there_is_named(folder: Path) -> None:
    for name in ("gpt2", "org/model-1.5", "org/model@main"):
        assert load(folder, BASIC.replace("model: model", f"model: {name}")).model == name
    for path in ("./model2", "a/b/c", "/nowhere", "prompts2.jsonl"):
        message = complaint(folder, BASIC.replace("model: model", f"model: {path}"))
        assert "config.yaml: model: " in message
        assert "does not exist" in message


def test_functions_are_found_wherever_they_are_named(folder: Path) -> None:
    place = f"{folder / 'rubric.py'}:score"
    config = load(
        folder,
        BASIC.replace("ppo: {", "ppo: {reward_function: 'rubric:score', ")
        + "labeling: {simulated: [{score: 'rubric.py:score'}]}\n"
        + "evaluation: {guards: {valid: './rubric.py:score', other: 'json:dumps'}}\n",
    )
    assert config.ppo.reward_function == place
    assert config.labeling.simulated[0].score == place
    assert config.evaluation.guards == {"valid": place, "other": "json:dumps"}


def test_instructions_in_a_file_count_by_their_text(folder: Path) -> None:
    given = BASIC + "labeling: {instructions: criteria.md}\n"
    assert "config.yaml: labeling.instructions: " in (message := complaint(folder, given))
    assert "criteria.md does not exist" in message
    (folder / "criteria.md").write_text("# Be kind\n")
    assert load(folder, given).labeling.instructions == "# Be kind\n"
    (folder / "criteria.md").write_text("# Be brief\n")
    assert load(folder, given).labeling.instructions == "# Be brief\n"
    text = "# Be kind\n\nSee criteria.md"
    given = BASIC + f"labeling: {{instructions: {json.dumps(text)}}}\n"
    assert load(folder, given).labeling.instructions == text
    assert load(folder).labeling.instructions is None


def test_a_link_keeps_its_name_and_ending(folder: Path) -> None:
    (folder / "prompts.jsonl").rename(folder / "0a1b2c")
    (folder / "prompts.jsonl").symlink_to("0a1b2c")
    assert load(folder, BASIC).prompts.path == str(folder / "prompts.jsonl")


def test_a_module_in_the_current_folder_is_a_file_of_the_project(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "taste.py").touch()
    monkeypatch.chdir(here)
    config = load(folder, BASIC + "evaluation: {judge: 'taste:score'}\n")
    assert config.evaluation.judge == f"{here / 'taste.py'}:score"


def test_a_function_outside_the_project_is_refused(folder: Path) -> None:
    outside = folder.parent / "rubric.py"
    outside.touch()
    for reference in ("../rubric.py:score", f"{outside}:score"):
        message = complaint(folder, BASIC + f"evaluation: {{judge: '{reference}'}}\n")
        assert "outside the project" in message
    (folder / "link.py").symlink_to(outside)
    assert "outside" in complaint(folder, BASIC + "evaluation: {judge: 'link.py:score'}\n")


def test_a_revision_belongs_to_a_hub_name(folder: Path) -> None:
    assert "revision" in complaint(folder, BASIC + "revision: main\n")


# --- complaints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("iterations", "iteration"), "no field 'iteration' in 'ppo'; did you mean iterations?"),
        (("ppo:", "poo:"), "no field 'poo'; did you mean ppo?"),
        (("model: model\n", ""), "'model' is missing"),
        (("iterations: 5", "iterations: 0"), "ppo.iterations: input should be greater than"),
        (("iterations: 5", "iterations: many"), "ppo.iterations: input should be a valid integer"),
        (("seed: 3", "seed: x"), "seed: input should be a valid integer"),
        (("name: demo", "name: A B"), "name: must be at most 64 lower-case letters"),
        (("ppo: {", "ppo: ["), "line 6: not YAML"),
        (
            ("seed: 3", "labeling: {simulated: [{scor: x}]}"),
            "no field 'scor' in 'labeling.simulated.0'; did you mean score?",
        ),
        ((BASIC, "- a list"), "must hold fields"),
        ((BASIC, ""), "must hold fields"),
    ],
)
def test_a_complaint_about_the_file_names_it_and_what_is_allowed(
    change: tuple[str, str], expected: str, folder: Path
) -> None:
    message = complaint(folder, BASIC.replace(*change))
    assert message.startswith(str(folder / "config.yaml"))
    assert expected in message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--ppo.klcoef", "1"), "no field --ppo.klcoef; did you mean --ppo.kl_coef?"),
        (("--kl_coef", "1"), "no field --kl_coef; did you mean --ppo.kl_coef?"),
        (("--ppo.kl", "1"), "no field --ppo.kl"),  # an abbreviation
        (("--nam", "x"), "no field --nam; did you mean --name?"),
        (("--ppo.kl_coef", "-1"), "--ppo.kl_coef: input should be greater than or equal to 0"),
        (
            ("--ppo.critic", "both"),
            "--ppo.critic: input should be 'shared', 'separate' or 'reward_model'",
        ),
        (("--ppo.kl_coef",), "--ppo.kl_coef has no value"),
        (("stray",), "unrecognized arguments: stray"),
        (("--dtype", "int8"), "--dtype: input should be 'auto', 'float32' or 'bfloat16'"),
    ],
)
def test_a_complaint_about_a_flag_names_the_flag(
    flags: tuple[str, ...], expected: str, folder: Path
) -> None:
    message = complaint(folder, BASIC, *flags)
    assert expected in message
    assert "config.yaml" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_name_that_the_seed_makes_too_long_is_refused(folder: Path) -> None:
    message = complaint(folder, BASIC.replace("demo", "d" * 62), "--seed", "7")
    assert "too long" in message


# --- later rounds ---------------------------------------------------------------------------------


def test_later_rounds_have_their_changes_and_share_the_rest(folder: Path) -> None:
    text = BASIC + "later_rounds: {changes: {ppo: {iterations: 9}, sampling: {prompts: 5}}}\n"
    config = load(folder, text, "--ppo.kl_coef", "0.3")
    assert config.for_round(0) is config
    later = config.for_round(2)
    assert (config.ppo.iterations, later.ppo.iterations) == (5, 9)
    assert (later.ppo.kl_coef, later.ppo.seed, later.sampling.prompts) == (0.3, 3, 5)
    same = {"ppo", "sampling"}
    assert later.model_dump(exclude=same) == config.model_dump(exclude=same)
    unchanged = load(folder)
    first, second = unchanged.for_round(1), unchanged.for_round(2)
    assert first.model_dump(exclude={"sampling"}) == unchanged.model_dump(exclude={"sampling"})
    drawn = {each.sampling.seed for each in (unchanged, first, second)}
    assert len(drawn) == 3, "people would see the same completions again"
    own = "later_rounds: {changes: {sampling: {seed: 9}}}\n"
    assert load(folder, BASIC + own).for_round(2).sampling.seed == 9
    assert (project_title("demo", 0), project_title("demo", 2)) == ("demo", "demo, round 2")


def test_a_wrong_change_for_later_rounds_is_told_when_the_config_is_read(folder: Path) -> None:
    def said(changes: str) -> str:
        return complaint(folder, BASIC + f"later_rounds: {{changes: {changes}}}\n")

    for changes, words in (
        ("{ppo: {iteration: 9}}", "later_rounds.changes: there is no field 'iteration' in 'ppo'"),
        ("{ppo: {iterations: 0}}", "later_rounds.changes: ppo.iterations: "),
        ("{prompts: {limit: 3}}", "later_rounds.changes"),
        ("{labeling: {simulated: []}}", "labeling.simulated: is the same in all rounds"),
        ("{ppo: {reward_function: 'a.py:b'}}", "ppo.reward_function: is the same in all rounds"),
    ):
        assert words in said(changes), changes


def test_a_guard_that_the_gate_watches_must_be_there(folder: Path) -> None:
    text = BASIC + "promotion: {max_guard_drop: {valid: 0.1}}\n"
    assert "promotion.max_guard_drop names 'valid'" in complaint(folder, text)
    guards = "evaluation: {guards: {valid: 'rubric.py:valid'}}\n"
    assert load(folder, text + guards).promotion.max_guard_drop == {"valid": 0.1}
