"""The notebook of the first run does what it says, from top to bottom, without a network.

`make test-notebook` installs what a notebook needs.
"""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.docs_blocks import NO_NETWORK, ROOT

LIMIT_S = 360

pytestmark = [pytest.mark.slow, pytest.mark.apart, pytest.mark.timeout(LIMIT_S + 60)]

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; `make test-notebook` installs it")
nbformat = pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> tuple[Any, Path, float]:
    """The notebook with its output, the folder it ran in, and the seconds it took."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(shutil.copy(ROOT / "examples" / "first_run.ipynb", folder), as_version=4)
    nbformat.validate(notebook)
    started_at = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**NO_NETWORK, "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(name, value)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        nbclient.NotebookClient(notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, folder, time.monotonic() - started_at


def outputs(executed, cell: str) -> list[Any]:
    return next(one.outputs for one in executed[0].cells if one.id == cell)


def text_of(executed, cell: str, stream: str = "stdout") -> str:
    return "".join(one.text for one in outputs(executed, cell) if one.output_type == "stream" and one.name == stream)


def test_it_takes_less_than_six_minutes(executed):
    assert executed[2] < LIMIT_S


def test_it_trains_and_says_so_in_a_table_that_fits_a_page(executed):
    html = next(one.data["text/html"] for one in outputs(executed, "train") if "text/html" in one.get("data", {}))
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in html.split("<tr")[1:]]
    assert rows[0] == [
        *("Epoch", "Training Loss", "Validation Loss", "Nll Loss", "Or Loss", "Rewards/accuracies", "Rewards/margins"),
        "Perplexity/chosen",
    ]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2", "3"]
    accuracies = [float(row[5]) for row in rows[1:]]
    assert accuracies[-1] > 0.8 > accuracies[0]


def test_it_shows_the_gap_and_the_answers(executed):
    (picture,) = [one for one in outputs(executed, "gap") if "image/png" in one.get("data", {})]
    assert picture.data["image/png"]
    said = re.findall(r"before: (.*?)\n    after:  (.*?)\n\n", text_of(executed, "after"), flags=re.DOTALL)
    assert len(said) == 3
    assert all(len(after) < len(before) for before, after in said)


def test_it_leaves_a_model_that_answers(executed):
    (file,) = (executed[1] / "first-notebook-run" / "gguf").glob("*.gguf")
    assert file.stat().st_size > 50e6
    assert "tsunami" in text_of(executed, "chat").lower()


def test_no_line_is_drawn_twice(executed):
    """A notebook keeps what would redraw a line in a terminal."""
    cells = [cell.id for cell in executed[0].cells if cell.cell_type == "code"]
    assert [cell for cell in cells if "\x1b[2K" in text_of(executed, cell)] == []
