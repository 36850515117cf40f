import json

import pytest

from labeling.config import Prompts
from labeling.prompts import prepare_prompts
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
