import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from flows.config import RoundConfig
from labeling.scoring import load_score_function

yaml = pytest.importorskip("yaml")
SUPPORT = Path(__file__).parents[2] / "examples" / "support"
PROMPT = "Customer: Hi, I am Anna. My fridge gets too hot.\nDesk:"
BEST = (
    " Hi Anna! I am sorry about your fridge. Clean the air vents behind your fridge."
    " Have a nice day."
)


@pytest.fixture(scope="module")
def support():
    """The example's modules, imported as its script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SUPPORT))
        yield {name: importlib.import_module(name) for name in ("world", "rubric", "base_model")}


@pytest.fixture(scope="module")
def world(support):
    return support["world"].World(seed=3)


@pytest.fixture(scope="module")
def parts(support):
    return lambda text, prompt=PROMPT: support["rubric"].parts(prompt, text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The world of seed 5, written twice by two processes with other hash seeds."""
    folder = tmp_path_factory.mktemp("worlds")
    digests = []
    for name in ("first", "second"):
        printed = subprocess.run(
            [sys.executable, SUPPORT / "world.py", "--out", folder / name, "--seed", "5"],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(len(name)), "PATH": "/usr/bin:/bin"},
        )
        digests.append(printed.stdout.split()[-1])
    return folder, digests


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_seed_gives_the_same_bytes(made):
    folder, digests = made
    files = sorted(f.relative_to(folder / "first") for f in (folder / "first").rglob("*.*"))
    assert {f.name for f in files} >= {"corpus.jsonl", "model.safetensors", "tokenizer.json"}
    for file in files:
        if (folder / "first" / file).is_file():
            assert (folder / "first" / file).read_bytes() == (folder / "second" / file).read_bytes()
    assert digests[0] == digests[1]


def test_another_seed_is_another_world(support):
    first, second = (support["world"].World(seed) for seed in (0, 1))
    assert first.held_out != second.held_out
    assert first.corpus(5) != second.corpus(5)


def test_held_out_combinations_occur_nowhere_but_in_evaluation(made, support):
    folder, _ = made
    held_out = support["world"].World(5).held_out
    read = support["rubric"]._customer

    def combinations(file):
        return {read(row["prompt"])[1:] for row in rows(folder / "first" / file)}

    assert 0.15 < len(held_out) / (24 * 6) < 0.25
    assert combinations("evaluation_prompts.jsonl") == held_out
    for file in ("corpus.jsonl", "prompts.jsonl"):
        assert combinations(file).isdisjoint(held_out)
        assert len(combinations(file)) == 24 * 6 - len(held_out)


@pytest.mark.parametrize("seed", range(20))
def test_every_product_keeps_most_of_its_issues(support, seed):
    held_out = support["world"].World(seed).held_out
    for product in {product for product, _ in held_out}:
        assert sum(p == product for p, _ in held_out) <= 2


def test_prompts_are_distinct_and_enough(made):
    folder, _ = made
    for file, least in (("prompts.jsonl", 1500), ("evaluation_prompts.jsonl", 384)):
        prompts = [row["prompt"] for row in rows(folder / "first" / file)]
        assert len(set(prompts)) == len(prompts) >= least


def test_every_reply_of_the_corpus_is_valid(made, support):
    corpus = rows(made[0] / "first" / "corpus.jsonl")
    prompts, replies = [r["prompt"] for r in corpus], [r["completion"] for r in corpus]
    assert set(support["rubric"].valid(prompts, replies)) == {1.0}


def test_the_corpus_holds_texts_only_and_no_judgement(made):
    for row in rows(made[0] / "first" / "corpus.jsonl"):
        assert row.keys() == {"prompt", "completion"}
        assert not set("0123456789") & set(row["prompt"] + row["completion"])


def test_replies_range_from_bad_to_perfect_and_the_commonest_is_worth_nothing(world, support):
    corpus = world.corpus(4000)
    rubric = support["rubric"]
    scores = rubric.score([r["prompt"] for r in corpus], [r["completion"] for r in corpus])
    counts = {}
    for row, score in zip(corpus, scores, strict=True):
        counts.setdefault(row["completion"], []).append(score)
    commonest = max(counts.values(), key=len)
    assert commonest[0] <= 0
    assert 0 < sum(scores) / len(scores) < 2
    assert max(scores) == 6.25
    assert min(scores) <= -3


