"""Numbers and shares in the labeling section, in whatever form they come."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from labeling.config import Labeling


@pytest.mark.parametrize("wanted", [1, 400, 0.8, 0.001, None])
def test_a_number_stays_a_number_and_a_share_a_share_through_json(wanted: float | None) -> None:
    config = Labeling(wanted=wanted)
    assert (config.wanted, type(config.wanted)) == (wanted, type(wanted))
    assert Labeling.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("field", ["wanted", "minimum"])
def test_no_field_holds_a_share_that_a_browser_would_turn_into_one_ranking(field: str) -> None:
    """To JavaScript 1.0 and 1 are the same number."""
    try:
        kept = getattr(Labeling.model_validate({field: 1.0}), field)
    except ValidationError:
        return
    assert kept is None


@pytest.mark.parametrize("given", [0, -1, 1.5, True, "", "many", 0.0, float("nan"), [1]])
def test_what_is_neither_is_refused_in_one_line(given: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Labeling.model_validate({"wanted": given})
    (error,) = caught.value.errors()
    assert error["loc"] == ("wanted",)
    assert "a number of rankings from 1 on, or a share" in error["msg"]


def test_the_form_offers_a_number_and_a_share() -> None:
    offered = Labeling.model_json_schema()["properties"]["wanted"]["anyOf"]
    assert [kind["type"] for kind in offered] == ["integer", "number", "null"]
    assert offered[1] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


@pytest.mark.parametrize(("minimum", "wanted"), [(5, 4), (0.6, 0.5)])
def test_no_more_is_asked_for_after_the_deadline_than_before(minimum: float, wanted: float) -> None:
    with pytest.raises(ValidationError, match=f"minimum is {minimum}, and wanted is {wanted}"):
        Labeling(minimum=minimum, wanted=wanted)
    assert Labeling(minimum=wanted, wanted=wanted)
