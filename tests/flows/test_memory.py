"""A model's parameters against torch's count; the arithmetic of memory only against itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from flows import memory
from flows.memory import StageMemory
from flows.model_shape import ModelShape, read_shape
from labeling.errors import InputError
from ppo.config import PPO, SFT, Evaluation, Sampling
from reward.config import RewardTraining

LLAMA = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SHAPE = ModelShape(10_000, 800, 3, 16, 4, 2, 4, 40, True, 50, 64)


def part(stage: StageMemory, name: str, phase: str = "training") -> int:
    (found,) = [p.bytes for p in stage.parts if p.name == name and p.phase in (phase, "always")]
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_that_torch_counts(tmp_path: Path, tied: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.trunk == sum(p.numel() for p in model.model.parameters())
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads) == (3, 16, 4, 2)
    assert (shape.head_dim, shape.mlp, shape.vocabulary, shape.gated) == (4, 40, 50, True)


def test_names_of_gpt2_and_several_files_are_read(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4))
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    shape = read_shape(str(tmp_path))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert (shape.layers, shape.hidden, shape.mlp, shape.gated) == (2, 16, 64, False)


def test_a_folder_without_weights_or_sizes_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no safetensors files"):
        read_shape(str(tmp_path))


def test_the_peak_is_what_is_always_there_and_the_largest_phase() -> None:
    stage = memory.of_ppo(SHAPE, PPO(), 10, "float32")
    sums: dict[str, int] = {}
    for p in stage.parts:
        sums[p.phase] = sums.get(p.phase, 0) + p.bytes
    always = sums.pop("always")
    assert stage.bytes == always + max(sums.values())
    assert sums[stage.peak_phase] == max(sums.values())


def test_training_takes_sixteen_bytes_a_parameter_and_a_reference_four() -> None:
    stage = memory.of_ppo(SHAPE, PPO(reward_function="f.py:f"), 10, "float32")
    assert sum(p.bytes for p in stage.parts if p.phase == "always") == 20 * SHAPE.parameters
    apart = memory.of_ppo(SHAPE, PPO(reward_function="f.py:f", critic="separate"), 10, "float32")
    apart_bytes = sum(p.bytes for p in apart.parts if p.phase == "always")
    assert apart_bytes == 20 * SHAPE.parameters + 16 * SHAPE.trunk
    reward = memory.of_reward(SHAPE, RewardTraining(), 10, "float32")
    assert sum(p.bytes for p in reward.parts if p.phase == "always") == 16 * SHAPE.trunk


def test_twice_the_batch_takes_twice_the_activations_and_no_more_weights() -> None:
    one, two = (
        memory.of_ppo(SHAPE, PPO(micro_batch_tokens=size), 10, "float32") for size in (400, 800)
    )
    for name in ("activations", "logits"):
        assert part(two, name) == 2 * part(one, name)
    assert part(two, "policy: optimizer") == part(one, "policy: optimizer")
    first, second = (
        memory.of_sft(SHAPE, SFT(data="d", batch_size=n), 9, "float32") for n in (2, 4)
    )
    assert part(second, "activations") == 2 * part(first, "activations")


def test_a_cache_grows_with_tokens_and_heads() -> None:
    config = Sampling(max_new_tokens=10)
    wide = replace(SHAPE, kv_heads=4)
    caches = [
        part(memory.of_sampling(shape, config, prompt, "float32"), "KV cache", "generating")
        for shape, prompt in ((SHAPE, 10), (SHAPE, 30), (wide, 10))
    ]
    assert caches[1] == caches[2] == 2 * caches[0]


def test_what_is_drawn_or_scored_at_once_has_a_bound() -> None:
    config = PPO(max_new_tokens=100, rollout_batch_size=4_000)
    one, two = (memory.of_ppo(SHAPE, config, 924, "float32", d) for d in ("cpu", "cuda"))
    assert part(two, "KV cache", "generating") == 8 * part(one, "KV cache", "generating")
    pass_of = "one layer's pass"
    reads = [part(stage, pass_of, "scoring") for stage in (one, two)]
    assert reads[1] == 16 * reads[0]
    longer = memory.of_ppo(SHAPE, config, 99_900, "float32")  # a single one
    held = [part(stage, "KV cache", "generating") for stage in (longer, one)]
    assert held[0] * 32_768 == held[1] * 100_000


def test_bfloat16_takes_fewer_activations_and_copies_the_weights() -> None:
    full, half = (memory.of_reward(SHAPE, RewardTraining(), 10, p) for p in ("float32", "bfloat16"))
    assert part(half, "activations") < part(full, "activations")
    assert part(half, "reward model: bfloat16 copy") == 2 * SHAPE.trunk


def test_the_line_says_the_numbers_that_are_multiplied() -> None:
    stage = memory.of_evaluation(SHAPE, Evaluation(batch_size=3), 10, "float32")
    (line,) = [p.arithmetic for p in stage.parts if p.name == "logits" and p.phase == "generating"]
    assert line == "3 sequences × 1 tokens × 50 of the vocabulary × 4 bytes × 4 copies"
    assert part(stage, "logits", "generating") == 3 * 50 * 4 * 4


def test_the_sft_term_counts() -> None:
    plain, with_term = (
        memory.of_ppo(SHAPE, PPO(sft_coef=c, micro_batch_tokens=64), 10, "float32", "cpu", 900)
        for c in (0, 0.1)
    )
    assert part(with_term, "activations") > 5 * part(plain, "activations")


def test_logits_of_a_large_vocabulary_come_in_chunks() -> None:
    wide = replace(SHAPE, vocabulary=150_000)
    stage = memory.of_ppo(wide, PPO(max_new_tokens=400), 100, "float32", "cpu")
    assert part(stage, "logits") == 16 * 150_000 * 8


def test_activations_are_those_that_autograd_keeps(tmp_path: Path) -> None:
    """Within a fifth: the formula counts one layer more for the gradients."""
    torch.manual_seed(0)
    sizes = LLAMA | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    model.save_pretrained(tmp_path)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    rows = torch.zeros(8, 50, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model.model(rows, use_cache=False)
    measured = sum(size for place, size in kept.items() if place not in weights)
    config = PPO(micro_batch_tokens=400, max_new_tokens=40, rollout_batch_size=64)
    stage = memory.of_ppo(read_shape(str(tmp_path)), config, 10, "float32")
    told = sum(p.bytes for p in stage.parts if p.name.endswith("activations"))
    layers = 6
    assert told * layers / (layers + 1) == pytest.approx(measured, rel=0.2)
    assert output is not None
