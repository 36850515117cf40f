"""The batch on which a run broke, kept for who wants to know why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from ppo.rollout import Experience, Rollout
from ppo.update import Diverged


def save_diverged(folder: Path, rollout: Rollout, experience: Experience, error: Diverged) -> Path:
    """Write `batch.safetensors` with all tensors of the rollout, and `error.json` with the rows of
    the minibatch that broke; replaces what an earlier run left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {
        "input_ids": rollout.sequences.input_ids,
        "mask": rollout.sequences.mask,
        "logprobs": rollout.logprobs,
        "ref_logprobs": rollout.ref_logprobs,
        "values": rollout.values,
        "raw_scores": rollout.raw_scores,
        "scores": rollout.scores,
        "rewards": experience.rewards,
        "advantages": experience.advantages,
        "returns": experience.returns,
    }
    # Copies: raw and shaped scores may be one tensor, which safetensors refuses to write twice.
    copies = {k: v.to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    save_file(copies, folder / "batch.safetensors")
    (folder / "error.json").write_text(
        json.dumps(
            {
                "error": str(error),
                "rows": error.rows,
                "prompt_lengths": rollout.sequences.prompt_lengths,
                "responses": [completion.text for completion in rollout.completions],
            },
            ensure_ascii=False,
            indent=1,
        ),
        encoding="utf-8",
    )
    return folder
