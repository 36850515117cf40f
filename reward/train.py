"""Preference pairs → a reward model, with TRL's RewardTrainer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from labeling.errors import InputError
from labeling.pair_table import read_pairs
from labeling.records import Completion, PreferencePair, Prompt, read_candidates
from labeling.wording import counted
from reward.compute import LogProgress, place, trainer_arguments
from reward.config import RewardTraining
from reward.mix import encode_pairs, share_of, split_by_prompt
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
    # In later rounds: how many training pairs are of earlier rounds, the accuracy on the held-out
    # pairs of those, and that of the earlier reward model on the held-out pairs of this round.
    earlier_pairs: int = 0
    earlier_accuracy: float | None = None
    accuracy_before: float | None = None


def train_reward_model(
    config: RewardTraining,
    policy: str,
    pairs: Path,
    out: Path,
    completions: Path | None = None,
    earlier: Sequence[Path] = (),
    start: Path | None = None,
) -> RewardMetrics:
    """Train on the pairs of most prompts, measure on the others, normalise, and write
    `out/reward_model/`.

    A later round goes on with the reward model of an earlier one, and learns from the pairs of all
    rounds: the new ones and a share of the earlier ones (`config.earlier_share`). A prompt that is
    held out in one round is held out in all.

    Args:
        policy: the model whose trunk the reward model starts from; a folder or `name@commit`.
        pairs: preference pairs in TRL's columns (Parquet).
        completions: the reference completions, on which scores are normalised to mean 0 and
            standard deviation 1; without them, the texts of the pairs.
        earlier: the pairs of earlier rounds.
        start: the reward model to go on with, in place of a new head on the policy's trunk.

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
    before = None if start is None else RewardModel.load(start, device, dtype)
    if before is None:
        model, tokenizer = from_policy(policy, config.seed)
    else:
        model, tokenizer = before.model, before.tokenizer
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(config.max_length, context or config.max_length)
    given = read_pairs(pairs)
    encoded = encode_pairs(tokenizer, given, limit)
    too_long = len(given) - len(encoded)
    if not encoded:
        raise InputError(
            f"all {len(given)} pairs are longer than {limit} tokens (reward.max_length and the "
            "model's context); raise reward.max_length, or shorten prompts and max_new_tokens"
        )
    if too_long:
        logger.warning("%s of more than %d tokens left out", counted(too_long, "pair"), limit)
    rounds = [*(encode_pairs(tokenizer, read_pairs(file), limit) for file in earlier), encoded]
    new, old = split_by_prompt(rounds, config.held_out_fraction, config.seed)
    share = config.earlier_share if new.train else None
    replayed = share_of(old.train, len(new.train), share, config.seed)
    if earlier:
        logger.info(
            "learning from %s of this round and %d of %d of earlier rounds",
            counted(len(new.train), "pair"),
            len(replayed),
            len(old.train),
        )
    # Few prompts, all of them learned before: then those of earlier rounds have to tell.
    held_out = [e.pair for e in new.held_out or old.held_out]
    accuracy_before = None if before is None else accuracy(before, held_out)
    learned = [*new.train, *replayed]
    rows = [e.row for e in learned]
    decided = [e.pair for e in learned if not e.pair.tie]
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
        else [(e.pair.prompt, side) for e in encoded for side in (e.pair.chosen, e.pair.rejected)]
    )
    reward_model.normalization = normalization_on(reward_model, reference)
    folder = out / "reward_model"
    folder.mkdir()
    reward_model.save(folder)
    old_held_out = [e.pair for e in old.held_out]
    earlier_accuracy = accuracy(reward_model, old_held_out) if old_held_out else None
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
        earlier_pairs=len(replayed),
        earlier_accuracy=earlier_accuracy,
        accuracy_before=accuracy_before,
    )
    on = counted(len(held_out), "pair")
    logger.info("held-out accuracy %.3f on %s", metrics.held_out_accuracy, on)
    return metrics


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
