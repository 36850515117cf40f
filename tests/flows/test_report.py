import json
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest

from flows.config import RoundConfig
from flows.report import CURVES, curve, write_report
from labeling.pairs import PairMetrics
from labeling.preferences import PreferenceMetrics
from labeling.prompts import PromptMetrics
from ppo.evaluate import EvaluationMetrics, PolicyFigures
from ppo.generation import SamplingMetrics
from ppo.sft import SFTMetrics
from ppo.train import PPOMetrics
from reward.train import RewardMetrics

HOSTILE = "<script>alert(1)</script> {{ 7*7 }} \u202e<img src=x onerror=alert(1)>"


def make_report(root, without=(), win=(0.85, (0.81, 0.88)), more=None, **sections):
    """A report over entries whose metrics have the stages' own types."""
    figures = {
        "judge": 1.5,
        "reward": 0.25,
        "tokens": 12.5,
        "finished": 0.99,
        "distinct": 0.9,
        "guards": {"valid": 0.875},
    }
    metrics = {
        "prompts": PromptMetrics(90, 10, 3, 0),
        "sft": SFTMetrics(0.5, 0.8, 70, 900, 12, 0, 0),
        "completions": SamplingMetrics(90, 360, 1.0, 0.99, 0, 12.0),
        "preferences": PreferenceMetrics(1234, 77, 5, 6, 0),
        "pairs": PairMetrics(
            rankings=88,
            labelers=2,
            pairs=400,
            prompts=88,
            ties_kept=0,
            ties_dropped=4,
            identical_texts=2,
            all_tied=3,
            unranked=0,
            none_acceptable=0,
            bad_prompt=1,
            disputed_prompts=0,
            outvoted=0,
            shared_comparisons=9,
            contradictions=1,
        ),
        "reward": RewardMetrics(0.8125, 0.9, 360, 40, 0, 12, 0.5, 0.0, 1.0),
        "ppo": PPOMetrics(5, 640, 7000, 0.0, 1.25, 3.5, 1.1, 0.05, 0.1, 0.6),
        "evaluate": EvaluationMetrics(
            win_rate=win[0],
            win_rate_interval=win[1],
            wins=8,
            ties=1,
            losses=1,
            prompts=10,
            kl=3.25,
            judged_by="a judge function",
            initial=PolicyFigures(**figures),
            win_rate_vs_incumbent=0.625,
            win_rate_vs_incumbent_interval=(0.5625, 0.6875),
            kl_vs_incumbent=1.75,
            incumbent=PolicyFigures(**figures | {"judge": 1.375}),
            **figures,
        ),
    }
    folders = {}
    for name, value in metrics.items():
        if name in without:
            continue
        folders[name] = root / name
        folders[name].mkdir()
        manifest = {
            "key": f"key-of-{name}",
            "metrics": asdict(value),
            "inputs": {
                "model": "digest-of-model",
                "policy": "digest-of-policy",
                "data": "digest-of-data",
                "source": "digest-of-prompts",
                "labels": "digest-of-labels",
                "judge": "digest-of-judge",
                "reward_function": "digest-of-function",
                "initial": "digest-of-initial",
            },
            "libraries": {"torch": "2.13.0"},
            "device": "cpu",
            "commit": "0123456789abcdef",
        }
        (folders[name] / "manifest.json").write_text(json.dumps(manifest))
    rows = [{name: math.sin(i) for name, _, _ in CURVES} for i in range(5)]
    (folders["ppo"] / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    example = {
        "prompt": HOSTILE,
        "before": HOSTILE,
        "after": HOSTILE,
        "judge_before": 0.0,
        "judge_after": 1.0,
    }
    (folders["evaluate"] / "examples.json").write_text(json.dumps([example]))
    config = RoundConfig.model_validate(
        {
            "name": "test",
            "model": str(root / "base"),
            "prompts": {"path": str(root / "p.jsonl")},
            "sft": {"data": str(root / "corpus.jsonl")},
            "evaluation": {"judge": f"{root}/rubric.py:score"},
        }
        | sections
    )
    out = root / "out"
    out.mkdir()
    folders["evaluation"] = folders.pop("evaluate")
    if "pairs" not in without:
        folders["labels"] = root / "labels.parquet"
    write_report(config, out=out, **folders, **(more or {}))
    return (out / "report.html").read_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return make_report(root, without=("preferences",)), root


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parsed(html):
    parser = Tags()
    parser.feed(html)
    return parser


def test_every_text_of_a_model_is_shown_literally(report):
    page = parsed(report[0])
    assert not [tag for tag, _ in page.found if tag in ("script", "img", "iframe")]
    assert page.text.count(HOSTILE) == 3


def test_it_holds_everything_itself(report):
    for tag, attributes in parsed(report[0]).found:
        assert tag not in ("link", "object", "embed")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")


def test_the_figures_are_the_metrics(report):
    text = re.sub(r"\s+", " ", parsed(report[0]).text)
    for shown in (
        "85.0 %",
        "81.0 %",
        "88.0 %",
        "81.2 %",
        "corpus.jsonl",
        "rubric.py:score",
        "digest-of-labels",
        "88 rankings",
        "400",
        "0.875",
        "3.25",
    ):
        assert shown in text, shown


def test_a_round_of_given_preferences_reports_them_in_place_of_rankings(tmp_path):
    given = {"preferences": {"data": str(tmp_path / "mine.jsonl")}}
    html = make_report(tmp_path, without=("completions", "pairs", "sft"), sft=None, **given)
    text = re.sub(r"\s+", " ", parsed(html).text)
    for shown in (
        "1,234preference pairs, given",
        "1,234 pairs of 77 prompts, given, not ranked here; 5 of identical texts left out",
        "mine.jsonl",
        "digest-of-data",
        "digest-of-initia",
        "81.2 %",
    ):
        assert shown in text, shown
    assert "rankings" not in text.partition("Configuration")[0]
    assert "labels.parquet" not in text


def test_a_round_without_a_reward_model_reports_none(tmp_path):
    html = make_report(
        tmp_path,
        without=("completions", "pairs", "preferences", "reward"),
        ppo={"reward_function": f"{tmp_path}/rubric.py:score"},
    )
    text = re.sub(r"\s+", " ", parsed(html).text)
    assert "as the reward function counts" in text
    assert "digest-of-functi" in text
    assert "held-out" not in text.partition("Configuration")[0]


def test_it_tells_no_path_of_the_machine(report):
    html, root = report
    assert str(root) not in html


def test_pictures_suit_light_and_dark_and_repeat_to_the_byte():
    rows = [{"objective/kl": float(i)} for i in range(4)]
    svg = curve(rows, "objective/kl")
    assert svg == curve(rows, "objective/kl")
    assert "currentColor" in svg
    assert not re.search(r"<svg[^>]* width=", svg)


@pytest.mark.parametrize(
    ("win", "kind", "chance"),
    [
        ((0.85, (0.81, 0.88)), "headline better", False),
        ((0.2, (0.15, 0.26)), "headline worse", False),
        ((0.55, (0.45, 0.64)), "headline", True),
    ],
)
def test_the_headline_is_no_better_than_its_figure(tmp_path, win, kind, chance):
    html = make_report(tmp_path, win=win)
    assert f'<p class="{kind}">' in html
    assert ("can be chance" in html) == chance


def test_a_later_round_reports_its_incumbent_its_promotion_and_its_lineage(tmp_path):
    incumbent = {"round": 0, "key": "key-of-policy", "digest": "digest-of-policy-0"}
    ancestor = {
        "round": 0,
        "started_from": None,
        "config": "digest-of-config-0",
        "seed": 11,
        "commits": ["fedcba9876543210"],
        "versions": {"torch": "2.99"},
        "data": {"rankings": "digest-of-labels-0"},
        "labels": {"rankings": 1234, "labelers": 5, "pairs": 99},
        "stages": {"reward": "key-of-reward-0"},
        "win_rate": 0.8125,
        "win_rate_vs_incumbent": 0.8125,
        "promotion": "promoted",
    }
    more = {
        "promotion": {"what": "refused", "by": "gate", "reason": "the guard <b> fell"},
        "lineage": {"round": 1, "incumbent": incumbent, "earlier": [ancestor]},
    }
    html = make_report(tmp_path, without=("preferences", "sft"), more=more)
    text = re.sub(r"\s+", " ", parsed(html).text)
    for shown in (
        "test, round 1",
        "Over round 0's policy, from which this round started, it wins 62.5 %",
        "Refused by the gate: the guard <b> fell",
        "Round 0: 1,234 rankings of 5 labelers, win rate 0.812 over the initial policy, promoted",
        "digest-of-config",
        "seed 11",
        "digest-of-labels",
        "key-of-reward-0",
        "torch 2.99; Rankloop at fedcba987654",
        "1.38",  # the incumbent's figure
    ):
        assert shown in text, shown
