"""The loop of PPO: rollout, advantages, update, checkpoint, until all iterations are done."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from labeling.errors import InputError
from labeling.records import Prompt
from ppo.checkpoint import Checkpoints
from ppo.config import PPO
from ppo.divergence import check_actor, check_rollout, save_diverged
from ppo.generation import Sampler
from ppo.health import warnings_of
from ppo.imitation import Imitation
from ppo.metrics import Journal, describe, rows_there
from ppo.order import batch_at, counter_seed
from ppo.rewards import Score, shape_scores
from ppo.rollout import Engine, Experience, Rollout, experience_of, read_rollout
from ppo.schedule import learning_rate_at
from ppo.state import State
from ppo.update import Diverged, update

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a run reads and never changes."""

    config: PPO
    prompts: list[Prompt]
    tokens: list[list[int]]
    sampler: Sampler
    score: Score
    imitation: Imitation | None


def run(
    task: Task, engine: Engine, state: State, checkpoints: Checkpoints, out: Path
) -> list[dict[str, float]]:
    """All iterations that are still to be made; the rows of all."""
    config = task.config
    done = _restore(state, checkpoints, rows_there(out))
    if done:
        logger.info("going on after iteration %d of %d", done, config.iterations)
    warned: set[str] = set()
    with Journal(out, done) as journal:

        def keep(iterations: int) -> None:
            journal.sync()
            checkpoints.save(iterations, state.tensors(), state.numbers())

        for iteration in range(done, config.iterations):
            clock = _Clock(engine.actor.device)
            prompts, rollout = _roll_out(task, engine, state, iteration, out)
            clock.lap("rollout")
            if _is_over_budget(rollout, state, config):
                if iteration > done and iteration % config.checkpoint_every:
                    keep(iteration)  # from here on a kill costs this rollout again, no more
                _set_back(rollout, state, config, iteration)
                if iteration not in journal.sampled:
                    # The policy that is left drew the last row's rollout, and draws it again.
                    journal.samples(iteration, *_roll_out(task, engine, state, iteration - 1, out))
                break
            row = _learn(task, engine, state, rollout, iteration, out)
            clock.lap("update")
            journal.metrics(row)
            journal.timings(clock.row(row, rollout, config))
            if iteration % config.samples_every == 0 or iteration + 1 == config.iterations:
                journal.samples(iteration + 1, prompts, rollout)
            for sign, text in warnings_of(journal.rows, config).items():
                if sign not in warned:
                    warned.add(sign)
                    logger.warning("iteration %d: %s", iteration + 1, text)
            _say(row, clock, rollout, config)
            if (iteration + 1) % config.checkpoint_every == 0 or iteration + 1 == config.iterations:
                keep(iteration + 1)
        else:
            if config.kl_budget is not None:  # the last update has not been measured
                _, rollout = _roll_out(task, engine, state, config.iterations, out, scored=False)
                if _is_over_budget(rollout, state, config):
                    _set_back(rollout, state, config, config.iterations)
        return journal.rows


def _restore(state: State, checkpoints: Checkpoints, rows: int) -> int:
    """How many iterations are done already, with `rows` of metrics written; `state` is then that
    after them."""
    found = checkpoints.newest(rows)
    if found is None:
        return 0
    state.restore(found.tensors, found.numbers)
    return found.iterations


def _roll_out(
    task: Task, engine: Engine, state: State, iteration: int, out: Path, scored: bool = True
) -> tuple[list[Prompt], Rollout]:
    """A rollout of the iteration's prompts; without `scored` only its KL means something.

    Raises:
        InputError: its scores or its KL are not finite.
    """
    config = task.config
    chosen = batch_at(
        iteration, config.rollout_batch_size, len(task.prompts), config.seed, "prompts"
    )
    prompts, tokens = [task.prompts[i] for i in chosen], [task.tokens[i] for i in chosen]
    drawn, completions = task.sampler.draw(tokens, counter_seed(config.seed, iteration, "rollout"))
    raw = torch.tensor(task.score(prompts, completions) if scored else [0.0] * len(prompts))
    scores = shape_scores(raw, [c.finished for c in completions], config, state.moments)
    rollout = read_rollout(engine, config, tokens, drawn, completions, scores)
    try:
        check_rollout(rollout, iteration)
    except Diverged as error:
        experience = experience_of(rollout, config, state.kl.coefficient)
        raise _stopped(error, out, rollout, experience) from None
    return prompts, rollout


