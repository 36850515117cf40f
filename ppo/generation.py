"""Completions: drawn from a policy for labelers, for rollouts and for evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labeling.errors import InputError
from labeling.records import (
    Candidates,
    Completion,
    Prompt,
    read_candidates,
    read_prompts,
    write_candidates,
)
from ppo.config import Generation, Sampling
from ppo.decoding import Decoder, Drawn
from ppo.order import counter_seed
from ppo.policy import load_policy, stop_tokens
from reward.compute import place
from reward.encoding import apply_template, load_tokenizer, prompt_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingMetrics:
    """What was drawn for the labelers."""

    prompts: int
    completions: int
    finished: float
    distinct: float
    left_out: int
    mean_tokens: float


@dataclass(frozen=True)
class Response:
    """One drawn completion: its tokens (the stop token included) and its text."""

    tokens: list[int]
    completion: Completion


class Sampler:
    """Draws completions: tokens from a decoder, text from the tokenizer."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.stop = frozenset(decoder.stop.tolist())

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        generation: Generation,
        dtype: torch.dtype = torch.float32,
    ) -> Sampler:
        """Draws from `model` as `generation` says; nothing is taken from the model's own
        generation config, which in published chat models truncates the distribution."""
        stop = stop_tokens(model, tokenizer)
        return cls(Decoder(model, stop, generation, dtype), tokenizer)

    def draw(self, prompts: Sequence[Sequence[int]], seed: int) -> tuple[Drawn, list[Completion]]:
        """One completion for each prompt (token ids), in the order given."""
        drawn = self.decoder.draw(prompts, seed)
        return drawn, [self._completion(tokens) for tokens in drawn.tokens]

    def draw_all(
        self, prompts: Sequence[Sequence[int]], seed: int, batch_size: int, what: str
    ) -> list[Response]:
        """`draw` for any number of prompts, with progress; similar lengths share a batch."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        responses: list[Response | None] = [None] * len(prompts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            drawn, completions = self.draw(
                [prompts[i] for i in rows], counter_seed(seed, what, start)
            )
            for i, tokens, completion in zip(rows, drawn.tokens, completions, strict=True):
                responses[i] = Response(tokens, completion)
            done = start + len(rows)
            logger.info(
                "%s: %d/%d completions",
                what,
                done,
                len(order),
                extra={"progress": (done, len(order))},
            )
        return [response for response in responses if response is not None]

    def _completion(self, tokens: list[int]) -> Completion:
        finished = tokens[-1] in self.stop
        text = self.tokenizer.decode(
            tokens[:-1] if finished else tokens,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return Completion(str(text), finished=finished)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    model: PreTrainedModel,
    max_new_tokens: int,
) -> tuple[list[Prompt], list[list[int]]]:
    """Prompts and their token ids; those that leave no room for `max_new_tokens` in the model's
    context are left out, and said so.

    Raises:
        InputError: none is left.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = (context or 10**9) - max_new_tokens
    encoded = [(p, prompt_ids(tokenizer, p)) for p in prompts]
    kept = [(p, ids) for p, ids in encoded if 0 < len(ids) <= room]
    if not kept:
        raise InputError(
            f"none of {len(encoded)} prompts leaves room for {max_new_tokens} new tokens in the "
            f"model's context of {context}; shorten prompts or max_new_tokens"
        )
    if len(kept) < len(encoded):
        logger.warning(
            "%d of %d prompts left out: longer than %d tokens, the model's context of %s less "
            "max_new_tokens",
            len(encoded) - len(kept),
            len(encoded),
            room,
            context,
        )
    return [p for p, _ in kept], [ids for _, ids in kept]


