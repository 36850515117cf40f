"""What a model folder's safetensors files say of its size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from flows.model_shape import read_shape
from labeling.errors import InputError


@pytest.fixture
def model(tmp_path: Path) -> GPT2LMHeadModel:
    """A small GPT-2, saved in `tmp_path` in several files."""
    made = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4))
    made.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return made


def test_buffers_in_files_of_old_are_no_parameters(tmp_path: Path, model: GPT2LMHeadModel) -> None:
    file = min(tmp_path.glob("*.safetensors"))
    buffers = {
        name: torch.ones(1, 1, 8, 8)
        for name in ("transformer.h.0.attn.bias", "gpt_neox.layers.0.attention.bias")
    }
    save_file(load_file(file) | buffers, file, metadata={"format": "pt"})
    assert read_shape(str(tmp_path)).parameters == sum(p.numel() for p in model.parameters())


def test_files_that_transformers_does_not_load_are_not_counted(
    tmp_path: Path, model: GPT2LMHeadModel
) -> None:
    counted = read_shape(str(tmp_path))
    whole = {f"copy.{name}": p.detach().clone() for name, p in model.named_parameters()}
    save_file(whole, tmp_path / "consolidated.safetensors")
    assert read_shape(str(tmp_path)) == counted
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="no safetensors files of the names that transformers"):
        read_shape(str(tmp_path))
