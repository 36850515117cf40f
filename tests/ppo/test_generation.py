from collections import Counter

import pytest
import torch

from labeling.errors import InputError
from labeling.records import Message, Prompt, read_candidates
from ppo.config import Generation, Sampling
from ppo.generation import Sampler, choose, encode_prompts, sample_completions
from reward.encoding import completion_ids, load_tokenizer, prompt_ids
from tests import tiny

TEXTS = ["hello", "the support desk answers", "order now"]


def generator(seed=0, **settings):
    tokens = tiny.tokenizer()
    model = tiny.policy(tokens, seed)
    return Sampler.of(model, tokens, Generation(max_new_tokens=12, **settings))


def draw(ours, prompts, seed):
    return ours.draw_all(prompts, seed, len(prompts), "test")


def ids():
    return [prompt_ids(tiny.tokenizer(), Prompt(text=t)) for t in TEXTS]


def test_stop_token_ends_a_completion_and_belongs_to_it():
    ours = generator()
    drawn = draw(ours, ids() * 60, 0)
    finished = [r for r in drawn if r.completion.finished]
    cut = [r for r in drawn if not r.completion.finished]
    eos = ours.tokenizer.eos_token_id
    assert finished
    assert cut
    assert all(r.tokens[-1] == eos and r.tokens.count(eos) == 1 for r in finished)
    assert all(len(r.tokens) == 12 and eos not in r.tokens for r in cut)
    assert all("<eos>" not in r.completion.text for r in drawn)


def test_the_seed_decides_what_is_drawn():
    def texts(seed):
        return [r.completion.text for r in draw(generator(), ids(), seed)]

    assert texts(1) == texts(1) != texts(2)


def test_greedy_takes_the_likeliest_token_of_a_prompt_alone():
    ours = generator(temperature=0)
    for prompt, response in zip(ids(), draw(ours, ids(), 0), strict=True):
        sequence = list(prompt)
        for token in response.tokens:
            with torch.no_grad():
                best = ours.decoder.model(torch.tensor([sequence])).logits[0, -1].argmax().item()
            assert token == best
            sequence.append(token)


def test_sampling_follows_the_policys_own_distribution():
    ours = generator(temperature=0.7)
    prompt = ids()[0]
    with torch.no_grad():
        expected = (ours.decoder.model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    drawn = torch.tensor([r.tokens[0] for r in draw(ours, [prompt] * 4000, 5)])
    found = torch.bincount(drawn, minlength=len(expected)) / 4000
    assert 0.5 * (found - expected).abs().sum() < 0.06


def test_every_task_can_be_ranked(policy, prompts, folder):
    config = Sampling(max_new_tokens=6, completions_per_prompt=3, prompts=10)
    out = folder("out")
    metrics = sample_completions(config, policy, prompts, out)
    candidates = read_candidates(out / "completions.parquet")
    assert metrics.prompts == len(candidates) == 10
    assert all(len(c.completions) == 3 for c in candidates)
    assert all(len({a.text for a in c.completions}) > 1 for c in candidates)
    assert {c.prompt.split for c in candidates} == {"train"}


def test_a_policy_that_always_says_the_same_is_refused(policy, prompts, folder):
    config = Sampling(max_new_tokens=3, temperature=0, distinct_tries=1)
    with pytest.raises(InputError, match="nothing to rank"):
        sample_completions(config, policy, prompts, folder("out"))


def test_prompts_longer_than_the_context_are_left_out(caplog):
    tokens = tiny.tokenizer()
    model = tiny.policy(tokens)
    long, short = Prompt(text="hello " * 60), Prompt(text="hello")
    kept, _ = encode_prompts(tokens, [long, short], model, 12)
    assert kept == [short]
    assert "1 of 2 prompts left out" in caplog.text
    with pytest.raises(InputError, match="none of 1 prompts"):
        encode_prompts(tokens, [long], model, 12)


def test_conversations_go_through_the_chat_template(tmp_path):
    chat = load_tokenizer(str(tiny.save(tmp_path / "chat", chat=True)))
    prompt = Prompt(messages=(Message("user", "hello desk"),))
    assert chat.decode(prompt_ids(chat, prompt)) == "<user> hello desk <assistant>"
    with pytest.raises(InputError, match="no chat template"):
        prompt_ids(tiny.tokenizer(), prompt)


def test_a_finished_completion_ends_with_eos(tmp_path):
    tokens = tiny.tokenizer()
    drawn = draw(generator(), ids() * 60, 0)
    for response in drawn:
        rebuilt = completion_ids(tokens, Prompt(text="hello"), response.completion)
        assert (rebuilt[-1] == tokens.eos_token_id) == response.completion.finished


def test_the_choice_is_the_seeds_and_keeps_the_order():
    prompts = [Prompt(text=str(i)) for i in range(20)]
    chosen = choose(prompts, 5, 1)
    assert chosen == choose(prompts, 5, 1) != choose(prompts, 5, 2)
    assert sorted(chosen, key=lambda p: int(p.text or "")) == chosen
    assert choose(prompts, None, 1) == choose(prompts, 99, 1) == prompts


def test_the_models_own_generation_defaults_change_nothing():
    plain, truncating = generator(), generator()
    truncating.decoder.model.generation_config.top_k = 1
    truncating.decoder.model.generation_config.repetition_penalty = 5.0
    drawn = [[r.tokens for r in draw(g, ids(), 3)] for g in (plain, truncating)]
    assert drawn[0] == drawn[1]
    assert truncating.decoder.model.generation_config.top_k == 1  # it is saved with the policy


def test_prompts_that_were_taken_least_often_before_are_taken_first():
    prompts = [Prompt(text=f"prompt {i}") for i in range(20)]
    first = choose(prompts, 8, seed=3)
    second = choose(prompts, 8, seed=3, seen={p.key: 1 for p in first})
    assert not {p.key for p in first} & {p.key for p in second}
    seen = Counter(p.key for p in [*first, *second])
    third = choose(prompts, 8, seed=3, seen=seen)
    fresh = [p for p in prompts if p not in first and p not in second]
    assert {p.key for p in fresh} < {p.key for p in third}
    assert third == choose(prompts, 8, seed=3, seen=seen)
    assert third == sorted(third, key=prompts.index)
    assert choose(prompts, 8, seed=3, seen={}) == first
    assert choose(prompts, None, seed=3, seen=seen) == prompts


def test_a_later_round_samples_for_other_prompts(policy, prompts, folder):
    config = Sampling(max_new_tokens=4, prompts=16)
    keys = []
    for name, earlier in (("one", []), ("two", ["one"]), ("three", ["one", "two"])):
        out = folder(name)
        files = [out.parent / before / "completions.parquet" for before in earlier]
        sample_completions(config, policy, prompts, out, earlier=files)
        keys.append({task.prompt.key for task in read_candidates(out / "completions.parquet")})
    assert len(keys[0] | keys[1]) == 32
    assert keys[2] <= keys[0] | keys[1]