def choose(
    items: list[Prompt], count: int | None, seed: int, seen: Mapping[str, int] | None = None
) -> list[Prompt]:
    """`count` prompts chosen by the seed, in file order; all when there are no more. `seen` says by
    their keys how often prompts were taken before: those that were taken least often come first."""
    if count is None or count >= len(items):
        return items
    generator = torch.Generator().manual_seed(counter_seed(seed, "choose"))
    order = torch.randperm(len(items), generator=generator).tolist()
    if seen:
        order.sort(key=lambda i: seen.get(items[i].key, 0))  # stable: the seed decides among equals
    return [items[i] for i in sorted(order[:count])]


def sample_completions(
    config: Sampling,
    policy: str,
    prompts: Path,
    out: Path,
    earlier: Sequence[Path] = (),
) -> SamplingMetrics:
    """K completions for each training prompt → `out/completions.parquet`.

    Completions that equal another of the same prompt are drawn again, `distinct_tries` times;
    prompts that still have fewer than two distinct ones are left out, since nobody can rank them.

    Args:
        earlier: the completions of earlier rounds; their prompts are taken again only when there
            are no others.

    Raises:
        InputError: the policy cannot be loaded, its chat template refuses a prompt (of either
            split), or no prompt can be ranked.
    """
    device, dtype = place(config)
    tokenizer = load_tokenizer(policy)
    model = load_policy(policy).to(device)  # type: ignore[arg-type]
    sampler = Sampler.of(model, tokenizer, config, dtype)
    for prompt in read_prompts(prompts):
        if prompt.messages is not None:  # PPO and evaluation come to the others hours later
            apply_template(tokenizer, prompt.messages, tokenize=False)
    seen = Counter(task.prompt.key for file in earlier for task in read_candidates(file))
    chosen = choose(read_prompts(prompts, "train"), config.prompts, config.seed, seen)
    if repeated := sum(prompt.key in seen for prompt in chosen):
        logger.warning(
            "%d of %d prompts were sampled for in earlier rounds, for there are too few others: "
            "give more prompts, or lower sampling.prompts",
            repeated,
            len(chosen),
        )
    chosen, ids = encode_prompts(tokenizer, chosen, model, config.max_new_tokens)
    k = config.completions_per_prompt
    owners = [i for i in range(len(chosen)) for _ in range(k)]
    drawn = sampler.draw_all(
        [ids[i] for i in owners], config.seed, config.batch_size, "completions"
    )
    groups = [drawn[i * k : (i + 1) * k] for i in range(len(chosen))]
    for attempt in range(config.distinct_tries):
        again = [(i, j) for i, group in enumerate(groups) for j in _repeats(group)]
        if not again:
            break
        fresh = sampler.draw_all(
            [ids[i] for i, _ in again], config.seed, config.batch_size, f"repeats, try {attempt}"
        )
        for (i, j), response in zip(again, fresh, strict=True):
            groups[i][j] = response
    rankable = [(p, g) for p, g in zip(chosen, groups, strict=True) if len(_texts(g)) > 1]
    if not rankable:
        raise InputError(
            f"all {k} completions are the same for each of {len(chosen)} prompts: nothing to rank; "
            "raise sampling.temperature"
        )
    write_candidates(
        [Candidates(p, tuple(r.completion for r in group)) for p, group in rankable],
        out / "completions.parquet",
    )
    flat = [response for _, group in rankable for response in group]
    return SamplingMetrics(
        prompts=len(rankable),
        completions=len(flat),
        finished=sum(r.completion.finished for r in flat) / len(flat),
        distinct=sum(len(_texts(g)) for _, g in rankable) / len(flat),
        left_out=len(chosen) - len(rankable),
        mean_tokens=sum(len(r.tokens) for r in flat) / len(flat),
    )


def _texts(group: Sequence[Response]) -> set[str]:
    return {response.completion.text for response in group}


def _repeats(group: Sequence[Response]) -> list[int]:
    """Places of completions that repeat an earlier one of the same prompt."""
    texts = [response.completion.text for response in group]
    return [j for j, text in enumerate(texts) if text in texts[:j]]
