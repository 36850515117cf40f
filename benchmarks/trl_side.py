"""TRL's half of `ppo_vs_trl.py`: whole steps of the PPOTrainer of TRL 1.12.0, timed by hooks that
change nothing of what it computes.

    PYTHONPATH=benchmarks/.trl-1.12 python benchmarks/trl_side.py S --steps 5 < /dev/null

Settings are the fastest that were found: no gradient checkpointing, one micro-batch a minibatch,
the rollout in one batch (batches of 32 or 16 are slower), and no KV cache outside generation, which
the trainer would fill in every forward pass of the update (some 8 % slower at size S). On a GPU the
rollout is in bfloat16 too, which the trainer itself would leave in float32.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from typing import Any

import ppo_work
import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class StepTimes(TrainerCallback):
    """A step lasts from the end of the one before it to `on_step_end`."""

    def __init__(self, meter: ppo_work.Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *_arguments: Any, **_more: Any) -> None:
        self.meter.start()

    def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
        self.meter.lap("update")
        self.meter.end_step()


def time_sections(meter: ppo_work.Meter) -> None:
    """The trainer's module-level functions tell where a section ends: `batch_generation` returns,
    or `forward` is called for the first time in a step on policy and critic together."""
    generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def timed_generate(*arguments: Any, **more: Any) -> Any:
        output = generate(*arguments, **more)
        meter.lap("generate")
        return output

    def timed_forward(model: torch.nn.Module, *arguments: Any, **more: Any) -> Any:
        updates = isinstance(model, ppo_trainer.PolicyAndValueWrapper)
        if updates and "score" not in meter.sections:
            meter.lap("score")
        return forward(model, *arguments, **more)

    ppo_trainer.batch_generation = timed_generate
    ppo_trainer.forward = timed_forward


def in_bfloat16(device: torch.device) -> None:
    """The trainer's `bf16` is for the update's pass alone: responses, the reference, values and
    scores of the rollout would be computed in float32. Call by call, since autocast keeps the
    weights that it has rounded until it ends, and optimizer steps change them."""

    def rounded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            with torch.autocast(device.type, torch.bfloat16):
                return function(*arguments, **more)

        return call

    for name in ("batch_generation", "forward", "get_reward"):
        setattr(ppo_trainer, name, rounded(getattr(ppo_trainer, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=list(ppo_work.SHAPES))
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    assert trl.__version__ == "1.12.0", f"this is TRL {trl.__version__}"
    torch.set_num_threads(1)

    shape = ppo_work.SHAPES[options.size]
    work = ppo_work.make_work(shape)
    tokenizer = ppo_work.make_tokenizer()
    meter = ppo_work.Meter(torch.device(options.device))

    policy = ppo_work.make_policy(shape)
    reference = copy.deepcopy(policy)
    scorer = ppo_work.make_scorer(shape)
    critic = copy.deepcopy(scorer)
    for model in (policy, reference, critic):
        model.config.use_cache = False
    policy.generation_config.use_cache = True
    ppo_work.force_lengths(policy, work)
    if options.device == "cuda":
        in_bfloat16(torch.device(options.device))
    time_sections(meter)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                use_cpu=options.device == "cpu",
                bf16=options.device == "cuda",
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                num_sample_generations=0,
                total_episodes=ppo_work.PROMPTS * (options.steps + 1),
                per_device_train_batch_size=ppo_work.PROMPTS,
                gradient_accumulation_steps=1,
                num_mini_batches=ppo_work.MINIBATCHES,
                num_ppo_epochs=ppo_work.EPOCHS,
                local_rollout_forward_batch_size=ppo_work.PROMPTS,
                response_length=ppo_work.MAX_NEW_TOKENS,
                stop_token="eos",
                temperature=1.0,
                learning_rate=ppo_work.LEARNING_RATE,
                kl_coef=ppo_work.KL_COEF,
                lam=ppo_work.LAMBDA,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=scorer,
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": work.prompts}),
            callbacks=[StepTimes(meter)],
        )
        trainer.train()
    meter.report(work, policy, critic=True)


if __name__ == "__main__":
    main()
