"""A chat model through every stage: what the models really read, token for token."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

from labeling import simulated
from labeling.config import Pairs, Prompts, SimulatedLabeler
from labeling.pairs import make_pairs
from labeling.prompts import prepare_prompts
from labeling.records import Prompt, read_candidates, read_prompts, write_rankings
from ppo.config import PPO, SFT, Evaluation, Sampling
from ppo.decoding import Decoder
from ppo.evaluate import evaluate_policy
from ppo.generation import sample_completions
from ppo.head import Head
from ppo.sft import train_sft
from ppo.train import train_ppo
from reward.config import RewardTraining
from reward.train import train_reward_model
from tests import tiny

END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
ANSWERS = ["good order", "bad question", "thanks good", "now"]


def talk(word: str, last: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "answers about your order"},
        {"role": "user", "content": f"hello {word}\n\nplease"},
        {"role": "assistant", "content": "the support desk"},
        {"role": "user", "content": last},
    ]


@dataclass
class Seen:
    """The sequences that models read, by step: token ids without padding."""

    kind: str
    folder: Path
    rows: dict[str, set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))
    step: str = ""
    model: str = "policy"

    def note(self, training: bool, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        name = f"{self.step} {self.model}{' in training' if training else ''}"
        for row, valid in zip(ids, torch.ones_like(ids) if mask is None else mask, strict=True):
            if ids.shape[1] == 1:  # a decoding step over the cache
                continue
            read = row[valid.bool()[-len(row) :]].tolist()
            while mask is None and not read[-1]:  # padding at the right, which is never seen
                read.pop()
            self.rows[name].add(tuple(read))

    def expected(self, split: str) -> dict[tuple[int, ...], Prompt]:
        """Prompts of a split by the tokens that transformers itself makes of them."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "model")
        if self.kind == "llama3":
            tokenizer.chat_template = tokenizer.chat_template.replace(
                "strftime_now('%d %b %Y')", "'26 Jul 2024'"
            )
        made = {}
        for prompt in read_prompts(self.folder / "prompts" / "prompts.parquet", split):
            rows = [{"role": m.role, "content": m.content} for m in prompt.messages or ()]
            ids = tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
            made[tuple(ids)] = prompt
        return made

    @property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder / "model")


