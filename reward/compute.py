"""Device and precision, as the config asks for them."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from labeling.errors import InputError
from reward.config import Compute

logger = logging.getLogger(__name__)


def place(config: Compute) -> tuple[torch.device, torch.dtype]:
    """Device and precision of a step, and the CPU threads it may use.

    Raises:
        InputError: CUDA was asked for and is not there, or several GPUs are visible.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    return device, resolve_dtype(config.dtype, device)


def resolve_device(device: str) -> torch.device:
    """`auto` → CUDA where it is there, else the CPU.

    Raises:
        InputError: CUDA was asked for and is not there, or several GPUs are visible: a step works
            on one, and the trainers would silently choose.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise InputError("device 'cuda' was asked for, but torch sees no GPU here")
    if gpus > 1:
        raise InputError(
            f"{gpus} GPUs are visible and a step works on one; name it with CUDA_VISIBLE_DEVICES=0"
        )
    return torch.device("cuda" if gpus else "cpu")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Precision of the arithmetic: `auto` is bfloat16 on CUDA, float32 on the CPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Run the arithmetic in `dtype` over float32 weights."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def trainer_arguments(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What TRL's and transformers' Trainers are told about device, precision and side effects:
    nothing is reported anywhere and no checkpoint (with its pickles) is written."""
    return {
        "use_cpu": device.type == "cpu",
        "bf16": dtype == torch.bfloat16,
        "activation_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # a loss that is NaN is not to be hidden
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
    }


class LogProgress(TrainerCallback):
    """Says through `logging` how far a Trainer has come, and stops when the loss is no number.
    `section` is where the config holds the learning rate."""

    def __init__(self, section: str) -> None:
        self.section = section

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        # The summary at the end has the mean loss, and the accuracy of the last few pairs alone.
        names = ("loss", "accuracy") if "loss" in logs else ("train_loss",)
        metrics = {name: float(logs[name]) for name in names if name in logs}
        if not metrics:
            return
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise InputError(
                f"the loss is {metrics['loss']} at step {state.global_step}: lower "
                f"{self.section}.learning_rate"
            )
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        shown = shown.replace("train_loss", "mean loss")
        logger.info(
            "step %d/%d: %s",
            state.global_step,
            state.max_steps,
            shown,
            extra={"progress": (state.global_step, state.max_steps), "metrics": metrics},
        )
