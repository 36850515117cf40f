"""The report: one HTML file that holds everything, for the lead who reads it and for whoever it
is sent to. Pictures are inline SVG in the text's own colour, so they suit light and dark."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from flows.config import RoundConfig
from flows.lineage import Lineage, named, used_data
from flows.store import MANIFEST, keyed
from labeling.tally import listed
from labeling.wording import counted

# Metric, title, and what a reader should look for.
CURVES = [
    ("objective/scores", "Reward", "mean score of the reward model; it should rise"),
    ("objective/kl", "KL", "nats a response away from the reference; it should level off"),
    ("objective/entropy", "Entropy", "nats a token; near 0 the policy repeats itself"),
    ("policy/clipfrac", "Clip fraction", "share of tokens whose update was clipped"),
    ("val/explained_variance", "Explained variance", "how well the value predicts the returns"),
]
# Matplotlib writes colours as hex: this one stands for "the colour of the text around".
_TEXT = "#010203"


@dataclass(frozen=True)
class ReportMetrics:
    """How large the report became."""

    bytes: int
    examples: int


def write_report(
    config: RoundConfig,
    prompts: Path,
    ppo: Path,
    evaluation: Path,
    out: Path,
    sft: Path | None = None,
    completions: Path | None = None,
    labels: Path | None = None,
    answers: Path | None = None,
    preferences: Path | None = None,
    pairs: Path | None = None,
    reward: Path | None = None,
    promotion: dict[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
) -> ReportMetrics:
    """Write `out/report.html` from the entries of the stages that made the round; `labels` is in
    the lineage of `pairs`, `answers` says in numbers how they came to be (flows/freezing.py),
    `promotion` what the gate said (flows.history.Decision.verdict), and `lineage` what a later
    round started from (flows.lineage.Lineage).

    It says nothing of times, so the same round gives the same bytes; every text of a model or a
    person is escaped by the template.
    """
    entries = {
        "prompts": prompts,
        "sft": sft,
        "completions": completions,
        "preferences": preferences,
        "pairs": pairs,
        "reward": reward,
        "ppo": ppo,
        "evaluate": evaluation,
    }
    manifests = {n: json.loads((p / MANIFEST).read_text()) for n, p in entries.items() if p}
    metrics = {name: manifest["metrics"] for name, manifest in manifests.items()}
    rows = [json.loads(line) for line in (ppo / "metrics.jsonl").read_text().splitlines()]
    examples = json.loads((evaluation / "examples.json").read_text())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = counted
    environment.filters["listed"] = listed
    past = Lineage.model_validate(lineage or {"round": 0})
    html = environment.get_template("report.html.jinja").render(
        config=config,
        config_yaml=yaml.safe_dump(
            _shown_config(config), sort_keys=False, allow_unicode=True, width=88
        ),
        m=metrics,
        answers=json.loads(answers.read_text()) if answers else None,
        manifests=manifests,
        data=used_data(config, manifests),
        curves=[
            {"title": title, "meaning": meaning, "svg": curve(rows, name)}
            for name, title, meaning in CURVES
        ],
        figures=compared_figures(metrics["evaluate"], past.incumbent is not None),
        promotion=promotion,
        lineage=past,
        incumbent=named(past.incumbent),
        examples=examples,
    )
    partial = out / "report.html.partial"
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, out / "report.html")
    return ReportMetrics(bytes=len(html.encode()), examples=len(examples))


def compared_figures(
    evaluation: dict[str, Any], with_incumbent: bool = False
) -> list[tuple[str, list[str]]]:
    """Rows of the table of figures: name, and the figure of the initial policy, of the incumbent
    where it is another, and of the aligned policy."""
    policies = [evaluation["initial"], evaluation]
    if with_incumbent:
        policies.insert(1, evaluation["incumbent"])
    shown = [
        ("score of the judge", "judge", "{:.2f}"),
        ("score of the reward model", "reward", "{:.2f}"),
        ("length in tokens", "tokens", "{:.1f}"),
        ("finished within the limit", "finished", "{:.1%}"),
        ("distinct completions", "distinct", "{:.1%}"),
    ]
    rows = [
        (title, [form.format(policy[name]) for policy in policies])
        for title, name, form in shown
        if evaluation[name] is not None
    ]
    return rows + [
        (f"guard: {name}", [f"{policy['guards'][name]:.3f}" for policy in policies])
        for name in sorted(evaluation["guards"])
    ]


def curve(rows: Sequence[dict[str, float]], name: str) -> Markup:
    """One metric over PPO's iterations as inline SVG, the same bytes for the same numbers."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second that only a report costs

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT
    )
    style: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, **ink}
    with plt.rc_context(style):
        figure, axis = plt.subplots(figsize=(4.2, 2.1))
        axis.plot(
            range(1, len(rows) + 1),
            [row[name] for row in rows],
            color="#5b6ee1",
            lw=1.8,
            marker="o",
            ms=3,
        )
        axis.set_xlabel("iteration")
        axis.locator_params(axis="x", integer=True)
        axis.grid(color=_TEXT, alpha=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout(pad=0.4)
        image = io.StringIO()
        figure.savefig(image, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = image.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    # Width and height in points would not shrink on a phone; the viewBox does.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # Ids are unique within one picture; several share the page.
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return Markup(svg)


def _shown_config(config: RoundConfig) -> dict[str, Any]:
    """The config without what cannot change the result: no paths of the machine it ran on."""
    return {"name": config.name, "model": Path(config.model).name} | keyed(config)
