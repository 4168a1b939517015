"""The Python blocks of README and docs run as they stand, in order, in a folder of their own."""

import pytest

from tests.docs_blocks import PAGES, python_blocks


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_each_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in python_blocks(page):
        exec(compile(block.text, f"{page} {block.number}", "exec"), names)
