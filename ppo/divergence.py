"""Whether a run still is sound, and the batch on which it broke, kept for who wants to know why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from ppo.rollout import Engine, Experience, Rollout
from ppo.update import ADVICE, Diverged
from reward.compute import autocast

_PROBED = 4  # responses on which the last policy is tried


def check_rollout(rollout: Rollout, iteration: int) -> None:
    """
    Raises:
        Diverged: a score, or the KL of a response, is not finite.
    """
    broke = f"an earlier step broke the policy; {ADVICE}" if iteration else "the policy is broken"
    for what, values, cause in (
        ("reward", rollout.raw_scores, "the reward model is broken; train it anew"),
        ("KL", rollout.kl, broke),
    ):
        rows = (~values.isfinite()).nonzero().flatten().tolist()
        if rows:
            raise Diverged(
                f"the {what} of {len(rows)} of {len(values)} responses is no finite number in "
                f"iteration {iteration + 1}: {cause}",
                rows,
            )


@torch.no_grad()
def check_actor(engine: Engine, rollout: Rollout, temperature: float) -> None:
    """What the last step left, which no rollout and no gradient looks at any more.

    Raises:
        Diverged: a parameter is not finite, or what policy and value say of a few responses.
    """
    actor, rows = engine.actor, range(min(_PROBED, len(rollout.completions)))
    part = rollout.sequences.part(rows)
    with autocast(actor.device, engine.dtype):
        states = actor.states(part)
        values = actor.values(part, states)
    read = engine.head.read(states, part.tokens, temperature)
    tried = [*read, values, *actor.parameters()]
    if not torch.stack([each.isfinite().all() for each in tried]).all():
        raise Diverged(f"PPO's last step left a policy or value that is not finite; {ADVICE}", rows)


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
