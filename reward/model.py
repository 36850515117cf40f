"""The reward model: a sequence classifier with one output, and the normalisation of its scores."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from labeling.errors import InputError
from labeling.records import Completion, Prompt
from reward.batches import by_length, pad_right
from reward.compute import autocast
from reward.config import SCORING_TOKENS
from reward.encoding import completion_ids, give_pad_token, load_tokenizer, prompt_ids
from reward.loading import load_model

NORMALIZATION = "normalization.json"


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of the raw scores on the reference completions."""

    mean: float = 0.0
    std: float = 1.0


class RewardModel:
    """Scores completions: the raw output at the last token, normalised."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        normalization: Normalization,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        model.to(device)  # type: ignore[arg-type]
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.normalization = normalization
        self.device = device
        self.dtype = dtype

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> RewardModel:
        """Load what `save` wrote, or any sequence classifier with one label (not normalised).

        Raises:
            InputError: the folder holds no such model.
        """
        model = load_model(AutoModelForSequenceClassification, str(folder), "a reward model")
        if model.config.num_labels != 1:
            raise InputError(
                f"{folder} gives {model.config.num_labels} outputs; a reward model has one"
            )
        score_in_float32(model)
        path = Path(folder) / NORMALIZATION
        saved = json.loads(path.read_text()) if path.is_file() else {}
        return cls(model, load_tokenizer(str(folder)), Normalization(**saved), device, dtype)

    def save(self, folder: Path) -> None:
        """Write safetensors, tokenizer and `normalization.json`."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        partial = folder / (NORMALIZATION + ".partial")
        partial.write_text(json.dumps(asdict(self.normalization)))
        os.replace(partial, folder / NORMALIZATION)

    def raw_scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Tensor:
        """Unnormalised scores, float32 `(N,)` on the CPU, in the order given."""
        ids = [
            prompt_ids(self.tokenizer, p) + completion_ids(self.tokenizer, p, c)
            for p, c in zip(prompts, completions, strict=True)
        ]
        return score_tokens(self.model, ids, self.dtype)

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Normalised scores: mean 0 and standard deviation 1 on the reference completions."""
        raw = self.raw_scores(prompts, completions)
        return ((raw - self.normalization.mean) / self.normalization.std).tolist()


@torch.no_grad()
def score_tokens(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], dtype: torch.dtype
) -> Tensor:
    """A classifier's output at the last token of each sequence, float32 `(N,)` on the CPU, in the
    order given; as many sequences at once as SCORING_TOKENS holds."""
    device = model.device
    pad = model.config.get_text_config().pad_token_id
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    without = {"use_cache": False} if takes_cache else {}  # nobody reads it
    scores = torch.empty(len(sequences))
    lengths = {i: len(ids) for i, ids in enumerate(sequences)}
    for rows in by_length(lengths, SCORING_TOKENS[device.type]):
        ids, mask = pad_right([sequences[i] for i in rows], pad)
        with autocast(device, dtype):
            logits = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), **without
            ).logits
        scores[rows] = logits[:, 0].float().cpu()
    return scores


def from_policy(policy: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fresh reward model on the policy's trunk: head N(0, 1/√(d+1)) (Stiennon et al. 2020), and
    a pad token of its own.

    The score is read at the last token that is not padding. Where pad and EOS are one token, that
    silently becomes the token before EOS, so a tokenizer without a pad token apart gets one.

    Raises:
        InputError: the policy cannot be loaded as a sequence classifier.
    """
    tokenizer = load_tokenizer(policy)
    torch.manual_seed(seed)
    model = load_model(
        AutoModelForSequenceClassification,
        policy,
        "the trunk of a reward model",
        new=("score", "classifier"),
        num_labels=1,
    )
    give_pad_token(model, tokenizer)
    score_in_float32(model)
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.normal_(0.0, 1 / math.sqrt(head.in_features + 1), generator=generator)
    return model, tokenizer


def score_in_float32(model: PreTrainedModel) -> None:
    """Keep the head out of autocast, in training and scoring alike: bfloat16 has 8 bits, so scores
    would move in steps of a hundredth, and close completions would tie."""
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):
        head.register_forward_hook(_in_float32)


def _in_float32(head: nn.Linear, hidden: tuple[Tensor], _rounded: Tensor) -> Tensor:
    with torch.autocast(hidden[0].device.type, enabled=False):
        return nn.functional.linear(hidden[0].float(), head.weight, head.bias)
