import pytest
import torch

from ppo.policy import last_states
from ppo.sequences import assemble, pad_left

PROMPTS = [[1, 2, 3], [4], [5, 6]]
RESPONSES = [[7], [8, 9, 10], [11, 12]]


def test_each_token_is_read_at_the_state_before_it():
    part = assemble(PROMPTS, RESPONSES).part([2, 0])
    flat = part.input_ids.flatten()
    assert part.tokens.tolist() == [11, 12, 7]
    assert flat[part.states + 1].tolist() == [11, 12, 7]
    assert part.places.tolist() == [6, 7, 0]  # of rows 2 and 0 in a flattened (3, 3)


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
