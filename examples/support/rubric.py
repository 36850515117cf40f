"""The demo's ground truth: what a good reply of the support desk is.

Simulated labelers rank by `score`, with noise; the judge of the evaluation is `score` itself. The
models never see it: they see rankings only.

    +3     a sentence that fixes the customer's issue
    +1     the customer's product is named, and no other
    +1     a greeting by the customer's name
    +0.75  a sentence of empathy
    +0.5   a friendly closing
    −2     a rude sentence
    −1     a fix for another issue
    −1     a sentence said twice
    −1     a sentence that is none of this world's (it is ungrammatical, mostly)
    −2     an end in the middle of a sentence

Each counts once in a reply, so 6.25 is the most, and nothing is gained by saying everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_WORLD: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("sentences.yaml").read_text(encoding="utf-8")
)
_NAME = "|".join(map(re.escape, _WORLD["names"]))
_PRODUCT = "|".join(map(re.escape, sorted(_WORLD["products"], key=len, reverse=True)))
_PRODUCTS = re.compile(rf"\b(?:{_PRODUCT})\b")


def _pattern(templates: Iterable[str]) -> re.Pattern[str]:
    """Matches exactly one sentence: any of the templates, with any values in their slots."""
    slots = {r"\{name\}": _NAME, r"\{product\}": _PRODUCT, r"\{thing\}": f"it|your (?:{_PRODUCT})"}
    choices = []
    for template in templates:
        pattern = re.escape(template)
        for slot, values in slots.items():
            pattern = pattern.replace(slot, f"(?:{values})")
        choices.append(pattern)
    return re.compile("|".join(choices))


def _sentences(part: str, kind: str) -> list[str]:
    return list(_WORLD["reply"][part][kind]["sentences"])


_ISSUES = {
    name: (
        re.compile("|".join(re.escape(c).replace(r"\{product\}", ".+") for c in i["complaints"])),
        _pattern(i["fixes"]),
    )
    for name, i in _WORLD["issues"].items()
}
_NAMED = _pattern(_sentences("greeting", "named"))
_EMPATHY = _pattern(_sentences("opening", "empathy"))
_RUDE = _pattern(_sentences("opening", "rude"))
_CLOSING = _pattern(_sentences("closing", "closing"))
_ANY = _pattern(
    [s for i in _WORLD["issues"].values() for s in i["fixes"]]
    + [s for p in _WORLD["reply"].values() for k in p.values() for s in k.get("sentences", [])]
)


@dataclass(frozen=True)
class Parts:
    """What a reply has, for tables and plots; `score` is their weighted sum."""

    right_fix: bool
    right_product: bool
    named: bool
    empathy: bool
    closing: bool
    rude: bool
    wrong_fix: bool
    repeated: bool
    foreign: bool
    unfinished: bool

    @property
    def score(self) -> float:
        good = (
            3 * self.right_fix
            + self.right_product
            + self.named
            + 0.75 * self.empathy
            + 0.5 * self.closing
        )
        bad = 2 * self.rude + self.wrong_fix + self.repeated + self.foreign + 2 * self.unfinished
        return good - bad


def parts(prompt: str, completion: str) -> Parts:
    """Read one reply.

    Raises:
        ValueError: the prompt is none of this world's.
    """
    name, product, issue = _customer(prompt)
    sentences = split(completion)
    fixes = {i for s in sentences for i, (_, fix) in _ISSUES.items() if fix.fullmatch(s)}
    unfinished = not completion.rstrip().endswith((".", "!"))
    # The rest of a sentence that was cut short is counted as that, not as ungrammatical too.
    whole = sentences[:-1] if unfinished else sentences
    return Parts(
        right_fix=issue in fixes,
        right_product=set(_PRODUCTS.findall(completion)) == {product},
        named=any(_NAMED.fullmatch(s) and s.endswith(f" {name}!") for s in sentences),
        empathy=any(_EMPATHY.fullmatch(s) for s in sentences),
        closing=any(_CLOSING.fullmatch(s) for s in sentences),
        rude=any(_RUDE.fullmatch(s) for s in sentences),
        wrong_fix=bool(fixes - {issue}),
        repeated=len(set(sentences)) < len(sentences),
        foreign=any(not _ANY.fullmatch(s) for s in whole),
        unfinished=unfinished,
    )


def split(completion: str) -> list[str]:
    """The sentences of a reply; each ends with a full stop or an exclamation mark."""
    text = completion.strip()
    return re.split(r"(?<=[.!]) ", text) if text else []


def score(prompts: list[str], completions: list[str]) -> list[float]:
    """How good each completion is as an answer to its prompt, from −7 to 6.25."""
    return [parts(p, c).score for p, c in zip(prompts, completions, strict=True)]


def valid(prompts: list[str], completions: list[str]) -> list[float]:
    """1.0 where every sentence of the completion is one of this world's, with any name, product
    or thing in its slots; else 0.0. Whether it helps does not matter here, so a policy that games
    its reward with garbled text loses validity even where it gains score. An empty completion and
    one that ends in the middle of a sentence are not valid."""
    found = [split(c) for c in completions]
    return [float(bool(s) and all(_ANY.fullmatch(t) for t in s)) for s in found]


def _customer(prompt: str) -> tuple[str, str, str]:
    said = prompt.removeprefix("Customer: ").removesuffix("\nDesk:").strip()
    names, products = re.findall(rf"\b(?:{_NAME})\b", said), _PRODUCTS.findall(said)
    complaint = split(said)[-1] if said else ""
    issues = [i for i, (asked, _) in _ISSUES.items() if asked.fullmatch(complaint)]
    if not names or not products or len(issues) != 1:
        raise ValueError(f"not a prompt of the support desk: {prompt!r}")
    return names[0], products[0], issues[0]
