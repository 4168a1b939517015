"""The page on GPUs shows the tables of its results; figures that are predicted anew have to be copied there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("heading", "file"), [("What fits", "gpu_memory.md"), ("Speed, predicted", "gpu_roofline.md")])
def test_a_line_of_a_table_is_a_line_of_the_results(heading, file):
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page.split(f"## {heading}\n")[1], flags=re.MULTILINE)[0]
    assert f"benchmarks/results/{file}" in section
    rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    results = (ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 4
    assert [row for row in rows if row not in results] == []