def _learn(
    task: Task, engine: Engine, state: State, rollout: Rollout, iteration: int, out: Path
) -> dict[str, float]:
    """One update; the iteration's row of metrics."""
    config = task.config
    experience = experience_of(rollout, config, state.kl.coefficient)
    learning_rate = learning_rate_at(iteration, config)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    try:
        updated = update(
            engine, state.optimizer, rollout, experience, config, iteration, task.imitation
        )
        if iteration + 1 == config.iterations:
            check_actor(engine, rollout, config.temperature)
    except Diverged as error:
        raise _stopped(error, out, rollout, experience) from None
    row = {"iteration": iteration + 1, "episode": (iteration + 1) * config.rollout_batch_size}
    described = describe(rollout, experience, state.kl.coefficient)
    if iteration >= config.critic_warmup:  # until then the KL is 0, and says nothing about β
        state.kl.update(described["objective/kl"], config.rollout_batch_size)
    return row | described | updated | {"lr": learning_rate}


def _stopped(error: Diverged, out: Path, rollout: Rollout, experience: Experience) -> InputError:
    """Keeps the batch; the line for people."""
    folder = save_diverged(out / "diverged", rollout, experience, error)
    return InputError(f"{error} (the batch is in {folder})")


def _is_over_budget(rollout: Rollout, state: State, config: PPO) -> bool:
    """Whether the policy that drew this rollout passed the KL budget; one that did not is kept."""
    if config.kl_budget is None:
        return False
    if rollout.kl.mean().item() > config.kl_budget and state.within:
        return True
    state.remember_actor()
    return False


def _set_back(rollout: Rollout, state: State, config: PPO, iteration: int) -> None:
    """The actor becomes the last one within the budget."""
    state.recall_actor()
    logger.warning(
        "the KL reached %.2f nats after iteration %d, over ppo.kl_budget %.2f: PPO ends with the "
        "policy of one iteration before",
        rollout.kl.mean().item(),
        iteration,
        config.kl_budget,
    )


def _say(row: dict[str, float], clock: _Clock, rollout: Rollout, config: PPO) -> None:
    seconds = sum(clock.seconds.values())
    logger.info(
        "iteration %d/%d: score %.3f, KL %.2f, entropy %.3f, %d tokens each, %.1f s, %d tokens/s",
        row["iteration"],
        config.iterations,
        row["objective/scores"],
        row["objective/kl"],
        row["objective/entropy"],
        round(row["response/length"]),
        seconds,
        sum(rollout.sequences.response_lengths) / seconds,
        extra={"progress": (int(row["iteration"]), config.iterations), "metrics": row},
    )


class _Clock:
    """Seconds of an iteration's parts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part that ends here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now

    def row(self, row: dict[str, float], rollout: Rollout, config: PPO) -> dict[str, float]:
        """Seconds, and tokens a second: of responses drawn, and of prompts and responses learned
        from."""
        sequences = rollout.sequences
        drawn = sum(sequences.response_lengths)
        epochs = row["policy/minibatches"] / config.minibatches  # fewer where it stopped early
        learned = (drawn + sum(sequences.prompt_lengths)) * epochs
        return {
            "iteration": row["iteration"],
            **self.seconds,
            "rollout_tokens_per_second": drawn / self.seconds["rollout"],
            "update_tokens_per_second": learned / self.seconds["update"],
        }
