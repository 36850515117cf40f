"""Rankloop's half of `ppo_vs_trl.py`: whole PPO steps of its engine, timed section by section.

python benchmarks/rankloop_side.py S --critic shared --steps 5 < /dev/null
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass

import ppo_work
import torch
from transformers import PreTrainedModel

from labeling.records import Completion
from ppo.config import PPO, Generation
from ppo.decoding import Decoder
from ppo.policy import ActorCritic, separate_critic
from ppo.rewards import RunningMoments, shape_scores
from ppo.rollout import Engine, experience_of, read_rollout
from ppo.state import State
from ppo.update import update
from reward.model import score_tokens

FINISHED = [True] * ppo_work.PROMPTS


@dataclass(frozen=True)
class Side:
    """Everything that a step needs."""

    config: PPO
    engine: Engine
    state: State
    decoder: Decoder
    scorer: PreTrainedModel

    @classmethod
    def build(cls, shape: ppo_work.Shape, critic: str, device: torch.device) -> Side:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        policy = ppo_work.make_policy(shape).to(device)
        config = PPO(
            critic=critic,
            rollout_batch_size=ppo_work.PROMPTS,
            epochs=ppo_work.EPOCHS,
            minibatches=ppo_work.MINIBATCHES,
            max_new_tokens=ppo_work.MAX_NEW_TOKENS,
            learning_rate=ppo_work.LEARNING_RATE,
            kl_coef=ppo_work.KL_COEF,
            lam=ppo_work.LAMBDA,
        )
        reference = copy.deepcopy(policy).requires_grad_(False)
        own = separate_critic(policy) if critic == "separate" else None
        actor = ActorCritic(policy, own).to(device)
        generation = Generation(
            max_new_tokens=config.max_new_tokens, temperature=config.temperature
        )
        return cls(
            config=config,
            engine=Engine.of(actor, reference, dtype),
            state=State.fresh(actor, config),
            # Without a stop token, the limits alone decide how long a response is.
            decoder=Decoder(
                policy,
                frozenset(),
                generation,
                dtype,
                value_of=actor.value_of if critic == "shared" else None,
            ),
            scorer=ppo_work.make_scorer(shape).to(device),
        )


def step(side: Side, work: ppo_work.Work, iteration: int, meter: ppo_work.Meter) -> None:
    """One PPO step: generate, score (reward, reference, what was not captured, advantages),
    update."""
    config, engine = side.config, side.engine
    drawn = side.decoder.draw(work.prompts, iteration, work.lengths)
    meter.lap("generate")

    whole = [p + r for p, r in zip(work.prompts, drawn.tokens, strict=True)]
    raw = score_tokens(side.scorer, whole, engine.dtype)
    scores = shape_scores(raw, FINISHED, config, RunningMoments())
    completions = [Completion("")] * ppo_work.PROMPTS
    rollout = read_rollout(engine, config, work.prompts, drawn, completions, scores)
    experience = experience_of(rollout, config, config.kl_coef)
    meter.lap("score")

    update(engine, side.state.optimizer, rollout, experience, config, iteration)
    meter.lap("update")
    meter.end_step()
    assert list(rollout.sequences.response_lengths) == work.lengths, "a length was not kept"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=list(ppo_work.SHAPES))
    parser.add_argument("--critic", choices=("shared", "separate"), default="shared")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)

    shape = ppo_work.SHAPES[options.size]
    work = ppo_work.make_work(shape)
    device = torch.device(options.device)
    meter = ppo_work.Meter(device)
    side = Side.build(shape, options.critic, device)
    meter.start()
    for iteration in range(options.steps + 1):
        step(side, work, iteration, meter)
    meter.report(work, side.engine.actor.policy, critic=options.critic == "separate")


if __name__ == "__main__":
    main()
