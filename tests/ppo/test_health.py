import pytest

from ppo.config import PPO
from ppo.health import warnings_of

FINE = {
    "objective/kl": 1.0,
    "objective/entropy": 1.0,
    "response/distinct": 1.0,
    "response/length": 40.0,
    "policy/clipfrac": 0.1,
}


@pytest.mark.parametrize(
    ("sign", "figures", "cause"),
    [
        ("negative KL", {"objective/kl": -3.0}, "never negative"),
        ("KL", {"objective/kl": 40.0}, "lower ppo.learning_rate"),
        ("entropy", {"objective/entropy": 0.05}, "one thing only"),
        ("repetition", {"response/distinct": 0.1}, "likes everywhere"),
        ("short", {"response/length": 5.0}, "shrank from 40 to 5"),
        ("long", {"response/length": 127.0}, "raise ppo.unfinished_penalty"),
        ("clipping", {"policy/clipfrac": 0.7}, "larger than PPO can trust"),
    ],
)
def test_every_collapse_is_named_with_its_likely_cause(sign, figures, cause):
    found = warnings_of([FINE, FINE | figures], PPO())
    assert list(found) == [sign]
    assert cause in found[sign]


def test_a_run_that_does_well_is_left_in_peace():
    assert warnings_of([FINE], PPO()) == {}
    assert warnings_of([FINE, FINE | {"objective/kl": 4.0, "objective/entropy": 0.6}], PPO()) == {}
