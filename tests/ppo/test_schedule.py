import pytest

from ppo.config import PPO
from ppo.schedule import learning_rate_at


def rates(**changes):
    config = PPO(**({"iterations": 5, "learning_rate": 1.0} | changes))
    return [learning_rate_at(i, config) for i in range(config.iterations)]


def test_linear_never_spends_an_iteration_on_nothing():
    assert rates(learning_rate_end=0.2) == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36])
    assert min(rates()) > 0


def test_cosine_falls_slowly_first_and_last():
    found = rates(learning_rate_schedule="cosine", iterations=4)
    assert found == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_constant_stays():
    assert rates(learning_rate_schedule="constant") == [1.0] * 5


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_rises_to_the_peak(schedule):
    found = rates(learning_rate_schedule=schedule, warmup_iterations=2, iterations=6)
    assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert found[2] == max(found)
