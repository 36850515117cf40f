"""Drawing token by token gives what whole passes over the sequences say."""

import pytest
import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from labeling.errors import InputError
from ppo import decoding
from ppo.config import Generation
from ppo.decoding import Decoder
from ppo.head import Head
from ppo.policy import ActorCritic, last_states
from ppo.sequences import assemble
from tests import tiny

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [3, 3]] * 6
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.4,
}
MODELS = {
    "llama": lambda: tiny.policy(tiny.tokenizer(), std=0.4),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    # Layers that see a few tokens back only, and capped logits.
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, sliding_window=4)),
}


@pytest.fixture(params=sorted(MODELS))
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def draw(model, seed=0, stop=(0, 1, 2), prompts=PROMPTS, **settings):
    generation = Generation(**({"max_new_tokens": 11} | settings))
    return Decoder(model, frozenset(stop), generation).draw(prompts, seed)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_captured_is_what_a_whole_pass_says(model, temperature):
    torch.manual_seed(1)
    value = torch.nn.Linear(16, 1)
    decoder = Decoder(
        model,
        frozenset((0, 1, 2)),
        Generation(max_new_tokens=11, temperature=temperature),
        value_of=lambda hidden: value(hidden).squeeze(-1),
    )
    drawn = decoder.draw(PROMPTS, 3)
    part = assemble(PROMPTS, drawn.tokens).part(range(len(PROMPTS)))
    with torch.no_grad():
        states = last_states(model.base_model, part)
        logprobs, entropies = Head.of(model).read(states, part.tokens, temperature)
        values = value(states).squeeze(-1)
    for ours, whole in (
        (drawn.logprobs, logprobs),
        (drawn.entropies, entropies),
        (drawn.values, values),
    ):
        torch.testing.assert_close(ours.flatten()[part.places], whole, atol=1e-5, rtol=1e-5)
        assert ours.flatten().count_nonzero() <= len(part.places)


def test_dropping_ended_rows_changes_nothing(model, monkeypatch):
    dropping = draw(model)
    assert len({len(row) for row in dropping.tokens}) > 3, "rows end at different steps"
    monkeypatch.setattr(decoding, "_DROP_SHARE", 2)  # never
    assert draw(model).tokens == dropping.tokens
    monkeypatch.setattr(decoding, "_DROP_SHARE", 0)  # at once
    assert draw(model).tokens == dropping.tokens


def test_drawing_in_groups_changes_nothing(model, monkeypatch):
    """Neither what is drawn nor, beyond rounding, what is captured with it."""
    torch.manual_seed(1)
    value = torch.nn.Linear(16, 1)
    decoder = Decoder(
        model,
        frozenset((0, 1, 2)),
        Generation(max_new_tokens=11),
        value_of=lambda hidden: value(hidden).squeeze(-1),
    )
    prompts = [PROMPTS[0] * (1 + i % 4) for i in range(24)]
    whole, sizes, right = decoder.draw(prompts, 3), [], decoder._draw

    def counted(rows, *args):
        sizes.append(len(rows))
        return right(rows, *args)

    monkeypatch.setattr(decoder, "_draw", counted)
    for budget, padding in ((1, 0.5), (100, 0.5), (10_000, 0.1)):
        sizes.clear()
        monkeypatch.setitem(decoding.DRAWING_TOKENS, "cpu", budget)
        monkeypatch.setattr(decoding, "_PADDING", padding)
        grouped = decoder.draw(prompts, 3)
        assert len(sizes) > 1
        assert sum(sizes) == 24
        assert grouped.tokens == whole.tokens
        for name in ("logprobs", "entropies", "values"):
            ours, theirs = getattr(grouped, name), getattr(whole, name)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_long_prompt_does_not_lengthen_all_others(monkeypatch):
    """63 prompts of 16 tokens and one of 1,000: a batch of all would be 27 times their sum."""
    model = tiny.policy(tiny.tokenizer(), context=1100)
    read, right = [], model.base_model.forward

    def counted(*args, **kwargs):
        read.append(kwargs["input_ids"].numel())
        return right(*args, **kwargs)

    decoder = Decoder(model, frozenset(), Generation(max_new_tokens=64))
    monkeypatch.setattr(model.base_model, "forward", counted)
    decoder.draw([[3] * 1000, *[[4] * 16] * 63], 0)
    assert max(read) <= 2 * 1000
    read.clear()
    decoder.draw([[3] * n for n in range(32, 65)] * 2, 0)
    assert len(read) == 64, "lengths as unlike as those of ordinary prompts stay one batch"


def test_the_company_of_other_rows_changes_nothing():
    model = MODELS["llama"]()
    together = draw(model, prompts=PROMPTS[:1] * 3)
    beside = draw(model, prompts=[PROMPTS[0], PROMPTS[2], PROMPTS[0]])
    assert together.tokens[0] == beside.tokens[0]
    assert together.tokens[2] == beside.tokens[2]
    assert together.tokens[0] != together.tokens[2]


def test_a_response_ends_with_its_first_stop_token_or_at_its_limit(model):
    for row in draw(model).tokens:
        stops = [i for i, token in enumerate(row) if token in (0, 1, 2)]
        assert stops == [len(row) - 1] or (not stops and len(row) == 11)


def test_limits_force_lengths():
    model = MODELS["llama"]()
    limits = [1 + i % 7 for i in range(len(PROMPTS))]
    drawn = Decoder(model, frozenset(), Generation(max_new_tokens=11)).draw(PROMPTS, 0, limits)
    assert [len(row) for row in drawn.tokens] == limits


def test_top_k_and_top_p_draw_from_the_likeliest_alone():
    model = MODELS["llama"]()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    likeliest = set(logits.topk(3).indices.tolist())
    by_k = draw(model, prompts=PROMPTS[:1] * 500, max_new_tokens=1, top_k=3)
    assert {row[0] for row in by_k.tokens} == likeliest
    ordered = logits.softmax(-1).sort(descending=True)
    kept = int((ordered.values.cumsum(0) < 0.5).sum()) + 1
    by_p = draw(model, prompts=PROMPTS[:1] * 500, max_new_tokens=1, top_p=0.5)
    assert {row[0] for row in by_p.tokens} == set(ordered.indices[:kept].tolist())


def test_a_trunk_that_projects_down_at_its_end_has_values_too():
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32}
    model = OPTForCausalLM(
        OPTConfig(vocab_size=60, num_hidden_layers=2, num_attention_heads=2, **sizes)
    ).eval()
    actor = ActorCritic(model)
    decoder = Decoder(model, frozenset((0,)), Generation(), value_of=actor.value_of)
    assert decoder.draw(PROMPTS, 0).values is not None


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1"])
def test_a_model_that_remembers_in_another_way_is_refused(kind):
    made = {
        "mamba": lambda: MambaForCausalLM(
            MambaConfig(vocab_size=60, hidden_size=16, state_size=4, num_hidden_layers=2)
        ),
        "falcon_h1": lambda: FalconH1ForCausalLM(
            FalconH1Config(**SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8)
        ),
    }
    with pytest.raises(InputError, match="use a model of plain attention layers"):
        draw(made[kind]().eval())


def test_bfloat16_draws_too():
    decoder = Decoder(MODELS["llama"](), frozenset((0,)), Generation(), torch.bfloat16)
    drawn = decoder.draw(PROMPTS, 0)
    assert drawn.logprobs.dtype == torch.float32
    assert torch.isfinite(drawn.logprobs).all()
