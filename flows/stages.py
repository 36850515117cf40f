"""The stages of a round: which function, which inputs, which file each one is known for.

Raise a stage's `version` when a change in its code changes what it makes: entries of the old
version are then left alone and made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# path: a file or folder; paths: a list of them. entry: a whole entry of the store, manifest
# included. model, dataset: a path or a hub name. function: module_or_file:function; functions:
# those by name. value: what JSON can say, taken as it is.
Kind = Literal["path", "paths", "entry", "model", "dataset", "function", "functions", "value"]


@dataclass(frozen=True)
class Stage:
    """A pure step: files and a config in, files out.

    `function` is `module:function`, imported only in the child process. `output` is what later
    stages take from its entry: a file, a folder, or the entry itself when empty.
    """

    name: str
    function: str
    inputs: Mapping[str, Kind] = field(hash=False)
    output: str = ""
    version: int = 1
    resumable: bool = False


PROMPTS = Stage(
    "prompts",
    "labeling.prompts:prepare_prompts",
    {"source": "dataset", "evaluation": "dataset"},
    "prompts.parquet",
)
SFT = Stage("sft", "ppo.sft:train_sft", {"model": "model", "data": "dataset"}, "policy", version=3)
COMPLETIONS = Stage(
    "completions",
    "ppo.generation:sample_completions",
    {"policy": "model", "prompts": "path", "earlier": "paths"},
    "completions.parquet",
    version=4,
)
PREFERENCES = Stage(
    "preferences",
    "labeling.preferences:load_preferences",
    {"data": "dataset"},
    "pairs.parquet",
    version=3,
)
PAIRS = Stage(
    "pairs",
    "labeling.pairs:make_pairs",
    {"completions": "path", "labels": "path"},
    "pairs.parquet",
    version=2,
)
REWARD = Stage(
    "reward",
    "reward.train:train_reward_model",
    {
        "policy": "model",
        "pairs": "path",
        "completions": "path",
        "earlier": "paths",
        "start": "path",
    },
    "reward_model",
    version=3,
)
PPO = Stage(
    "ppo",
    "ppo.train:train_ppo",
    {
        "policy": "model",
        "prompts": "path",
        "reward_model": "path",
        "reward_function": "function",
        "demonstrations": "dataset",
        "reference": "model",
    },
    "policy",
    version=4,
    resumable=True,
)
EVALUATE = Stage(
    "evaluate",
    "ppo.evaluate:evaluate_policy",
    {
        "initial": "model",
        "candidate": "model",
        "incumbent": "model",
        "prompts": "path",
        "reward_model": "path",
        "judge": "function",
        "guards": "functions",
    },
    version=4,
)
REPORT = Stage(
    "report",
    "flows.report:write_report",
    {
        "sft": "entry",
        "prompts": "entry",
        "completions": "entry",
        "labels": "path",
        "answers": "path",
        "preferences": "entry",
        "pairs": "entry",
        "reward": "entry",
        "ppo": "entry",
        "evaluation": "entry",
        "promotion": "value",
        "lineage": "value",
    },
    "report.html",
    version=4,
)