def test_the_best_reply_scores_everything(support):
    rubric = support["rubric"]
    assert rubric.score([PROMPT], [BEST]) == [6.25]
    assert rubric.valid([PROMPT], [BEST]) == [1.0]


@pytest.mark.parametrize(
    ("removed", "lost"),
    [
        ("Hi Anna! ", 1),
        ("I am sorry about your fridge. ", 0.75),
        (" Have a nice day.", 0.5),
        (" Clean the air vents behind your fridge.", 3),
    ],
)
def test_each_good_part_counts_once(support, removed, lost):
    assert removed in BEST
    assert support["rubric"].score([PROMPT], [BEST.replace(removed, "")]) == [6.25 - lost]


@pytest.mark.parametrize(
    ("added", "lost"),
    [
        (" You broke it yourself.", 2),
        (" Place it on a soft mat.", 1),
        (" Have a nice day.", 1),
        (" Clean the the vents.", 1),
        (" Have a nice", 2),
    ],
)
def test_each_bad_part_costs(support, added, lost):
    assert support["rubric"].score([PROMPT], [BEST + added]) == [6.25 - lost]


def test_a_second_right_fix_gains_nothing(support):
    more = BEST + " Unplug it for one hour."
    assert support["rubric"].score([PROMPT], [more]) == [6.25]


def test_a_fix_is_right_for_its_own_issue_only(parts, world):
    for issue, facts in world.facts["issues"].items():
        fix = " " + facts["fixes"][0].format(thing="it")
        for other, asked in world.facts["issues"].items():
            for complaint in asked["complaints"]:
                prompt = f"Customer: Leo here. {complaint.format(product='desk lamp')}\nDesk:"
                found = parts(fix, prompt)
                assert found.right_fix == (issue == other)
                assert found.wrong_fix == (issue != other)


@pytest.mark.parametrize(
    "reply", ["Hi Ben!", "Hi Anna.", "Anna!", "Hello. Anna.", "Hi Annabel!", ""]
)
def test_only_a_greeting_by_the_right_name_counts(parts, reply):
    assert not parts(reply).named


def test_naming_another_product_too_loses_the_product_point(parts):
    assert parts(" Unplug your fridge for one hour.").right_product
    assert not parts(" Unplug your oven for one hour.").right_product
    assert not parts(" I am sorry about your fridge. Unplug your oven for one hour.").right_product


@pytest.mark.parametrize(
    "reply",
    ["", " ", "Hello", "Hello. Unplug your", "Hello.Hello.", "Unplug for one hour.", "Hi Zoe!"],
)
def test_empty_unfinished_and_garbled_replies_are_not_valid(support, reply):
    assert support["rubric"].valid([PROMPT], [reply]) == [0.0]


def test_any_slot_values_are_valid_whether_they_help_or_not(support, world):
    rng = random.Random(0)
    for _ in range(200):
        reply = world.reply(rng, world.customer(rng, world.seen))
        assert support["rubric"].valid([PROMPT], [reply]) == [1.0]


def test_a_prompt_of_another_world_is_refused(support):
    with pytest.raises(ValueError, match="not a prompt"):
        support["rubric"].score(["What is the weather?"], ["Hello."])


def test_the_rubric_loads_as_a_score_function():
    score = load_score_function(f"{SUPPORT / 'rubric.py'}:score")
    assert score([PROMPT], [BEST]) == [6.25]


def test_a_folder_with_other_files_is_left_alone(support, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other files"):
        support["world"].write_world(tmp_path, 0)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_pad_and_eos_are_tokens_of_their_own_and_any_text_survives(made):
    from transformers import AutoTokenizer  # noqa: PLC0415 - torch, for this test only

    tokens = AutoTokenizer.from_pretrained(made[0] / "first" / "model")
    assert len({tokens.pad_token_id, tokens.eos_token_id, None}) == 3
    for text in (BEST, PROMPT, " Grüße – 你好 🙂"):
        assert tokens.decode(tokens(text)["input_ids"]) == text


def test_the_config_is_a_round_config():
    config = RoundConfig.model_validate(yaml.safe_load((SUPPORT / "config.yaml").read_text()))
    assert config.sampling.prompts == 1350
    assert [labeler.name for labeler in config.labeling.simulated] == [
        "careful-1",
        "careful-2",
        "careless",
    ]
    assert config.ppo.max_new_tokens == config.evaluation.max_new_tokens == config.max_new_tokens
