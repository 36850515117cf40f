"""Rankloop's decoding against transformers' `generate` and transformers' continuous batching.

    python benchmarks/generation.py --sizes S V --json generation.json

All three draw at temperature 1 from the whole vocabulary, in float32 on one thread, for the work
of `ppo_vs_trl.py`: 64 prompts of 32 to 64 random tokens, responses of the same forced lengths
(about 2,050 tokens, 64 at most). Measured are the process' CPU seconds, in milliseconds for each
token of a response, as the median of several repeats after a warm-up. All run in one process and
in turn, so that what else the machine does meets all of them.

How each keeps to the lengths, and what else it does:

- Rankloop (`ppo.decoding.Decoder`) has a limit for each response and no stop token. Rows that have
  ended leave the batch. It alone also keeps log-probabilities and entropies.
- `generate` gets all prompts as one left-padded batch. Its draws are replaced where a response has
  to end, or would end too early (`ppo_work.force_lengths`). Rows that have ended decode on as
  padding, which counts as time but not as tokens.
- Continuous batching gets `max_new_tokens` with each request, and no EOS: what Rankloop gets. That
  takes the manager, for `generate_batch` knows one length for all. Settings are the fastest that
  were found at S and V: all 64 requests at once, at most 512 tokens in a forward pass, a page of
  the cache for each request, no sharing of prefixes. The manager and its cache are made before the
  clock starts; the others make a cache at each repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ppo_vs_trl
import ppo_work
import torch
from ppo_vs_trl import say
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM
from transformers.generation.continuous_batching.utils import WorkloadHints

from ppo.config import Generation
from ppo.decoding import Decoder
from ppo.sequences import pad_left

SIZES = ("S", "V", "M")
REPEATS = 5
RANKLOOP, GENERATE, CONTINUOUS = "Rankloop", "generate", "continuous batching"
BATCH_TOKENS = 512  # in one forward pass of continuous batching

Draw = Callable[[int], list[int]]  # draws all responses once, from a seed; their lengths


@dataclass
class Measured:
    """One size: its model, and each variant's CPU milliseconds a token, repeat by repeat."""

    parameters: int
    response_tokens: int
    repeats: dict[str, list[float]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)  # why a variant does not run here

    def median(self, variant: str) -> float:
        return statistics.median(self.repeats[variant])

    def ratio(self, variant: str) -> float:
        """Its time over Rankloop's: above 1, Rankloop needs less."""
        return self.median(variant) / self.median(RANKLOOP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", nargs="+", choices=list(ppo_work.SHAPES), default=SIZES, metavar="SIZE",
        help=f"of {', '.join(ppo_work.SHAPES)} (default: {' '.join(SIZES)})",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"after the warm-up (default: {REPEATS})"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats is at least 1")
    torch.set_num_threads(1)

    results = {}
    for size in dict.fromkeys(options.sizes):
        results[size] = compare(size, options.repeats)
        if options.json:  # after each size: a run that is stopped leaves what it found
            document = {s: summary(measured) for s, measured in results.items()}
            ppo_vs_trl.write_json(options.json, document)
    print("\n".join(table(results)))


def compare(size: str, repeats: int) -> Measured:
    """All variants at one size, in turn."""
    shape = ppo_work.SHAPES[size]
    work, policy = ppo_work.make_work(shape), ppo_work.make_policy(shape)
    measured = Measured(policy.num_parameters(), sum(work.lengths))
    with contextlib.ExitStack() as stack:
        draws = {RANKLOOP: rankloop(policy, work), GENERATE: generate(policy, work)}
        for name, draw in draws.items():
            say(f"{size}, {name}: warm-up, {measure(draw, work, 0):.3f} ms a token")
        # What runs is worth its figures, even where continuous batching does not.
        try:
            draw = stack.enter_context(continuous_batching(policy, work))
            say(f"{size}, {CONTINUOUS}: warm-up, {measure(draw, work, 0):.3f} ms a token")
            draws[CONTINUOUS] = draw
        except Exception as problem:
            measured.refusals[CONTINUOUS] = f"{type(problem).__name__}: {problem}"
            say(f"{size}, {CONTINUOUS} does not run: {measured.refusals[CONTINUOUS]}")
        for repeat in range(1, repeats + 1):
            for name, draw in draws.items():
                milliseconds = measure(draw, work, repeat)
                measured.repeats.setdefault(name, []).append(milliseconds)
                say(f"{size}, {name}: repeat {repeat}, {milliseconds:.3f} ms a token")
    return measured


def measure(draw: Draw, work: ppo_work.Work, seed: int) -> float:
    """CPU milliseconds a token, of all threads."""
    gc.collect()
    start = time.process_time()
    lengths = draw(seed)
    seconds = time.process_time() - start
    assert lengths == work.lengths, "a length was not kept"
    return 1e3 * seconds / sum(lengths)


def rankloop(policy: LlamaForCausalLM, work: ppo_work.Work) -> Draw:
    decoder = Decoder(policy, frozenset(), Generation(max_new_tokens=ppo_work.MAX_NEW_TOKENS))

    def draw(seed: int) -> list[int]:
        return [len(r) for r in decoder.draw(work.prompts, seed, work.lengths).tokens]

    return draw


def generate(policy: LlamaForCausalLM, work: ppo_work.Work) -> Draw:
    """From now on `policy.generate` keeps to the forced lengths."""
    ppo_work.force_lengths(policy, work)
    ids, mask = pad_left(work.prompts, ppo_work.PAD)
    settings = plain_sampling(eos_token_id=ppo_work.EOS)
    model: Any = policy

    def draw(seed: int) -> list[int]:
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids, attention_mask=mask.long(), generation_config=settings
        )
        return (output[:, ids.shape[1] :] != ppo_work.PAD).sum(dim=1).tolist()

    return draw


