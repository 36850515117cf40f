"""Device and precision, as the config asks for them."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from labeling.errors import InputError

logger = logging.getLogger(__name__)


def resolve_device(device: str) -> torch.device:
    """`auto` → CUDA where it is there, else the CPU.

    Raises:
        InputError: a device that torch does not know, or CUDA where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device '{device}' is not one; use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{device}' was asked for, but torch sees no GPU here")
    return resolved


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
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "steps",
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
    }


class LogProgress(TrainerCallback):
    """Says through `logging` how far a Trainer has come."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = {k: float(v) for k, v in (logs or {}).items() if k in ("loss", "accuracy")}
        if not metrics:
            return
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        logger.info(
            "step %d/%d: %s",
            state.global_step,
            state.max_steps,
            shown,
            extra={"progress": (state.global_step, state.max_steps), "metrics": metrics},
        )
