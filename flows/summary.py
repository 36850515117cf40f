"""A round in a few words, a table and a plot: for the terminal, and for the dashboard's artifacts.
No Prefect."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labeling.tally import Tally, labeler_parts, listed
from labeling.wording import counted

# What each step's metrics come down to; `{tasks:task}` is a number with its noun.
_HEADLINES = {
    "prompts": "{train} to train on, {evaluation} to evaluate",
    "sft": "loss {loss:.3f} on {examples:example}",
    "completions": "{completions:completion} of {prompts:prompt}",
    "publish": "{tasks:task}, {created} of them new",
    "simulated": "{answers:answer} given",
    "gate": "{rankings:ranking} in",
    "freeze": "{rankings:ranking} of {labelers:labeler}",
    "preferences": "{pairs:pair} of {prompts:prompt}, given",
    "pairs": "{pairs:pair} of {rankings:ranking}",
    "reward": "held-out accuracy {held_out_accuracy:.3f}",
    "ppo": "score {first_score:.2f} → {last_score:.2f}, KL {kl:.2f}",
    "promote": "{what}: {reason}",
    "report": "",
    "summary": "table and plot on the dashboard",
}


def headline(step: str, metrics: Mapping[str, Any]) -> str:
    """A step's result in one short line."""
    if step == "evaluate":
        low, high = metrics["win_rate_interval"]
        said = f"win rate {metrics['win_rate']:.3f} [{low:.3f}, {high:.3f}], KL {metrics['kl']:.2f}"
        if metrics["incumbent"] != metrics["initial"]:
            said += f"; {metrics['win_rate_vs_incumbent']:.3f} over the incumbent"
        return said
    if step == "gate" and "tally" in metrics:
        return (
            f"{metrics['tally'].counting} of {counted(metrics['tally'].wanted, 'ranking')} so far"
        )
    return _HEADLINES[step].format_map({name: _Counted(m) for name, m in metrics.items()})


class _Counted:
    """A metric whose format may be a noun to count."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def __format__(self, how: str) -> str:
        return counted(self.metric, how) if how.isalpha() else format(self.metric, how)


def step_rows(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each step of round.json: step, time, result, where it is."""
    rows = []
    for name, step in document["stages"].items():
        rows.append(
            {
                "step": name,
                "time": "reused" if step["reused"] else f"{step['seconds']:.1f} s",
                "result": step["result"],
                "where": step["where"],
            }
        )
    return rows


def tally_rows(stands: Tally) -> list[dict[str, str]]:
    """A row for each labeler, then one for each reason why an answer is not used."""
    rows = []
    for labeler in stands.labelers:
        rankings, refused, pace, last = labeler_parts(asdict(labeler))
        row = {"labeler": labeler.labeler, "rankings": rankings, "not usable": refused}
        rows.append(row | {"pace": pace, "last answer": last})
    for reason, count in stands.refused.items():
        rows.append({"labeler": f"(not used: {listed({reason: count})})"})
    columns = ("labeler", "rankings", "not usable", "pace", "last answer")
    return [{column: row.get(column, "") for column in columns} for row in rows]


def summary_markdown(document: Mapping[str, Any]) -> str:
    """The round's outcome with PPO's curves, for the dashboard; of a round that stopped before it,
    what there is."""
    made, addresses, labels = document["stages"], document["addresses"], document["labels"]
    lines = [f"# {document['name']}, round {document['round']}"]
    if "evaluate" in made:
        evaluation = document["evaluation"]
        low, high = evaluation["win_rate_interval"]
        lines += [
            "The aligned policy is preferred to the initial one in "
            f"**{evaluation['win_rate']:.1%}** of comparisons (interval {low:.1%} to {high:.1%}), "
            f"at a KL of {evaluation['kl']:.2f} nats.",
            "",
            *_against_incumbent(document),
            *(f"- {name}: {value:.3f}" for name, value in evaluation["guards"].items()),
        ]
    else:
        lines += [f"Stopped after {document['config']['stop_after']}, as configured.", ""]
    if "reward" in made:
        accuracy = document["reward"]["held_out_accuracy"]
        lines.append(f"- reward model: held-out accuracy {accuracy:.3f}")
    if "preferences" in made:
        lines.append(
            f"- {counted(labels['pairs'], 'preference pair')} given: `{Path(labels['given']).name}`"
        )
    elif "freeze" in made:
        pairs = f", {counted(labels['pairs'], 'pair')}" if "pairs" in made else ""
        lines.append(f"- labels: {counted(labels['rankings'], 'ranking')}{pairs}")
    if "publish" in made:
        lines.append(f"- labeling page: {addresses['labeling']}")
    if "report" in made:
        lines.append(f"- report: `{addresses['report']}`")
    if "ppo" in made:
        plot = base64.b64encode(curves(Path(made["ppo"]["path"]) / "metrics.jsonl"))
        lines += ["", f"![PPO curves](data:image/png;base64,{plot.decode()})"]
    return "\n".join(lines)


def _against_incumbent(document: Mapping[str, Any]) -> list[str]:
    evaluation, origin = document["evaluation"], document.get("started_from")
    lines = []
    if origin:
        low, high = evaluation["win_rate_vs_incumbent_interval"]
        lines += [
            f"Over round {origin['round']}'s policy, from which it started: "
            f"**{evaluation['win_rate_vs_incumbent']:.1%}** (interval {low:.1%} to {high:.1%}).",
            "",
        ]
    if gate := document.get("promotion"):
        lines += [f"**{gate['what'].capitalize()}**: {gate['reason']}.", ""]
    return lines


def curves(metrics_file: Path) -> bytes:
    """Score and KL over PPO's iterations as a PNG of at most some 30 KB."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second, at the end of a round only

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), dpi=90)
    shown = (("objective/scores", "score"), ("objective/kl", "KL in nats"))
    for axis, (name, title) in zip(axes, shown, strict=True):
        axis.plot(range(1, len(rows) + 1), [row.get(name) for row in rows], color="#4052b5")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration", fontsize=9)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    return image.getvalue()
