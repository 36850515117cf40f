import pytest
import torch

from labeling.errors import InputError
from labeling.records import Completion, Prompt
from ppo.config import PPO
from ppo.rewards import RunningMoments, load_score, shape_scores

RAW = torch.tensor([0.0, 2.0, 4.0, 10.0])
FINISHED = [True, True, True, False]


def shaped(moments=None, **config):
    given = {"unfinished_penalty": None} | config
    return shape_scores(RAW, FINISHED, PPO(**given), moments or RunningMoments()).shaped.tolist()


def test_scores_stay_what_they_are_unless_asked():
    assert shaped() == RAW.tolist()


def test_an_unfinished_response_pays_or_its_score_is_replaced():
    assert shaped(unfinished_penalty=3.0) == [0.0, 2.0, 4.0, 7.0]
    assert shaped(unfinished_penalty=3.0, unfinished="replace") == [0.0, 2.0, 4.0, -3.0]


def test_scores_are_clipped_before_the_penalty():
    assert shaped(score_clip=3.0, unfinished_penalty=1.0) == [0.0, 2.0, 3.0, 2.0]


def test_normalised_by_the_first_rollout_or_by_all():
    for how, mean in (("initial", 4.0), ("running", 9.0)):
        moments = RunningMoments()
        config = PPO(normalize_scores=how, unfinished_penalty=None)
        first = shape_scores(RAW, FINISHED, config, moments).shaped
        assert first.mean().item() == pytest.approx(0, abs=1e-6)
        assert first.std(correction=0).item() == pytest.approx(1, abs=1e-6)
        shape_scores(RAW + 10, FINISHED, config, moments)
        assert moments.mean == pytest.approx(mean)


def test_running_moments_are_those_of_all_values_together():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, generator=generator) * 3 + n for n in (5, 1, 17)]
    moments = RunningMoments()
    for batch in batches:
        moments.add(batch)
    whole = torch.cat(batches).double()
    assert moments.mean == pytest.approx(whole.mean().item(), abs=1e-9)
    assert moments.std == pytest.approx(whole.std(correction=0).item(), abs=1e-9)


class Judge:
    """In place of a reward model: one point a letter."""

    def scores(self, prompts, completions):
        return [float(len(c.text)) for c in completions]


@pytest.fixture
def function(tmp_path):
    (tmp_path / "reward.py").write_text(
        "def score(prompts, completions):\n    return [float('!' in c) for c in completions]\n"
    )
    return f"{tmp_path}/reward.py:score"


def test_reward_model_function_or_their_weighted_sum(function):
    asked = [Prompt(text="a"), Prompt(text="b")], [Completion("hey!"), Completion("no")]
    assert load_score(Judge(), None, None)(*asked) == [4.0, 2.0]
    assert load_score(None, function, None)(*asked) == [1.0, 0.0]
    assert load_score(Judge(), function, -2.5)(*asked) == [1.5, 2.0]


def test_a_sum_of_one_and_no_reward_are_refused(function):
    with pytest.raises(InputError, match="leave the weight out"):
        load_score(None, function, 1.0)
    with pytest.raises(InputError, match="neither was given"):
        load_score(None, None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_p": 0.9}, "bias the probability ratio"),
        ({"top_k": 50}, "bias the probability ratio"),
        ({"critic_warmup": 100, "iterations": 100}, "nothing would be left to learn"),
        ({"minibatches": 9, "rollout_batch_size": 8}, "minibatches is 9"),
        ({"kl_target": 1.0, "kl_coef": 0}, "raise kl_coef"),
        ({"kl_target": 1.0, "kl_horizon": 20}, "the coefficient jumps"),
        ({"critic": "reward_model", "reward_function": "m:f"}, "use critic 'separate'"),
    ],
)
def test_a_config_that_cannot_mean_what_it_says_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        PPO(**given)
