"""The demo's world: what customers write, how the desk has answered them so far, and a small
untrained model. Run as `python examples/support/world.py --out DIR --seed 0`.

Writes corpus.jsonl (prompt, completion), prompts.jsonl, evaluation_prompts.jsonl and model/. A
fifth of all (product, issue) combinations is kept out of the corpus and of the training prompts,
and evaluation asks about nothing else. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CORPUS = 20_000
PROMPTS = 2_400
EVALUATION_PROMPTS = 512
HELD_OUT_SHARE = 0.2
FILES = frozenset({"corpus.jsonl", "prompts.jsonl", "evaluation_prompts.jsonl", "model"})


@dataclass(frozen=True)
class Customer:
    """Who writes, about what. `prompt` is what a policy sees; its completion starts with a space,
    so that every word has one token wherever it stands."""

    name: str
    product: str
    issue: str
    prompt: str


class World:
    """Sentences and seed → customers and replies."""

    def __init__(self, seed: int) -> None:
        path = Path(__file__).with_name("sentences.yaml")
        self.facts: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        self.seed = seed
        self.held_out = self._hold_out(random.Random(f"held out {seed}"))
        everything = {(p, i) for p in self.facts["products"] for i in self.facts["issues"]}
        self.seen = sorted(everything - self.held_out)

    def _hold_out(self, rng: random.Random) -> frozenset[tuple[str, str]]:
        """The same number of products for every issue, and no product loses many: the products
        are dealt round like cards."""
        products = rng.sample(self.facts["products"], len(self.facts["products"]))
        issues = rng.sample(sorted(self.facts["issues"]), len(self.facts["issues"]))
        each = round(HELD_OUT_SHARE * len(products))
        return frozenset(
            (products[(turn * each + card) % len(products)], issue)
            for turn, issue in enumerate(issues)
            for card in range(each)
        )

    def customer(self, rng: random.Random, combinations: list[tuple[str, str]]) -> Customer:
        product, issue = rng.choice(combinations)
        name = rng.choice(self.facts["names"])
        opening = rng.choice(self.facts["openings"]).format(name=name)
        complaint = rng.choice(self.facts["issues"][issue]["complaints"]).format(product=product)
        return Customer(name, product, issue, f"Customer: {opening} {complaint}\nDesk:")

    def reply(self, rng: random.Random, customer: Customer) -> str:
        """One reply of the desk so far: a leading space, then its sentences."""
        drawn = [self._sentence(rng, customer, part) for part in self.facts["reply"]]
        sentences = [sentence for sentence in drawn if sentence is not None]
        if rng.random() < self.facts["repeats"]:
            sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(sentences))
        return " " + " ".join(sentences)

    def _sentence(self, rng: random.Random, customer: Customer, part: str) -> str | None:
        kinds = self.facts["reply"][part]
        shares = [kind["share"] for kind in kinds.values()]
        names = [*kinds, None]
        kind = rng.choices(names, [*shares, max(0.0, 1 - sum(shares))])[0]
        if kind is None:
            return None
        template = rng.choice(self._templates(rng, customer, part, kind))
        name = customer.name
        if rng.random() < self.facts["wrong_names"]:
            name = _other(rng, self.facts["names"], name)
        return template.format(
            name=name, product=customer.product, thing=self._thing(rng, customer)
        )

    def _templates(self, rng: random.Random, customer: Customer, part: str, kind: str) -> list[str]:
        if kind not in ("right", "wrong"):
            return self.facts["reply"][part][kind]["sentences"]
        issue = customer.issue
        if kind == "wrong":
            issue = _other(rng, list(self.facts["issues"]), issue)
        return self.facts["issues"][issue]["fixes"]

    def _thing(self, rng: random.Random, customer: Customer) -> str:
        shares = self.facts["things"]
        kind = rng.choices(list(shares), list(shares.values()))[0]
        if kind == "bare":
            return "it"
        if kind == "right":
            return f"your {customer.product}"
        return f"your {_other(rng, self.facts['products'], customer.product)}"

    def corpus(self, count: int) -> list[dict[str, str]]:
        rng = random.Random(f"corpus {self.seed}")
        customers = [self.customer(rng, self.seen) for _ in range(count)]
        return [{"prompt": c.prompt, "completion": self.reply(rng, c)} for c in customers]

    def prompts(self, count: int, evaluation: bool = False) -> list[str]:
        """Distinct prompts; those for evaluation are about held-out combinations only."""
        rng = random.Random(f"{'evaluation' if evaluation else 'training'} prompts {self.seed}")
        combinations = sorted(self.held_out) if evaluation else self.seen
        found: dict[str, None] = {}
        while len(found) < count:
            found.setdefault(self.customer(rng, combinations).prompt)
        return list(found)


def _other(rng: random.Random, values: list[str], value: str) -> str:
    return rng.choice([v for v in values if v != value])


def write_world(out: Path, seed: int) -> str:
    """Write everything into `out` and return the digest of all its bytes. `out` is either the
    whole new world or what it was before.

    Raises:
        FileExistsError: `out` holds something that is not of this world.
    """
    if out.exists() and not {entry.name for entry in out.iterdir()} <= FILES:
        raise FileExistsError(f"{out} holds other files; choose an empty or a new folder")
    from base_model import write_base_model  # noqa: PLC0415 - torch, which --help need not load

    world = World(seed)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    corpus = world.corpus(CORPUS)
    _write_rows(partial / "corpus.jsonl", corpus)
    training, evaluation = world.prompts(PROMPTS), world.prompts(EVALUATION_PROMPTS, True)
    _write_rows(partial / "prompts.jsonl", ({"prompt": p} for p in training))
    _write_rows(partial / "evaluation_prompts.jsonl", ({"prompt": p} for p in evaluation))
    write_base_model(partial / "model", [r["prompt"] + r["completion"] for r in corpus], seed)
    digest = digest_of(partial)
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
    return digest


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files below a folder."""
    total = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here / "data", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world")
    arguments = parser.parse_args()
    try:
        digest = write_world(arguments.out.absolute(), arguments.seed)
    except FileExistsError as error:
        parser.error(str(error))
    print(f"{arguments.out}  sha256 {digest}")


if __name__ == "__main__":
    main()