@pytest.fixture(scope="module", params=sorted(tiny.CHAT))
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A whole miniature round of a chat model, its steps in this process, and what they read."""
    folder = tmp_path_factory.mktemp(request.param)
    seen = Seen(request.param, folder)
    tokenizer = tiny.chat_tokenizer(seen.kind)
    tiny.policy(tokenizer, std=0.1, context=256).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    prompts = [{"prompt": talk(a, f"{b} now")} for a in tiny.WORDS[:4] for b in tiny.WORDS[4:8]]
    demonstrations = [
        {"messages": [*row["prompt"], {"role": "assistant", "content": answer}]}
        for row in prompts
        for answer in ANSWERS
    ]
    for name, rows in (("prompts", prompts), ("sft", demonstrations)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        # These read tokens of their own.
        patch.setattr(Head, "_check", lambda head, model: None)
        patch.setattr(Decoder, "_check", lambda decoder: None)
        # The trunk, for TRL gives a causal language model a forward of its own.
        patch.setattr(LlamaModel, "forward", _noted(LlamaModel.forward, seen))
        classify = LlamaForSequenceClassification.forward
        patch.setattr(LlamaForSequenceClassification, "forward", _named(classify, seen))
        _round(seen)
    return seen


def _noted(forward: Any, seen: Seen) -> Any:
    @functools.wraps(forward)
    def noting(trunk: Any, input_ids: torch.Tensor, *args: Any, **given: Any) -> Any:
        seen.note(trunk.training, input_ids, given.get("attention_mask"))
        return forward(trunk, input_ids, *args, **given)

    return noting


def _named(forward: Any, seen: Seen) -> Any:
    @functools.wraps(forward)
    def naming(model: Any, *args: Any, **given: Any) -> Any:
        seen.model = "reward model"
        try:
            return forward(model, *args, **given)
        finally:
            seen.model = "policy"

    return naming


def _round(seen: Seen) -> None:
    def begin(step: str) -> Path:
        seen.step = step
        out = seen.folder / step
        out.mkdir()
        return out

    source, cut = str(seen.folder / "prompts.jsonl"), {"max_new_tokens": 8, "device": "cpu"}
    prepare_prompts(Prompts(path=source, evaluation_fraction=0.25), source, begin("prompts"))
    prompts = seen.folder / "prompts" / "prompts.parquet"
    data = str(seen.folder / "sft.jsonl")
    sft = SFT(data=data, epochs=15, batch_size=16, learning_rate=2e-2, device="cpu")
    train_sft(sft, str(seen.folder / "model"), data, begin("sft"))
    initial = str(seen.folder / "sft" / "policy")
    sampling = Sampling(completions_per_prompt=3, **cut)
    sample_completions(sampling, initial, prompts, begin("sampling"))
    completions = seen.folder / "sampling" / "completions.parquet"
    labeler = SimulatedLabeler(score="x:y", noise=0)
    rankings = [
        simulated.rank(labeler, task, [float(len(c.text)) for c in task.completions])
        for task in read_candidates(completions)
    ]
    write_rankings(rankings, seen.folder / "labels.parquet")
    make_pairs(Pairs(), completions, seen.folder / "labels.parquet", begin("pairs"))
    pairs = seen.folder / "pairs" / "pairs.parquet"
    reward = RewardTraining(epochs=2, batch_size=8, device="cpu")
    train_reward_model(reward, initial, pairs, begin("reward"), completions)
    reward_model = seen.folder / "reward" / "reward_model"
    ppo = PPO(iterations=2, rollout_batch_size=12, minibatches=2, **cut)
    train_ppo(ppo, initial, prompts, begin("ppo"), reward_model=reward_model)
    aligned = str(seen.folder / "ppo" / "policy")
    out = begin("evaluation")
    evaluate_policy(Evaluation(**cut), initial, aligned, prompts, out, reward_model=reward_model)


def starts(rows: set[tuple[int, ...]], prompts: dict[tuple[int, ...], Prompt]) -> Iterator[Any]:
    """The prompt of each row and what follows it; fails where a row has another beginning."""
    for row in rows:
        (prompt,) = (p for p in prompts if row[: len(p)] == p)
        yield prompt, row[len(prompt) :]


def test_every_stage_reads_the_same_prompt_tokens(seen: Seen) -> None:
    train, held_out = seen.expected("train"), seen.expected("evaluation")
    assert len(train) == 12
    for step, prompts in (
        ("sft policy in training", train | held_out),
        ("sampling policy", train),
        ("reward reward model", train),
        ("ppo policy", train),
        ("ppo reward model", train),
        ("evaluation policy", held_out),
        ("evaluation reward model", held_out),
    ):
        found = {prompt for prompt, _ in starts(seen.rows[step], prompts)}
        assert found == set(prompts), step
    trained = {p for p, _ in starts(seen.rows["reward reward model in training"], train)}
    assert trained < set(train), "held-out prompts are not trained on"
    assert len(seen.rows) == 8, "every step is looked at"


def test_the_reward_model_is_trained_and_asked_with_the_same_tokens(seen: Seen) -> None:
    trained, asked = seen.rows["reward reward model in training"], seen.rows["reward reward model"]
    assert trained
    assert trained < asked  # held-out pairs and repeats are only scored
    train = seen.expected("train")
    said = {(p, text) for p, text in starts(asked, train) if len(text) > 1}
    rolled = {(p, text) for p, text in starts(seen.rows["ppo reward model"], train)}
    assert said & rolled, "the same answer to the same prompt comes again in a rollout"


def test_finished_answers_end_with_the_templates_end_of_turn_everywhere(seen: Seen) -> None:
    end, eos = seen.tokenizer.convert_tokens_to_ids(END[seen.kind]), seen.tokenizer.eos_token_id
    prompts = seen.expected("train") | seen.expected("evaluation")
    for step, rows in seen.rows.items():
        answers = [answer for _, answer in starts(rows, prompts)]
        closed = [answer for answer in answers if end in answer]
        assert closed or step == "sampling policy", step
        assert all(answer.index(end) == len(answer) - 1 for answer in closed), step
        # A policy may say EOS of its own accord; nothing else puts it there.
        drawn = step in ("sampling policy", "ppo policy", "evaluation policy")
        assert drawn or not any(eos in answer for answer in answers), step
    tasks = read_candidates(seen.folder / "sampling" / "completions.parquet")
    flat = [completion for task in tasks for completion in task.completions]
    assert sum(c.finished for c in flat) > len(flat) / 2
    assert not any("<|" in c.text or c.text != c.text.strip() for c in flat if c.finished)


def test_no_sequence_has_two_beginnings(seen: Seen) -> None:
    first = {"chatml": "<|im_start|>", "llama3": "<|begin_of_text|>"}[seen.kind]
    begin = seen.tokenizer.convert_tokens_to_ids(first)
    for step, rows in seen.rows.items():
        assert all(row[0] == begin and row[1] != begin for row in rows), step


def test_other_programs_stop_where_our_sampling_does(seen: Seen) -> None:
    end = seen.tokenizer.convert_tokens_to_ids(END[seen.kind])
    for policy in ("sft", "ppo"):
        saved = GenerationConfig.from_pretrained(seen.folder / policy / "policy")
        assert end in saved.eos_token_id
