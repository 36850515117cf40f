import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from labeling.errors import InputError
from labeling.records import Completion, Message, Prompt
from ppo.config import SFT
from ppo.demonstrations import Demonstration, encode_demonstration, parse_demonstration
from ppo.policy import load_policy
from ppo.sft import as_dataset, give_pad_token, train_sft, training_order
from reward.encoding import completion_ids, load_tokenizer, prompt_ids
from tests import tiny

ROWS = [
    {"prompt": "hello support", "completion": "thanks your order answers"},
    {"prompt": "the question", "completion": "please now"},
]
TALK = [
    {"role": "user", "content": "hello support"},
    {"role": "assistant", "content": "thanks"},
    {"role": "user", "content": "the question"},
    {"role": "assistant", "content": "please now"},
]


def settings(**changes):
    given = {"data": "x", "epochs": 1, "batch_size": 8, "learning_rate": 0.02, "device": "cpu"}
    return SFT(**(given | changes))


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", ROWS * 80)


@pytest.fixture
def trained(policy, data, folder):
    out = folder("sft")
    return out / "policy", train_sft(settings(epochs=3), policy, data, out)


def loss_of(model, rows, tokens):
    """Mean negative log-probability of the completions, EOS included, by hand."""
    total = count = 0.0
    for row in rows:
        demonstration = parse_demonstration(row, "row")
        prompt = prompt_ids(tokens, demonstration.prompt)
        ids = torch.tensor(
            [[*prompt, *tokens(row["completion"])["input_ids"], tokens.eos_token_id]]
        )
        logprobs = model(input_ids=ids).logits.log_softmax(dim=-1)
        for t in range(len(prompt), ids.shape[1]):
            total -= logprobs[0, t - 1, ids[0, t]].item()
            count += 1
    return total / count


def test_the_loss_falls_and_is_the_one_of_the_completions(policy, trained):
    folder, metrics = trained
    tokens = tiny.tokenizer()
    before, after = (loss_of(load_policy(str(m)), ROWS, tokens) for m in (policy, folder))
    assert after < before / 10
    assert metrics.loss == pytest.approx(after, abs=0.05)
    assert metrics.token_accuracy > 0.95
    assert metrics.examples == 160
    assert metrics.steps == 60
    # 2 + 4 + EOS and 2 + 2 + EOS, 80 times, 3 passes
    assert metrics.tokens == (7 + 5) * 80 * 3


def test_the_policy_learns_to_stop(trained):
    folder, _ = trained
    model, tokens = load_policy(str(folder)), load_tokenizer(str(folder))
    for row in ROWS:
        ids = torch.tensor([prompt_ids(tokens, Prompt(text=row["prompt"]))])
        drawn = model.generate(input_ids=ids, do_sample=False, max_new_tokens=12)
        assert drawn[0, ids.shape[1] :].tolist() == completion_ids(
            tokens, Prompt(text=row["prompt"]), Completion(row["completion"])
        )


def test_nothing_but_safetensors_and_text_is_written(trained, folder):
    folder, _ = trained
    files = {f.name for f in folder.parent.rglob("*") if f.is_file()}
    assert "model.safetensors" in files
    assert all(f.endswith((".safetensors", ".json", ".jinja")) for f in files)
    assert [f.name for f in folder.parent.iterdir()] == ["policy"]


def test_the_seed_decides_the_weights(policy, data, folder):
    def weights(name, seed):
        out = folder(name)
        train_sft(settings(seed=seed), policy, data, out)
        return (out / "policy" / "model.safetensors").read_bytes()

    first = weights("first", 0)
    assert first == weights("again", 0)
    assert first != weights("other", 1)


def test_only_the_completion_and_its_eos_bear_loss():
    tokens = tiny.tokenizer()
    encoded = encode_demonstration(tokens, parse_demonstration(ROWS[0], "row"), {0}, 64)
    row = as_dataset([encoded], completion_only=True)[0]
    assert row["labels"][:2] == [-100, -100]
    assert row["labels"][2:] == row["input_ids"][2:]
    assert tokens.decode(row["input_ids"][2:]) == "thanks your order answers <eos>"
    whole = as_dataset([encoded], completion_only=False)[0]
    assert whole["labels"] == whole["input_ids"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello", "completion": "thanks \ud800"},
        {"prompt": TALK[:1], "completion": [{"role": "assistant", "content": "thanks \ud800"}]},
        {"messages": [TALK[0], {"role": "assistant", "content": "thanks \ud800"}]},
    ],
)
def test_half_a_character_in_an_answer_is_named(row):
    with pytest.raises(InputError, match=r"^line 3: '.*' holds \\ud800, half a character"):
        parse_demonstration(row, "line 3")


