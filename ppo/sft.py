"""Supervised fine-tuning of a base model with TRL's SFTTrainer: it makes the initial policy."""

from __future__ import annotations

import logging
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from labeling.errors import InputError
from labeling.prompts import read_rows
from labeling.wording import counted
from ppo.config import SFT
from ppo.demonstrations import Encoded, encode_demonstration, parse_demonstration
from ppo.policy import load_policy, save_policy, stop_tokens
from reward.compute import LogProgress, place, trainer_arguments
from reward.encoding import give_pad_token, load_tokenizer

logger = logging.getLogger(__name__)

POOL = 32  # batches among which examples of like length are put together


@dataclass(frozen=True)
class SFTMetrics:
    """What was learned from, and how well. `loss` (nats a token) and `token_accuracy` are means
    over the last tenth of the steps; `tokens` counts what the model read, without padding. `cut`
    examples were longer than `max_length`; `left_out` had nothing of their completion within it.
    """

    loss: float
    token_accuracy: float
    examples: int
    tokens: int
    steps: int
    cut: int
    left_out: int


def train_sft(config: SFT, model: str, data: str, out: Path) -> SFTMetrics:
    """Fine-tune `model` on `data` and write `out/policy/`.

    Args:
        model: a folder in transformers' format, or a hub name (`name@commit`).
        data: JSONL, Parquet or a hub data set, with columns `prompt` and `completion` (text or
            messages), or `messages` (the last one is then the completion).

    Raises:
        InputError: the data or the model cannot be read, no completion lies within `max_length`,
            the batch sizes do not fit, or the loss stops being a number.
    """
    device, dtype = place(config)
    micro = min(config.micro_batch_size or config.batch_size, config.batch_size)
    if config.batch_size % micro:
        raise InputError(
            f"sft.batch_size {config.batch_size} is no multiple of sft.micro_batch_size {micro}"
        )
    tokenizer = load_tokenizer(model)
    policy = load_policy(model)
    give_pad_token(policy, tokenizer)
    examples, left_out = load_examples(config, data, policy, tokenizer)
    order = training_order([len(e.prompt) + len(e.completion) for e in examples], config)
    steps = math.ceil(len(order) / config.batch_size)
    curve = _Curve()
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        trainer = SFTTrainer(
            model=policy,
            args=SFTConfig(
                output_dir=scratch,
                num_train_epochs=1,  # `order` holds every pass
                train_sampling_strategy="sequential",
                learning_rate=config.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=round(config.warmup_ratio * steps),
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=config.batch_size // micro,
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                seed=config.seed,
                data_seed=config.seed,
                logging_steps=max(1, steps // 50),
                **trainer_arguments(device, dtype),
            ),
            train_dataset=as_dataset(examples, config.completion_only).select(order),
            processing_class=tokenizer,
            callbacks=[LogProgress("sft"), curve],
        )
        trainer.remove_callback(PrinterCallback)  # it writes to stdout
        result = trainer.train()
    save_policy(policy, tokenizer, out / "policy")
    loss, accuracy = curve.last_tenth()
    metrics = SFTMetrics(
        loss=loss,
        token_accuracy=accuracy,
        examples=len(examples),
        tokens=sum(len(examples[i].prompt) + len(examples[i].completion) for i in order),
        steps=result.global_step,
        cut=sum(e.cut for e in examples),
        left_out=left_out,
    )
    logger.info("loss %.3f, token accuracy %.3f", metrics.loss, metrics.token_accuracy)
    return metrics


def load_examples(
    config: SFT, data: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Encoded], int]:
    """The tokens of all demonstrations, and how many were left out.

    Raises:
        InputError: the data cannot be read, or none is left.
    """
    stop = stop_tokens(model, tokenizer)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(config.max_length, context or config.max_length)
    examples: list[Encoded] = []
    left_out = 0
    for where, row in read_rows(data):
        demonstration = parse_demonstration(row, where)
        try:
            encoded = encode_demonstration(tokenizer, demonstration, stop, limit)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if encoded is None:
            left_out += 1
        else:
            examples.append(encoded)
    if not examples:
        raise InputError(
            f"{data} holds no example that fits: {left_out} have prompts of {limit} tokens or more "
            "(sft.max_length and the model's context)"
        )
    cut = sum(e.cut for e in examples)
    if cut or left_out:
        examples_cut = counted(cut, "example")
        logger.warning("%s cut at %d tokens, %d left out", examples_cut, limit, left_out)
    return examples, left_out


def as_dataset(examples: Sequence[Encoded], completion_only: bool) -> Dataset:
    """TRL's columns of tokenised data: `input_ids`, and `labels` with -100 where there is no loss.
    Ready-made, the trainer need not guess where a completion starts."""
    rows: dict[str, Any] = {
        "input_ids": [e.prompt + e.completion for e in examples],
        "labels": [
            ([-100] * len(e.prompt) if completion_only else e.prompt) + e.completion
            for e in examples
        ],
    }
    return Dataset.from_dict(rows)


def training_order(lengths: Sequence[int], config: SFT) -> list[int]:
    """Indices of all passes, one batch after another: examples of like length share a batch, which
    saves padding, and the batches come in random order, so that no step sees only short ones
    because of when it comes."""
    rng = random.Random(f"sft-{config.seed}")
    total = max(1, round(config.epochs * len(lengths)))
    indices: list[int] = []
    while len(indices) < total:
        indices += rng.sample(range(len(lengths)), len(lengths))
    del indices[total:]
    size = config.batch_size
    full: list[list[int]] = []
    rest: list[int] = []
    for start in range(0, total, POOL * size):
        pool = sorted(indices[start : start + POOL * size], key=lambda i: lengths[i])
        spare = len(pool) % size
        if spare:  # the last pool's: any, not the longest
            rest = [pool.pop(rng.randrange(len(pool))) for _ in range(spare)]
        full += [pool[i : i + size] for i in range(0, len(pool), size)]
    rng.shuffle(full)
    return [i for batch in [*full, rest] for i in batch]


class _Curve(TrainerCallback):
    """Keeps loss and token accuracy as they are logged."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        loss, accuracy = float(logs["loss"]), float(logs["mean_token_accuracy"])
        self.points.append((state.global_step, loss, accuracy))

    def last_tenth(self) -> tuple[float, float]:
        """Mean loss and accuracy of the last tenth of the steps."""
        end = self.points[-1][0]
        last = [point for point in self.points if point[0] > 0.9 * end]
        return sum(p[1] for p in last) / len(last), sum(p[2] for p in last) / len(last)
