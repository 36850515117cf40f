import json

import pytest
import torch

from labeling.config import Prompts
from labeling.prompts import prepare_prompts
from labeling.records import Prompt
from ppo.config import Generation
from ppo.decoding import Decoder
from reward.encoding import prompt_ids
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    """Makes empty folders by name, as the runner does for each stage."""

    def make(name):
        path = tmp_path / name
        path.mkdir()
        return path

    return make


@pytest.fixture
def prompts(tmp_path, folder):
    """Forty plain prompts, eight of them for evaluation, as prepare_prompts writes them."""
    source = tmp_path / "prompts.jsonl"
    texts = [f"{a} the {b}" for a in tiny.WORDS[:8] for b in tiny.WORDS[2:7]]
    source.write_text("\n".join(json.dumps({"prompt": t}) for t in texts))
    out = folder("prompts")
    prepare_prompts(Prompts(path="x", evaluation_fraction=0.2), str(source), out)
    return out / "prompts.parquet"


@pytest.fixture
def policy(tmp_path):
    return str(tiny.save(tmp_path / "model"))


@pytest.fixture
def world():
    """Reference, prompts, responses of unequal lengths (some of a single token), and scores."""
    texts = ["hello desk", "order", "please the support desk answers", "now thanks"] * 3
    tokens = tiny.tokenizer()
    reference = tiny.policy(tokens, std=0.3)
    prompts = [prompt_ids(tokens, Prompt(text=t)) for t in texts]
    limits = [1 + i % 9 for i in range(len(texts))]
    drawn = Decoder(reference, frozenset(), Generation(max_new_tokens=9)).draw(prompts, 1, limits)
    return reference, prompts, drawn.tokens, torch.linspace(-1, 1, len(texts))
