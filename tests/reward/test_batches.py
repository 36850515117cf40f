"""Groups of rows of like lengths."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from reward import model as reward_model
from reward.batches import by_length
from reward.model import from_policy, score_tokens
from tests import tiny

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 200), st.sampled_from([1.0, 0.5, 0.2, 0.0]))
def test_groups_hold_every_row_once_and_keep_budget_and_padding(lengths, budget, padding):
    groups = by_length(dict(enumerate(lengths)), budget, padding)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        size = len(group) * max(lengths[row] for row in group)
        assert len(group) == 1 or size <= budget
        assert size - sum(lengths[row] for row in group) <= padding * size


def test_rows_of_like_lengths_share_a_group():
    assert by_length({0: 3, 1: 9, 2: 4, 3: 10}, 20) == [[3, 1], [2, 0]]
    assert by_length({0: 1, 1: 9, 2: 1, 3: 10, 4: 1}, 100, 0.5) == [[3, 1, 0, 2], [4]]


def test_scores_do_not_depend_on_the_groups_and_no_cache_is_filled(tmp_path, monkeypatch):
    model, _ = from_policy(str(tiny.save(tmp_path / "model")), seed=0)
    sequences = [[5 + i % 7] * (1 + i % 9) for i in range(40)]
    whole, sizes, right = score_tokens(model.eval(), sequences, torch.float32), [], model.forward

    def counted(**kwargs):
        sizes.append(kwargs["input_ids"].numel())
        output = right(**kwargs)
        assert output.past_key_values is None
        return output

    counted.__signature__ = inspect.signature(right)
    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setitem(reward_model.SCORING_TOKENS, "cpu", 50)
    assert torch.allclose(score_tokens(model, sequences, torch.float32), whole, atol=1e-6)
    assert len(sizes) > 4
    assert max(sizes) <= 50


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_that_has_no_cache_scores_too():
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    assert score_tokens(model, [[3, 4], [5]], torch.float32).shape == (2,)
