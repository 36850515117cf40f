"""Which pairs a reward model learns from, and which only measure it: split by prompt, the same in
every round, with a share of the pairs of earlier rounds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from labeling.errors import InputError
from labeling.records import PreferencePair
from labeling.wording import counted
from reward.encoding import completion_ids, prompt_ids


@dataclass(frozen=True)
class Encoded:
    """A pair, and RewardTrainer's tokenised columns of it."""

    pair: PreferencePair
    row: dict[str, object]


@dataclass(frozen=True)
class Split:
    """Pairs to learn from, and pairs of other prompts that only measure."""

    train: list[Encoded]
    held_out: list[Encoded]


def split_by_prompt(
    rounds: Sequence[Sequence[Encoded]], held_out_fraction: float, seed: int
) -> tuple[Split, Split]:
    """The split of the last round's pairs, and that of all earlier ones'; all pairs of a prompt, in
    every round, fall on one side. One side may be empty where the last round has few prompts that
    earlier rounds did not have. Ties measure no accuracy: prompts that hold nothing else stay in
    training, and those of held-out prompts are left out.

    Raises:
        InputError: there is nothing to train on, or to measure accuracy on, in any round.
    """
    keys = [{e.pair.prompt.key for e in pairs if not e.pair.tie} for pairs in rounds]
    held_out = held_out_prompts(keys, held_out_fraction, seed)
    prompts = set().union(*keys)
    if not held_out or held_out == prompts:
        raise InputError(
            f"the pairs are of {counted(len(prompts), 'prompt')} with a preference; at least 2 are "
            "needed, one to train on and one to measure accuracy"
        )

    def split(pairs: Sequence[Encoded]) -> Split:
        return Split(
            [e for e in pairs if e.pair.prompt.key not in held_out],
            [e for e in pairs if e.pair.prompt.key in held_out and not e.pair.tie],
        )

    return split(rounds[-1]), split([e for pairs in rounds[:-1] for e in pairs])


def held_out_prompts(
    rounds: Sequence[Collection[str]], held_out_fraction: float, seed: int
) -> set[str]:
    """Which prompts are held out, given the keys of each round's, in order.

    A prompt's own digest says whether it falls into the fraction, so it does so in every round. Of
    each round at least one is held out and not all are, as far as it has prompts that are new: no
    round changes what an earlier one decided, and nothing is measured on what was learned before.
    """
    held_out: set[str] = set()
    learned: set[str] = set()
    for keys in rounds:
        place = {key: _place(key, seed) for key in set(keys) - held_out - learned}
        new = sorted(place, key=place.__getitem__)
        count = sum(place[key] < held_out_fraction for key in new)
        if held_out.isdisjoint(keys):
            count = max(count, 1)
        if learned.isdisjoint(keys):
            count = min(count, len(new) - 1)
        held_out |= set(new[:count])
        learned |= set(new[count:])
    return held_out


def _place(key: str, seed: int) -> float:
    """Where a prompt falls in [0, 1): evenly spread, the same in every file."""
    digest = hashlib.sha256(f"held-out-{seed}-{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def share_of(
    earlier: Sequence[Encoded], new: int, share: float | None, seed: int
) -> Sequence[Encoded]:
    """Of the earlier pairs as many, chosen by the seed, as make up `share` of them and the `new`
    ones together; all of them where there are no more, or without a share."""
    if share is None:
        return earlier
    count = round(new * share / (1 - share))
    return random.Random(f"earlier-{seed}").sample(list(earlier), min(count, len(earlier)))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], max_length: int
) -> list[Encoded]:
    """The pairs that have at most `max_length` tokens. Encoded here rather than by the trainer, so
    that training and scoring see the same tokens."""
    return [Encoded(p, row) for p in pairs if (row := _encode_pair(tokenizer, p, max_length))]


def _encode_pair(
    tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, max_length: int
) -> dict[str, object] | None:
    prompt = prompt_ids(tokenizer, pair.prompt)
    chosen = prompt + completion_ids(tokenizer, pair.prompt, pair.chosen)
    rejected = prompt + completion_ids(tokenizer, pair.prompt, pair.rejected)
    if max(len(chosen), len(rejected)) > max_length:
        return None
    return {"chosen_ids": chosen, "rejected_ids": rejected, "margin": pair.margin}
