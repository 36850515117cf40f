"""What can be known to be wrong before any server starts: told in a second, not after a minute.

Only looks: the stages check everything once more, and more of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from flows.config import RoundConfig
from flows.inputs import function_digest
from flows.model_shape import read_json, weight_files
from flows.plan import needed_steps
from flows.runner import parse, stage_environment
from flows.stage import say
from labeling.config import Prompts
from labeling.errors import InputError
from labeling.preferences import parse_preference
from labeling.prompts import read_rows, split_prompts
from labeling.scoring import load_score_function

# Larger files are left to their stage: nobody is to wait for them twice.
_READ_BYTES = 50_000_000
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt", "tekken.json"),
)
# Steps that draw completions, and the section that says how long those may be.
_SAMPLERS = {"completions": "sampling", "ppo": "ppo", "evaluate": "evaluation"}


def check_inputs(config: RoundConfig, number: int = 0) -> None:
    """Look at prompts, demonstrations, preferences, user functions and the model folder, as far as
    the round of that number needs them.

    Raises:
        InputError: one of them is wrong, with what the stage would say, or in other words.
    """
    steps = needed_steps(config, number)
    if "prompts" in steps and config.prompts:
        _check_prompts(config.prompts)
    if config.sft and _is_short(config.sft.data) and not sum(1 for _ in read_rows(config.sft.data)):
        raise InputError(f"{config.sft.data} (sft.data) is empty: write a row on each line")
    if "preferences" in steps and config.preferences and _is_short(config.preferences.data):
        for where, row in read_rows(config.preferences.data):
            parse_preference(row, where)
    if Path(config.model).exists():
        _check_model(Path(config.model), config, steps)
    _check_functions(_functions(config, steps))


def _is_short(source: str | None) -> bool:
    """A file that is quick to read. What is no file here may be a data set on the hub; a folder is
    neither, and read so that its reader says so."""
    path = Path(source or "")
    return source is not None and path.exists() and path.stat().st_size <= _READ_BYTES


def _check_prompts(config: Prompts) -> None:
    evaluation = config.evaluation_path
    if _is_short(config.path) and (evaluation is None or _is_short(evaluation)):
        split_prompts(config, config.path, evaluation)


# --- the model folder -----------------------------------------------------------------------------


def _check_model(folder: Path, config: RoundConfig, steps: Collection[str]) -> None:
    """Its files, without torch; whether they make a causal language model only torch can tell."""
    if not folder.is_dir():
        raise InputError(f"model: {folder} is a file; give the folder that it is in")
    description = read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(
            f"model: {folder} has no tokenizer: `tokenizer.save_pretrained` writes one there"
        )
    for file in weight_files(folder):
        _check_safetensors(file)
    text = description.get("text_config") or description
    context = text.get("max_position_embeddings") or text.get("n_positions")
    for section in (section for step, section in _SAMPLERS.items() if step in steps):
        wanted = getattr(config, section).max_new_tokens
        if isinstance(context, int) and wanted >= context:
            raise InputError(
                f"{section}.max_new_tokens is {wanted}, and the context of {folder} is {context} "
                "tokens for prompt and completion together: lower max_new_tokens"
            )


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(file, framework="numpy"):  # reads the header and compares the size with it
            pass
    except FileNotFoundError:
        raise InputError(f"model: {file} does not exist, but its index names it") from None
    except SafetensorError as error:
        raise InputError(f"model: {file} is cut off or damaged ({error}): copy it again") from None


# --- user functions -------------------------------------------------------------------------------


def _functions(config: RoundConfig, steps: Collection[str]) -> dict[str, str]:
    """What the config names, by field, as far as a step of the round asks it."""
    named: dict[str, str] = {}
    if "simulated" in steps:
        named |= {
            f"labeling.simulated.{i}.score": labeler.score
            for i, labeler in enumerate(config.labeling.simulated)
        }
    if "ppo" in steps and config.ppo.reward_function:
        named["ppo.reward_function"] = config.ppo.reward_function
    if "evaluate" in steps:
        named |= {f"evaluation.guards.{name}": f for name, f in config.evaluation.guards.items()}
        if config.evaluation.judge:
            named["evaluation.judge"] = config.evaluation.judge
    return named


def _check_functions(references: dict[str, str]) -> None:
    """Load them as the stages will: in a process of their own, for what they import is theirs."""
    for field, reference in references.items():
        try:
            function_digest(reference)
        except InputError as error:
            raise InputError(f"{field}: {error}") from None
    if not references:
        return
    done = subprocess.run(
        (sys.executable, "-B", "-m", "flows.check", json.dumps(references)),  # writes no .pyc
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=stage_environment(),
        text=True,
        errors="replace",
        check=False,
    )
    for message in map(parse, done.stdout.splitlines()):
        if message and "error" in message:
            raise InputError(message["error"])
    if done.returncode:
        raise InputError(
            f"loading {', '.join(references.values())} ended with exit code {done.returncode}"
        )


def _load(references: dict[str, str]) -> None:
    for field, reference in references.items():
        try:
            load_score_function(reference)
        except InputError as error:
            # Marked, as in flows/stage.py: what the file and its libraries print is not for us.
            say({"error": f"{field}: {error}"})
            sys.exit(2)


if __name__ == "__main__":
    _load(json.loads(sys.argv[1]))
