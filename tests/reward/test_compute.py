import math

import pytest
import torch
from transformers import TrainerControl, TrainerState

from labeling.errors import InputError
from reward.compute import LogProgress, autocast, place, resolve_device, resolve_dtype
from reward.config import Compute


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch see so many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_auto_takes_cuda_where_it_is_there(gpus):
    gpus(0)
    assert resolve_device("auto").type == "cpu"
    gpus(1)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cpu").type == "cpu"


def test_cuda_without_a_gpu_and_several_gpus_are_refused(gpus):
    gpus(0)
    with pytest.raises(InputError, match="torch sees no GPU"):
        resolve_device("cuda")
    gpus(2)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        resolve_device("auto")


def test_precision_follows_the_device_unless_it_is_said():
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("float32", torch.device("cuda")) == torch.float32


def test_threads_are_set_when_the_config_says_so():
    before = torch.get_num_threads()
    try:
        place(Compute(device="cpu", threads=2))
        assert torch.get_num_threads() == 2
        place(Compute(device="cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bfloat16_runs_in_bfloat16_over_float32_weights():
    layer, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    with autocast(cpu, torch.bfloat16):
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    with autocast(cpu, torch.float32):
        assert layer(torch.ones(1, 2)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_a_loss_that_is_no_number_stops_the_trainer():
    state = TrainerState(global_step=3, max_steps=9)
    with pytest.raises(InputError, match=r"step 3: lower sft\.learning_rate"):
        LogProgress("sft").on_log(None, state, TrainerControl(), logs={"loss": math.nan})
