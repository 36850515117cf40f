import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo.policy import last_states
from ppo.sequences import assemble, by_length, pad_left

PROMPTS = [[1, 2, 3], [4], [5, 6]]
RESPONSES = [[7], [8, 9, 10], [11, 12]]


def test_each_token_is_read_at_the_state_before_it():
    part = assemble(PROMPTS, RESPONSES).part([2, 0])
    flat = part.input_ids.flatten()
    assert part.tokens.tolist() == [11, 12, 7]
    assert flat[part.states + 1].tolist() == [11, 12, 7]
    assert part.places.tolist() == [6, 7, 0]  # of rows 2 and 0 in a flattened (3, 3)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_and_keep_the_budget(lengths, budget):
    groups = by_length(dict(enumerate(lengths)), budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or len(group) * longest <= budget


def test_rows_of_like_lengths_share_a_micro_batch():
    assert by_length({0: 3, 1: 9, 2: 4, 3: 10}, 20) == [[3, 1], [2, 0]]


def test_padding_is_on_the_side_it_should_be():
    ids, mask = pad_left(PROMPTS, pad=0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4], [0, 5, 6]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert assemble(PROMPTS, RESPONSES).mask.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]


def test_what_stands_behind_a_row_is_never_seen(world):
    reference, prompts, responses, _ = world
    with torch.no_grad():
        one, other = (
            last_states(reference.base_model, assemble(prompts, responses, pad=pad).part(range(12)))
            for pad in (1, 7)
        )
    assert torch.equal(one, other)


@pytest.mark.parametrize(("prompts", "responses"), [([[]], [[1]]), ([[1]], [[]])])
def test_an_empty_prompt_or_response_is_refused(prompts, responses):
    with pytest.raises(ValueError, match="at least one token"):
        assemble(prompts, responses)
