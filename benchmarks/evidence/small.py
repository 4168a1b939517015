"""A reduced version of each question, on the built-in pairs: does each result point the same way?

    python -m benchmarks.evidence.small [--work FOLDER]         (`make evidence-small`)

Nothing is needed beside this repository. Each line names a claim of docs/evidence.md, what was found here, and whether
it holds; the exit code is 1 where one does not. The sizes are a tenth of those of the page, or less, so the figures are
other ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oddsmith.data.builtin import demo_pairs

from . import alternatives, instructions
from .grid import gain_of
from .lab import bootstrap, model_in_bf16, oddsmith, write_rows
from .measure import figures, trained

TRAIN, TEST = 103, 48  # of the built-in pairs
SETTINGS = {
    "max_length": 96,
    "learning_rate": 5e-4,
    "beta": 0.5,
    "num_train_epochs": 1,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


class Finding(NamedTuple):
    """A claim, what was found, and whether it holds."""

    claim: str
    found: str
    holds: bool


class Small:
    """The runs that several questions share, each made once."""

    def __init__(self, work: Path):
        self.work = work
        self.train = write_rows(work / "train.jsonl", demo_pairs("train")[:TRAIN])
        self.test = write_rows(work / "test.jsonl", demo_pairs("heldout")[:TEST])
        self._made: dict[str, dict[str, Any]] = {}

    def run(self, name: str, **settings: Any) -> dict[str, Any]:
        """Return a run with some settings; ``before`` is the model without a training."""
        if name not in self._made:
            train = None if name == "before" else str(self.train)
            spec = {"train": train, "test": str(self.test), "seed": 1, "settings": {**SETTINGS, **settings}}
            self._made[name] = trained({**spec, "general": True})
        return self._made[name]

    @property
    def before(self) -> dict[str, Any]:
        """The model before any training."""
        return self.run("before")

    @property
    def orpo(self) -> dict[str, Any]:
        """ORPO with settings that are known to work here."""
        return self.run("orpo")


def preferences(small: Small) -> Iterator[Finding]:
    """Yield what a training does to pairs that it has not seen."""
    before, after = figures(small.before), figures(small.orpo)
    accuracy = bootstrap(after["accuracy"] - before["accuracy"])
    found = f"{100 * before['accuracy'].mean():.0f}% before, {accuracy.text(0, 100, sign=True)} points"
    yield Finding("held-out pairs are told apart more often after ORPO", found, accuracy.low > 0)
    nll = bootstrap(after["nll"] - before["nll"])
    yield Finding("chosen answers become likelier", f"NLL {nll.text(2, sign=True)} nats a token", nll.high < 0)


def gap(small: Small) -> Iterator[Finding]:
    """Yield what fine-tuning on chosen answers does to the gap, and what ORPO does."""
    before, orpo = figures(small.before), figures(small.orpo)
    tuned = figures(small.run("fine-tuning", beta=0.0))
    wider = bootstrap(orpo["margin"] - tuned["margin"])
    found = f"{wider.text(2, sign=True)} nats a token wider than by fine-tuning"
    yield Finding("ORPO opens a wider gap than fine-tuning on the chosen answers", found, wider.low > 0)
    first, last = (float(one["margin"].mean()) for one in (before, orpo))
    yield Finding("the gap opens", f"{first:+.2f} before, {last:+.2f} after", last > first)


def others(small: Small) -> Iterator[Finding]:
    """Yield how ORPO here compares with TRL's."""
    found = {}
    for method in ("ORPO", "TRL's ORPO"):
        found[method] = alternatives.trained(
            {"method": method, "train": str(small.train), "test": str(small.test), "seed": 1, "steps": 8}
        )
    ours, theirs = (np.asarray(found[method]["pairs"]["chosen"]) for method in found)
    apart = float(np.abs(ours - theirs).max())
    words = f"log-probabilities of chosen answers differ by at most {apart:.3f} nats a token"
    yield Finding("after the same steps TRL's model says the same", words, apart < 0.2)
    times = found["TRL's ORPO"]["training_s"] / found["ORPO"]["training_s"]
    yield Finding("it takes TRL longer", f"{times:.1f} times as long", times > 1)


def rules(small: Small) -> Iterator[Finding]:
    """Yield whether instructions that are easy to check are followed more often after training on checked answers."""
    base, work = model_in_bf16(small.work), small.work
    asked = [row for row in instructions.rows(400, 3) if row["instruction_id_list"] == ["punctuation:no_comma"]]
    train, test = write_rows(work / "asked.jsonl", asked[:24]), write_rows(work / "asked-test.jsonl", asked[24:40])
    making = ("--samples", 4, "--max-new-tokens", 64, "--choose-unfinished")
    oddsmith("data", "make", train, "--model", base, "--judge", "rule", "--output", work / "checked.jsonl", *making)
    settings = {**instructions.SETTINGS, "learning_rate": 1e-3, "beta": 1.0, "num_train_epochs": 3, "max_length": 160}
    run = instructions.trained(base, work / "checked.jsonl", work / "checked", settings, 1)
    shares = [
        float(np.mean([all(one) for one in instructions.answered(model, test, 64)["strict"]]))
        for model in (base, str(run))
    ]
    words = f"{100 * shares[0]:.0f}% of {len(asked[24:40])} prompts before, {100 * shares[1]:.0f}% after"
    yield Finding(
        "an instruction is followed more often after training on checked answers", words, shares[1] > shares[0]
    )


def settings(small: Small) -> Iterator[Finding]:
    """Yield what too high a learning rate does, to what was known and to the diagnosis."""
    wild = small.run("wild", learning_rate=2e-2)
    texts = [one["text_perplexity"] for one in (small.before, small.orpo, wild)]
    words = f"perplexity {texts[0]:.1f} before, {texts[1]:.1f} after, {texts[2]:.1f} at forty times the learning rate"
    yield Finding("too high a learning rate forgets a general text", words, texts[2] > 2 * texts[1])
    facts = [sum(one["facts"]) for one in (small.before, small.orpo, wild)]
    words = f"{facts[0]} of {len(wild['facts'])} before, {facts[1]} after, {facts[2]} at forty times the learning rate"
    yield Finding("and simple facts", words, facts[2] < facts[1])
    gain = bootstrap(gain_of(small.orpo, small.before))
    verdicts = [one["verdict"]["verdict"] for one in (small.orpo, wild)]
    words = f"{verdicts[0]} for the run that gained {gain.mean:.2f} nats a pair, {verdicts[1]} for the other"
    yield Finding("the diagnosis tells them apart", words, verdicts[0] != "act" and verdicts[1] == "act")


QUESTIONS: tuple[Callable[[Small], Iterator[Finding]], ...] = (preferences, gap, others, rules, settings)


def main() -> None:
    """Answer all questions, and say what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep the files there")
    given = parser.parse_args()
    start, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as temporary:
        small = Small(given.work or Path(temporary))
        for question in QUESTIONS:
            for finding in question(small):
                failed += not finding.holds
                print(f"{'holds' if finding.holds else 'FAILS':6} {finding.claim}: {finding.found}", flush=True)
    print(f"{failed or 'none'} of them failed; {(time.monotonic() - start) / 60:.0f} min", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
