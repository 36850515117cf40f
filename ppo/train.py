"""PPO: rollout, advantages, clipped updates, round and round (Schulman et al. 2017; for language
models Ziegler et al. 2019)."""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labeling.durable import put_in_place, sync
from labeling.errors import InputError
from labeling.records import read_prompts
from labeling.scoring import split_reference
from ppo.checkpoint import Checkpoints
from ppo.config import PPO, Generation
from ppo.decoding import Decoder
from ppo.demonstrations import load_demonstrations
from ppo.generation import Sampler, encode_prompts
from ppo.imitation import Imitation
from ppo.loop import Task, run
from ppo.policy import (
    ActorCritic,
    critic_from_reward_model,
    load_policy,
    save_policy,
    save_value,
    separate_critic,
    stop_tokens,
)
from ppo.rewards import load_score
from ppo.rollout import Engine
from ppo.state import State
from reward.compute import place
from reward.encoding import load_tokenizer
from reward.model import RewardModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PPOMetrics:
    """The last iteration, where the first one began, and how much was drawn."""

    iterations: int
    episodes: int
    response_tokens: int
    first_score: float
    last_score: float
    kl: float
    entropy: float
    kl_coef: float
    clip_fraction: float
    explained_variance: float


def train_ppo(
    config: PPO,
    policy: str,
    prompts: Path,
    out: Path,
    reward_model: Path | None = None,
    reward_function: str | None = None,
    demonstrations: str | None = None,
    reference: str | None = None,
) -> PPOMetrics:
    """Optimise the policy against the reward model, a user's function, or both, with a KL penalty
    to the reference. Writes `out/policy/`, and `out/value.safetensors` with the value head and
    what the critic has of its own. `out/metrics.jsonl` has a row an iteration in TRL's names,
    `out/timings.jsonl` seconds and tokens a second, `out/samples.jsonl` a few responses,
    `out/tensorboard/` all of them.

    Killed and called again with the same `out`, it goes on from its last checkpoint and ends with
    the same bytes (on a CPU with as many threads), timings excepted.

    Args:
        policy: where the policy starts; a folder or `name@commit`.
        prompts: `prompts.parquet`; its training split is used.
        reward_model: what reward.train wrote.
        reward_function: `module_or_file:function` in its place, or beside it (see
            `config.reward_function_weight`).
        demonstrations: what SFT learned from; needed when `config.sft_coef` > 0.
        reference: what the KL is measured from, of the same tokens; without it, `policy`.

    Raises:
        InputError: neither reward is given, the SFT term has no demonstrations, something cannot
            be loaded, the reference reads other tokens, the checkpoints in `out` are of another
            run, or the loss diverged.
    """
    device, dtype = place(config)
    judge = None if reward_model is None else RewardModel.load(reward_model, device, dtype)
    score = load_score(judge, reward_function, config.reward_function_weight)
    tokenizer = load_tokenizer(policy)
    model = load_policy(policy)
    imitation = _imitation(config, demonstrations, model, tokenizer)
    texts, tokens = encode_prompts(
        tokenizer, read_prompts(prompts, "train"), model, config.max_new_tokens
    )
    anchor = copy.deepcopy(model) if reference is None else _reference(reference, tokenizer)
    anchor = anchor.to(device).requires_grad_(False)  # type: ignore[arg-type]
    actor = _actor(config, model, judge, tokenizer).to(device)
    engine = Engine.of(actor, anchor, dtype)
    decoder = Decoder(
        model,
        stop_tokens(model, tokenizer),
        Generation(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        dtype,
        actor.value_of if actor.critic is None else None,
    )
    task = Task(config, texts, tokens, Sampler(decoder, tokenizer), score, imitation)
    state = State.fresh(actor, config)
    models = [model] if judge is None else [model, judge.model]
    if reference is not None:
        models.append(anchor)
    read: list[object] = [tokens, judge and judge.normalization, imitation and imitation.examples]
    if reward_function is not None:
        module, name = split_reference(reward_function)
        file = Path(module)  # what it holds counts, not where it lies
        read.append((file.read_bytes() if file.is_file() else module, name))
    checkpoints = Checkpoints(out / "checkpoints", _identity(config, dtype, models, read))
    done = checkpoints.completed()
    if done is not None and (out / "policy").is_dir():
        return PPOMetrics(**done)
    rows = run(task, engine, state, checkpoints, out)
    folder = out / "policy.partial"
    save_policy(model, tokenizer, folder)
    for file in folder.iterdir():
        sync(file)
    shutil.rmtree(out / "policy", ignore_errors=True)  # of a run that was killed just here
    put_in_place(folder, out / "policy")
    save_value(actor, out / "value.safetensors")
    shutil.rmtree(out / "diverged", ignore_errors=True)  # of an earlier try
    metrics = _metrics(rows, config)
    checkpoints.complete(asdict(metrics))
    return metrics


def _metrics(rows: Sequence[dict[str, float]], config: PPO) -> PPOMetrics:
    last = rows[-1]
    return PPOMetrics(
        iterations=len(rows),
        episodes=len(rows) * config.rollout_batch_size,
        response_tokens=int(sum(r["response/tokens"] for r in rows)),
        first_score=rows[0]["objective/scores"],
        last_score=last["objective/scores"],
        kl=last["objective/kl"],
        entropy=last["objective/entropy"],
        kl_coef=last["objective/kl_coef"],
        clip_fraction=last["policy/clipfrac"],
        explained_variance=last["val/explained_variance"],
    )


def _reference(reference: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"the reference {reference} has another vocabulary than the policy: there is no KL "
            "between them; take one that the policy came from"
        )
    return load_policy(reference)


def _actor(
    config: PPO,
    model: PreTrainedModel,
    judge: RewardModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> ActorCritic:
    if config.critic == "shared":
        return ActorCritic(model)
    if config.critic == "separate":
        return ActorCritic(model, separate_critic(model))
    if judge is None:
        raise InputError("ppo.critic 'reward_model' needs a reward model: use 'separate'")
    critic, head = critic_from_reward_model(judge, tokenizer)
    actor = ActorCritic(model, critic)
    actor.value_head = head
    return actor


def _identity(
    config: PPO,
    dtype: torch.dtype,
    models: Sequence[PreTrainedModel],
    texts: Sequence[object],
) -> dict[str, Any]:
    """What makes a run this one and no other; `texts` are what it reads beside the models."""
    anywhere = {"device", "dtype", "micro_batch_tokens", "checkpoint_every", "samples_every"}
    anywhere.add("reward_function")  # its content is among the texts
    return {
        **config.model_dump(mode="json", exclude=anywhere),
        "precision": str(dtype),
        "models": [_fingerprint(model) for model in models],
        "data": [hashlib.sha256(repr(text).encode()).hexdigest() for text in texts],
    }


def _fingerprint(model: PreTrainedModel) -> str:
    """Of the beginning of each parameter, which training changes like the rest of it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        start = parameter.detach().flatten()[:1024].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + start.numpy().tobytes())
    return digest.hexdigest()


def _imitation(
    config: PPO,
    demonstrations: str | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Imitation | None:
    if not config.sft_coef:
        return None
    if demonstrations is None:
        raise InputError("ppo.sft_coef needs demonstrations: give sft.data, or set it to 0")
    examples, _ = load_demonstrations(
        demonstrations, model, tokenizer, config.sft_max_length, "ppo.sft_max_length"
    )
    return Imitation(examples, config)
