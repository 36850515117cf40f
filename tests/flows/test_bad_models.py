"""Every mistake in a model folder: what its files show is told before any server starts, the rest
when it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.check import check_inputs
from flows.config import RoundConfig
from flows.runner import run_stage
from flows.stages import COMPLETIONS
from labeling.errors import InputError
from labeling.records import Message, Prompt, write_prompts
from ppo.config import Sampling
from ppo.generation import sample_completions
from ppo.policy import load_policy
from reward.encoding import load_tokenizer
from reward.model import from_policy
from tests import tiny
from tests.flows.complaints import assert_says, complaint_of, make_project, one_line, rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def model(tmp_path: Path, whole: Path) -> Path:
    shutil.copytree(whole, tmp_path / "project" / "model")
    return make_project(tmp_path / "project") / "model"


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes(content)


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def changed(model: Path) -> None:
        known = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(known | values))

    return changed


def cut(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pickle_weights(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def lose_a_shard(model: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (remove("config.json"), ["config.json does not exist", "save_pretrained"]),
        (write("config.json", b"{"), ["config.json is not JSON", "copy it again"]),
        (remove("tokenizer.json"), ["has no tokenizer", "save_pretrained"]),
        (remove("model.safetensors"), ["has no safetensors files", "save_pretrained"]),
        (pickle_weights, ["has no safetensors files", "pickled .bin files are not loaded"]),
        (lose_a_shard, ["model-00001-of-00001.safetensors does not exist", "its index names it"]),
        (cut, ["model.safetensors is cut off or damaged", "copy it again"]),
        (write("model.safetensors", b""), ["model.safetensors is cut off or damaged"]),
        (
            write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
            ["model.safetensors is cut off or damaged"],
        ),
        (
            change("config.json", max_position_embeddings=128),
            ["sampling.max_new_tokens is 128", "context", "is 128 tokens", "lower"],
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_told_before_anything_starts(
    spoil: Callable[[Path], object], expected: list[str], model: Path
) -> None:
    spoil(model)
    line = complaint_of(model.parent, "run", "config.yaml", "--model", "model")
    assert_says(line, [str(model), *expected])


def test_only_steps_that_the_round_takes_limit_the_tokens(model: Path) -> None:
    pairs = model.parent / "pairs.jsonl"
    pairs.write_text(rows({"prompt": "Q", "chosen": "a", "rejected": "b"}))
    given = {"name": "demo", "model": str(model), "preferences": {"data": str(pairs)}}
    assert RoundConfig(**given).sampling.max_new_tokens > 64, "the model's context"
    check_inputs(RoundConfig(**given, stop_after="reward"))
    prompts = {"path": str(model.parent / "prompts.jsonl")}
    with pytest.raises(InputError, match=r"ppo\.max_new_tokens is 128"):
        check_inputs(RoundConfig(**given, prompts=prompts))


def test_a_file_is_no_model(model: Path) -> None:
    line = complaint_of(model.parent, "run", "config.yaml", "--model", "prompts.jsonl")
    assert_says(line, ["prompts.jsonl is a file", "give the folder"])


def drop_a_layer(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "layers.1." not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


def diverge(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


CODE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (drop_a_layer, ["9 weights are missing", "model.layers.1."]),
        (diverge, ["not all numbers", "model.norm.weight"]),
        (change("config.json", hidden_size=32), ["shapes of its weights"]),
        (change("config.json", model_type="unheard"), ["does not know the `model_type`"]),
        (change("config.json", model_type="vit"), ["of another kind"]),
        (change("config.json", model_type="mine", auto_map=CODE), ["code of its own", "not run"]),
    ],
)
@pytest.mark.parametrize("load", [load_policy, lambda model: from_policy(model, 0)])
def test_weights_that_do_not_fit_are_told_when_they_are_loaded(
    spoil: Callable[[Path], object], expected: list[str], load: Callable[[str], Any], model: Path
) -> None:
    spoil(model)
    with pytest.raises(InputError) as caught:
        load(str(model))
    assert_says(one_line(str(caught.value), ""), [str(model), *expected])


def test_a_tokenizer_without_an_end_is_refused(model: Path) -> None:
    change("tokenizer_config.json", eos_token=None)(model)
    with pytest.raises(InputError, match="no end-of-sequence token: give it one"):
        load_tokenizer(str(model))


def test_a_stage_that_cannot_load_the_model_ends_in_one_line(model: Path, tmp_path: Path) -> None:
    drop_a_layer(model)
    prompts, home = tmp_path / "prompts.parquet", tmp_path / "home"
    write_prompts([Prompt(text="hello the desk")], prompts)
    inputs = {"policy": str(model), "prompts": prompts}
    with pytest.raises(InputError) as caught:
        run_stage(COMPLETIONS, Sampling(), inputs, home, lambda _: None)
    assert "9 weights are missing" in one_line(str(caught.value), "")
    assert not list(home.rglob("manifest.json"))
    assert not list(home.rglob("*.partial"))


def test_prompts_longer_than_the_context_are_counted(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = tmp_path / "prompts.parquet"
    write_prompts([Prompt(text="hello " * n) for n in (3, 70, 80)], prompts)
    sample_completions(Sampling(max_new_tokens=4), str(model), prompts, tmp_path)
    assert "2 of 3 prompts left out: longer than 60 tokens" in caplog.text
    with pytest.raises(InputError) as caught:
        sample_completions(Sampling(max_new_tokens=62), str(model), prompts, tmp_path)
    line = one_line(str(caught.value), "")
    assert_says(line, ["none of 3 prompts", "62 new tokens", "context of 64", "shorten"])


def test_conversations_need_a_chat_template(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.parquet"
    write_prompts([Prompt(messages=(Message("user", "hello"),))], prompts)
    with pytest.raises(InputError) as caught:
        sample_completions(Sampling(max_new_tokens=4), str(model), prompts, tmp_path)
    assert_says(one_line(str(caught.value), ""), ["no chat template", "use a chat model"])