def test_prompts_are_learned_only_when_asked_for(policy, folder, tmp_path):
    data = write(
        tmp_path / "data.jsonl", [{"prompt": "hello support", "completion": "thanks"}] * 64
    )
    hello, support = tiny.tokenizer().convert_tokens_to_ids(["hello", "support"])

    def surprise(model):
        """Of `support` after `hello`, in nats."""
        logits = load_policy(str(model))(input_ids=torch.tensor([[hello]])).logits
        return -logits.log_softmax(-1)[0, 0, support].item()

    def learned(name, completion_only):
        out = folder(name)
        train_sft(settings(completion_only=completion_only, epochs=4), policy, data, out)
        return out / "policy"

    base = surprise(policy)
    assert surprise(learned("whole", False)) < 0.2 * base
    assert surprise(learned("completion", True)) > 0.6 * base


def test_accumulated_micro_batches_give_the_same_step(policy, data, folder):
    def weights(name, micro):
        out = folder(name)
        train_sft(settings(micro_batch_size=micro, epochs=0.2), policy, data, out)
        return load_policy(str(out / "policy")).lm_head.weight

    whole, parts = weights("whole", None), weights("parts", 2)
    assert torch.allclose(whole, parts, atol=2e-4)


def test_a_message_completion_and_messages_train_like_the_chat_template(tmp_path, folder):
    model = str(tiny.save(tmp_path / "chat", chat=True))
    tokens = load_tokenizer(model)
    as_pair = {"prompt": TALK[:3], "completion": TALK[3:]}
    encoded = [
        encode_demonstration(tokens, parse_demonstration(row, "row"), {tokens.eos_token_id}, 64)
        for row in (as_pair, {"messages": TALK}, {"prompt": TALK[:3], "completion": "please now"})
    ]
    assert encoded[0] == encoded[1] == encoded[2]
    assert tokens.decode(encoded[0].prompt) == (
        "<user> hello support <assistant> thanks <user> the question <assistant>"
    )
    assert tokens.decode(encoded[0].completion) == "please now <eos>"
    prompt = Prompt(messages=tuple(Message(m["role"], m["content"]) for m in TALK[:3]))
    assert encoded[0].prompt == prompt_ids(tokens, prompt)

    out = folder("sft")
    data = write(tmp_path / "chat.jsonl", [{"messages": TALK}] * 80)
    train_sft(settings(epochs=3), model, data, out)
    drawn = load_policy(str(out / "policy")).generate(
        input_ids=torch.tensor([encoded[0].prompt]), do_sample=False, max_new_tokens=8
    )
    assert drawn[0, len(encoded[0].prompt) :].tolist() == encoded[0].completion
    assert load_tokenizer(str(out / "policy")).chat_template == tokens.chat_template


def test_a_templates_own_end_of_turn_token_closes_the_completion():
    tokens = tiny.tokenizer(chat=True)
    tokens.chat_template = tiny.CHAT_TEMPLATE.replace(
        "{% endfor %}", "{% if m.role == 'assistant' %}bad {% endif %}{% endfor %}"
    )
    turn_end = tokens.convert_tokens_to_ids("bad")
    said = Demonstration(Prompt(messages=(Message("user", "hello"),)), "thanks")
    encoded = encode_demonstration(tokens, said, {turn_end, tokens.eos_token_id}, 64)
    assert tokens.decode(encoded.completion) == "thanks bad"