@contextlib.contextmanager
def continuous_batching(policy: LlamaForCausalLM, work: ppo_work.Work) -> Iterator[Draw]:
    """The manager's thread lives, and waits between repeats, until the end.

    Raises:
        Exception: whatever transformers raises where it cannot run.
        RuntimeError: from the draw, if a request fails or the manager's thread has ended.
    """
    prompt, response = ppo_work.PROMPT_LENGTHS[1], ppo_work.MAX_NEW_TOKENS
    manager_of: Any = policy.continuous_batching_context_manager
    with manager_of(
        generation_config=plain_sampling(eos_token_id=-1),
        # Without these it would take 60 % of the machine's memory for its cache.
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=prompt + response,
            num_blocks=ppo_work.PROMPTS,
            max_batch_tokens=BATCH_TOKENS,
            allow_block_sharing=False,
        ),
        workload_hints=WorkloadHints(prompt, response, ppo_work.PROMPTS),
    ) as manager:

        def draw(seed: int) -> list[int]:
            torch.manual_seed(seed)
            requests = [
                manager.add_request(ids, max_new_tokens=limit)
                for ids, limit in zip(work.prompts, work.lengths, strict=True)
            ]
            lengths: dict[str, int] = {}
            while len(lengths) < len(requests):
                result = manager.get_result(timeout=1)
                if result is not None and result.error is None:
                    lengths[result.request_id] = len(result.generated_tokens)
                elif result is not None:
                    raise RuntimeError(result.error)
                elif not manager.is_running():
                    raise RuntimeError("the manager's thread has ended; see what it logged")
            return [lengths[request] for request in requests]

        yield draw


def plain_sampling(eos_token_id: int) -> GenerationConfig:
    """The policy's own distribution, whole."""
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=ppo_work.MAX_NEW_TOKENS,
        eos_token_id=eos_token_id,
        pad_token_id=ppo_work.PAD,
    )


def summary(measured: Measured) -> dict[str, Any]:
    """The figures of one size. Ratios are above 1 where Rankloop needs less."""
    return {
        **asdict(measured),
        "ms_a_token": {name: measured.median(name) for name in measured.repeats},
        "ratios": {name: measured.ratio(name) for name in measured.repeats if name != RANKLOOP},
        "machine": machine(),
    }


def table(results: dict[str, Measured]) -> Iterator[str]:
    """Markdown: a row for each variant at each size, then where it was measured."""
    yield "| size | variant | CPU ms a token | lowest to highest | over Rankloop's |"
    yield "|---|---|---|---|---|"
    for size, measured in results.items():
        model = f"{size}, {measured.parameters / 1e6:.1f}M"
        for name, repeats in measured.repeats.items():
            spread = f"{min(repeats):.3f} to {max(repeats):.3f}"
            ratio = "" if name == RANKLOOP else f"{measured.ratio(name):.2f}×"
            yield f"| {model} | {name} | {measured.median(name):.3f} | {spread} | {ratio} |"
        for name, reason in measured.refusals.items():
            yield f"| {model} | {name} | does not run: {' '.join(reason.split())} | | |"
    yield ""
    yield ", ".join(f"{what} {which}" for what, which in machine().items()) + "; one thread, fp32."


def machine() -> dict[str, str]:
    """Processor and versions, without TRL's: it takes no part."""
    return {what: which for what, which in ppo_vs_trl.machine().items() if what != "trl"}


if __name__ == "__main__":
    main()
