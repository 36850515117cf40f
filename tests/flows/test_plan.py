"""Which steps a config needs."""

from __future__ import annotations

from typing import Any

import pytest

from flows.config import RoundConfig
from flows.plan import needed_steps, not_used
from labeling.errors import InputError

RANKED = ("completions", "publish", "gate", "freeze", "pairs", "reward")
END = ("ppo", "evaluate", "promote", "report")


def config(**given: Any) -> RoundConfig:
    return RoundConfig.model_validate(
        {"name": "x", "model": "gpt2", "prompts": {"path": "p.jsonl"}} | given
    )


PREFERENCES = {"data": "pairs.jsonl"}
FUNCTION = {"reward_function": "rubric.py:score"}
JUDGE = {"judge": "rubric.py:score"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("prompts", *RANKED, *END)),
        ({"sft": {"data": "d"}}, ("prompts", "sft", *RANKED, *END)),
        (
            {"labeling": {"simulated": [{"score": "r.py:s"}]}},
            ("prompts", "completions", "publish", "simulated", *RANKED[2:], *END),
        ),
        ({"stop_after": "completions", "sft": {"data": "d"}}, ("prompts", "sft", "completions")),
        ({"stop_after": "labels"}, ("prompts", *RANKED[:4])),
        ({"stop_after": "reward"}, ("prompts", *RANKED)),
        ({"preferences": PREFERENCES}, ("prompts", "preferences", "reward", *END)),
        (
            {"preferences": PREFERENCES, "stop_after": "reward", "prompts": None},
            ("preferences", "reward"),
        ),
        ({"ppo": FUNCTION}, ("prompts", *RANKED, *END)),  # the reward model judges
        ({"evaluation": JUDGE}, ("prompts", *RANKED, *END)),
        ({"ppo": FUNCTION, "evaluation": JUDGE}, ("prompts", *END)),
        (
            {"ppo": FUNCTION, "evaluation": JUDGE, "stop_after": "reward"},
            ("prompts", *RANKED),
        ),
    ],
)
def test_a_step_runs_only_if_something_wanted_needs_it(
    given: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert needed_steps(config(**given)) == expected


def test_a_config_that_contradicts_itself_is_refused_in_one_line() -> None:
    for given, words in (
        ({"preferences": PREFERENCES, "stop_after": "labels"}, "stop_after: labels is not reached"),
        ({"preferences": PREFERENCES, "stop_after": "completions"}, "preferences.data"),
        ({"preferences": PREFERENCES, "prompts": None}, "'prompts' is missing"),
        ({"prompts": None, "stop_after": "reward"}, "'prompts' is missing"),
        ({"ppo": {"sft_coef": 0.1}}, "ppo.sft_coef needs the demonstrations of sft.data"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            needed_steps(config(**given))
        assert "\n" not in str(caught.value)


def test_what_is_given_and_not_used_is_said() -> None:
    simulated = {"simulated": [{"score": "r.py:s"}]}
    assert not_used(config(labeling=simulated)) == []
    (line,) = not_used(config(labeling=simulated, preferences=PREFERENCES))
    assert line.startswith("labeling.simulated is not used")
    lines = not_used(config(ppo=FUNCTION, evaluation=JUDGE, preferences=PREFERENCES))
    assert [line.split(" is ")[0] for line in lines] == ["no reward model", "preferences.data"]


def test_only_the_first_round_has_sft() -> None:
    given = config(sft={"data": "d"})
    assert needed_steps(given, 1) == ("prompts", *RANKED, *END)
    assert needed_steps(given, 0) == ("prompts", "sft", *RANKED, *END)
