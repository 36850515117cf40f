"""Preference pairs → a reward model, with TRL's RewardTrainer."""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import RewardConfig, RewardTrainer

from labeling.errors import InputError
from labeling.pair_table import read_pairs
from labeling.records import Completion, PreferencePair, Prompt, read_candidates
from labeling.wording import counted
from reward.compute import LogProgress, place, trainer_arguments
from reward.config import RewardTraining
from reward.encoding import completion_ids, prompt_ids
from reward.model import Normalization, RewardModel, from_policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardMetrics:
    """How the reward model was trained and how well it agrees with rankings it has not seen. Ties
    are trained on (`train_pairs` counts both orders) but measure nothing."""

    held_out_accuracy: float
    train_accuracy: float
    train_pairs: int
    held_out_pairs: int
    too_long: int
    steps: int
    loss: float
    reference_mean: float
    reference_std: float


def train_reward_model(
    config: RewardTraining, policy: str, pairs: Path, out: Path, completions: Path | None = None
) -> RewardMetrics:
    """Train on the pairs of most prompts, measure on the others, normalise, and write
    `out/reward_model/`.

    Args:
        policy: the model whose trunk the reward model starts from; a folder or `name@commit`.
        pairs: preference pairs in TRL's columns (Parquet).
        completions: the reference completions, on which scores are normalised to mean 0 and
            standard deviation 1; without them, the texts of the pairs.

    Raises:
        InputError: there are too few pairs or prompts, or the model cannot be loaded.
    """
    device, dtype = place(config)
    micro = min(config.micro_batch_size or config.batch_size, config.batch_size)
    if config.batch_size % micro:
        raise InputError(
            f"reward.batch_size {config.batch_size} is no multiple of reward.micro_batch_size "
            f"{micro}"
        )
    model, tokenizer = from_policy(policy, config.seed)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(config.max_length, context or config.max_length)
    given = read_pairs(pairs)
    encoded = [(p, row) for p in given if (row := encode_pair(tokenizer, p, limit))]
    too_long = len(given) - len(encoded)
    if not encoded:
        raise InputError(
            f"all {len(given)} pairs are longer than {limit} tokens (reward.max_length and the "
            "model's context); raise reward.max_length, or shorten prompts and max_new_tokens"
        )
    if too_long:
        logger.warning("%s of more than %d tokens left out", counted(too_long, "pair"), limit)
    train, held_out = split_by_prompt(
        [p for p, _ in encoded], config.held_out_fraction, config.seed
    )
    kept = {p.prompt.key for p in train}
    rows = [row for p, row in encoded if p.prompt.key in kept]
    decided = [p for p in train if not p.tie]
    steps = max(1, round(config.epochs * len(rows) / config.batch_size))
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=scratch,
                num_train_epochs=config.epochs,
                learning_rate=config.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=round(config.warmup_ratio * steps),
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=config.batch_size // micro,
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                center_rewards_coefficient=config.center_coefficient or None,
                max_length=None,
                seed=config.seed,
                data_seed=config.seed,
                logging_steps=max(1, steps // 50),
                **trainer_arguments(device, dtype),
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[LogProgress("reward")],
        )
        trainer.remove_callback(PrinterCallback)  # LogProgress says the same
        result = trainer.train()
    reward_model = RewardModel(model, tokenizer, Normalization(), device, dtype)
    reference = (
        [(c.prompt, answer) for c in read_candidates(completions) for answer in c.completions]
        if completions
        else [(p.prompt, answer) for p, _ in encoded for answer in (p.chosen, p.rejected)]
    )
    reward_model.normalization = normalization_on(reward_model, reference)
    folder = out / "reward_model"
    folder.mkdir()
    reward_model.save(folder)
    metrics = RewardMetrics(
        held_out_accuracy=accuracy(reward_model, held_out),
        train_accuracy=accuracy(reward_model, decided[: len(held_out) * 2]),
        train_pairs=len(rows),
        held_out_pairs=len(held_out),
        too_long=too_long,
        steps=result.global_step,
        loss=result.training_loss,
        reference_mean=reward_model.normalization.mean,
        reference_std=reward_model.normalization.std,
    )
    on = counted(len(held_out), "pair")
    logger.info("held-out accuracy %.3f on %s", metrics.held_out_accuracy, on)
    return metrics


def split_by_prompt(
    pairs: Sequence[PreferencePair], held_out_fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training pairs and held-out pairs; all pairs of a prompt fall on one side. Ties measure no
    accuracy: prompts that hold nothing else stay in training, and held-out ones are left out.

    Raises:
        InputError: fewer than two prompts with a preference.
    """
    prompts = sorted({pair.prompt.key for pair in pairs if not pair.tie})
    if len(prompts) < 2:
        raise InputError(
            f"the pairs are of {len(prompts)} prompt; at least 2 are needed, one to train on and "
            "one to measure accuracy"
        )
    random.Random(f"held-out-{seed}").shuffle(prompts)
    count = min(max(1, round(len(prompts) * held_out_fraction)), len(prompts) - 1)
    held_out = set(prompts[:count])
    return (
        [p for p in pairs if p.prompt.key not in held_out],
        [p for p in pairs if p.prompt.key in held_out and not p.tie],
    )


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, max_length: int
) -> dict[str, object] | None:
    """RewardTrainer's tokenised columns, or None when a side is longer than `max_length`. Made
    here rather than by the trainer, so that training and scoring see the same tokens."""
    prompt = prompt_ids(tokenizer, pair.prompt)
    chosen = prompt + completion_ids(tokenizer, pair.prompt, pair.chosen)
    rejected = prompt + completion_ids(tokenizer, pair.prompt, pair.rejected)
    if max(len(chosen), len(rejected)) > max_length:
        return None
    return {"chosen_ids": chosen, "rejected_ids": rejected, "margin": pair.margin}


def accuracy(model: RewardModel, pairs: Sequence[PreferencePair]) -> float:
    """Share of pairs whose chosen completion scores higher; equal scores count one half."""
    prompts = [p.prompt for p in pairs]
    chosen = model.raw_scores(prompts, [p.chosen for p in pairs])
    rejected = model.raw_scores(prompts, [p.rejected for p in pairs])
    right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return right.mean().item()


def normalization_on(
    model: RewardModel, reference: Sequence[tuple[Prompt, Completion]]
) -> Normalization:
    """Mean and standard deviation of the raw scores on the reference completions."""
    scores = model.raw_scores([p for p, _ in reference], [a for _, a in reference])
    scores = scores.to(torch.float64)
    if not torch.isfinite(scores).all():
        raise InputError(
            "the trained reward model gives scores that are no numbers: lower reward.learning_rate"
        )
    std = scores.std().item() if len(reference) > 1 else 1.0
    return Normalization(mean=scores.mean().item(), std=std if std > 1e-8 else 1.0)
