"""How long `oddsmith data check` takes for 100,000 pairs, how much memory, and what of it nobody can avoid.

    python benchmarks/data_check.py [--pairs 100000]

The pairs are made of the built-in ones, joined to the lengths of UltraFeedback's: prompts of about 500 characters,
answers of about 1,200. The floor is reading the same file and making pairs of its rows, which every check has
to do. Memory is the highest sum over all processes, each with what it shares with the others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SHARED_PROMPTS = 20  # one prompt in so many is used again, as in real sets

from oddsmith.data.builtin import demo_pairs
from oddsmith.data.builtin.style import sentences_in
from oddsmith.data.formats import to_pair
from oddsmith.data.sources import open_rows


def write_pairs(path: Path, pairs: int, answer_characters: float = 6.9) -> None:
    """Write a file of made-up pairs; the median length of answers is given as a logarithm."""
    generator = random.Random(0)
    rows = demo_pairs("train")
    questions = [row["prompt"][0]["content"] for row in rows]
    sentences = [s for row in rows for side in ("chosen", "rejected") for s in sentences_in(row[side][0]["content"])]
    words = [word for sentence in sentences for word in sentence.split()]

    def text(characters: int) -> str:
        parts: list[str] = []
        while sum(map(len, parts)) < characters:
            # Half of the sentences have words of their own, so that the texts are not all alike.
            parts.append(
                generator.choice(sentences)
                if generator.random() < 0.5
                else " ".join(generator.choices(words, k=generator.randint(6, 18))).capitalize() + "."
            )
        return " ".join(parts)

    prompts: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            if number % SHARED_PROMPTS == SHARED_PROMPTS - 1:
                prompt = generator.choice(prompts[-1000:])
            else:
                prompt = f"{text(int(generator.lognormvariate(5.9, 0.8)))} {generator.choice(questions)}"
                prompts.append(prompt)
            answers = [text(int(generator.lognormvariate(answer_characters, 0.6))) for _ in range(2)]
            row = {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": answers[0]}],
                "rejected": [{"role": "assistant", "content": answers[1]}],
            }
            file.write(json.dumps(row) + "\n")


def measure(path: Path) -> dict[str, float]:
    """Run the command on the file: seconds and peak memory."""
    command = [sys.executable, "-m", "oddsmith.cli.main", "data", "check", str(path), "--json"]
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    peak = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:  # its one document fits into the pipe
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(each.memory_info().rss for each in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.2)
    seconds, after = time.perf_counter() - start, os.times()
    output = json.loads(process.stdout.read()) if process.stdout else {}
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"rows": output["rows"], "seconds": seconds, "cpu_seconds": cpu, "peak_GB": peak / 1e9}


def main() -> None:
    """Make the pairs, measure the floor and the command, print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write_pairs(path, pairs)
        start = time.process_time()
        for row in open_rows(str(path)):
            to_pair(row)
        floor = time.process_time() - start
        found = measure(path)
        print(f"file            {path.stat().st_size / 1e6:.0f} MB, {pairs:,} pairs")
        print(f"floor           {floor:.1f} s of one core (reading, making pairs)")
        cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
        print(f"data check      {found['seconds']:.1f} s on {cores} cores, load {load:.1f}")
        print(f"  of processors {found['cpu_seconds']:.1f} s")
        print(f"  peak memory   {found['peak_GB']:.2f} GB over all processes")


if __name__ == "__main__":
    main()
