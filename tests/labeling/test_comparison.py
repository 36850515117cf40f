import pytest

from labeling.comparison import verdict, wilson_interval, win_rate


def test_a_tie_counts_one_half():
    assert [verdict(1, 0), verdict(0, 1), verdict(2, 2)] == [1.0, 0.0, 0.5]
    assert win_rate([1.0, 0.5, 0.0, 1.0]) == 0.625
    with pytest.raises(ValueError, match="no comparisons"):
        win_rate([])


def test_interval_agrees_with_published_values():
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3: 81/263 and 0/20.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_interval_keeps_a_width_at_certainty():
    low, high = wilson_interval(1.0, 100)
    assert 0.9 < low < high == 1.0