def test_parquet_reads_like_jsonl(tmp_path, policy, data, folder):
    pq.write_table(pa.Table.from_pylist(ROWS * 80), tmp_path / "data.parquet")
    weights = []
    for name, source in (("jsonl", data), ("parquet", str(tmp_path / "data.parquet"))):
        out = folder(name)
        train_sft(settings(), policy, source, out)
        weights.append((out / "policy" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_long_examples_are_cut_and_counted(tmp_path, policy, folder):
    long_prompt = {"prompt": "now " * 20, "completion": "thanks"}
    data = write(tmp_path / "data.jsonl", [*ROWS, long_prompt])
    metrics = train_sft(settings(max_length=5), policy, data, folder("sft"))
    assert (metrics.examples, metrics.cut, metrics.left_out) == (2, 1, 1)
    assert metrics.tokens == 10
    encoded = encode_demonstration(tiny.tokenizer(), parse_demonstration(ROWS[0], "row"), {0}, 5)
    assert tiny.tokenizer().decode(encoded.completion) == "thanks your order"  # and no EOS


def test_every_example_comes_once_a_pass_and_like_lengths_share_a_batch():
    lengths = [n % 40 + 1 for n in range(1000)]
    order = training_order(lengths, settings(epochs=2, batch_size=10))
    assert sorted(order) == sorted([*range(1000)] * 2)
    batches = [[lengths[i] for i in order[b : b + 10]] for b in range(0, 2000, 10)]
    assert sum(max(b) * 10 for b in batches) < 1.15 * sum(map(sum, batches))
    first, second = batches[:100], batches[100:]  # and no half has only the short ones
    assert abs(sum(map(sum, first)) - sum(map(sum, second))) < 0.15 * sum(map(sum, first))
    assert len(training_order(lengths, settings(epochs=0.25, batch_size=16))) == 250


@pytest.mark.parametrize("broken", ["missing", "eos"])
def test_a_model_without_a_pad_token_of_its_own_gets_one(tmp_path, data, folder, broken):
    tokens = tiny.tokenizer(pad=False)
    if broken == "eos":
        tokens.pad_token = tokens.eos_token
    source = tmp_path / "model"
    tiny.policy(tokens).save_pretrained(source)
    tokens.save_pretrained(source)
    out = folder("sft")
    train_sft(settings(), str(source), data, out)
    made = load_tokenizer(str(out / "policy"))
    model = load_policy(str(out / "policy"))
    assert made.pad_token == "<pad>"  # a spare one was there: nothing grows
    assert made.pad_token_id != made.eos_token_id
    assert len(made) == len(tokens) == model.config.vocab_size
    assert model.config.pad_token_id == model.generation_config.pad_token_id == made.pad_token_id


def test_where_no_spare_token_is_left_the_embeddings_grow_by_a_row():
    tokens = tiny.tokenizer(pad=False)
    taken = json.loads(tokens.backend_tokenizer.to_str())
    taken["model"]["vocab"]["spent"] = taken["model"]["vocab"].pop("<pad>")
    tokens = type(tokens)(
        tokenizer_object=tokens.backend_tokenizer.from_str(json.dumps(taken)), eos_token="<eos>"
    )
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokens), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )
    before = model.get_input_embeddings().weight.clone()
    give_pad_token(model, tokens)
    after = model.get_input_embeddings().weight
    assert tokens.pad_token_id == len(before) == len(after) - 1
    assert torch.equal(after[:-1], before)
    assert model.lm_head.weight is after  # still tied
    ids = torch.tensor([tokens("hello now")["input_ids"] + [tokens.pad_token_id]])
    assert model(input_ids=ids).logits.shape == (1, 3, len(after))


def test_progress_is_logged(policy, data, folder, caplog):
    caplog.set_level(logging.INFO)
    metrics = train_sft(settings(), policy, data, folder("sft"))
    seen = [r.progress for r in caplog.records if hasattr(r, "progress")]
    assert seen[-1] == (metrics.steps, metrics.steps)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "hello"}, "line 2: no 'completion'"),
        ({"text": "hello"}, "line 2: no 'prompt'"),
        ({"prompt": "hello", "completion": " "}, "line 2: 'completion' is empty"),
        ({"prompt": 3, "completion": "now"}, "line 2: 'prompt' is int"),
        ({"prompt": "hello", "completion": 3}, "line 2: 'completion' must be"),
        ({"prompt": "hello", "completion": TALK[3:]}, "same form"),
        ({"messages": TALK[:1]}, "needs a question and its answer"),
        ({"messages": TALK[:3]}, "must have the role 'assistant'"),
        ({"messages": TALK}, "no chat template"),
    ],
)
def test_a_bad_row_is_named(tmp_path, policy, folder, row, complaint):
    data = write(tmp_path / "data.jsonl", [ROWS[0], row])
    with pytest.raises(InputError, match=complaint) as error:
        train_sft(settings(), policy, data, folder("sft"))
    assert "\n" not in str(error.value)


def test_a_malformed_line_is_named(tmp_path, policy, folder):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"prompt": "hel\n')
    with pytest.raises(InputError, match="line 2: not JSON"):
        train_sft(settings(), policy, str(path), folder("sft"))


def test_missing_data_and_models_are_input_errors(tmp_path, policy, data, folder):
    out = folder("sft")
    with pytest.raises(InputError, match=r"nowhere\.jsonl does not exist"):
        train_sft(settings(), policy, str(tmp_path / "nowhere.jsonl"), out)
    with pytest.raises(InputError, match="cannot load") as error:
        train_sft(settings(), str(tmp_path / "no-model"), data, out)
    assert "\n" not in str(error.value)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no example"):
        train_sft(settings(), policy, str(tmp_path / "empty.jsonl"), out)


def test_batch_sizes_that_do_not_fit_are_refused(policy, data, folder):
    with pytest.raises(InputError, match="no multiple"):
        train_sft(settings(batch_size=8, micro_batch_size=3), policy, data, folder("sft"))


def test_a_loss_that_is_no_number_is_said_so(tmp_path, data, folder):
    model = AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path / "model"))
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    model.save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match="loss is nan at step"):
        train_sft(settings(), str(tmp_path / "broken"), data, folder("sft"))
