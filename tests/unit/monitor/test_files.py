"""Files of a run folder are read incrementally, bounded, and without following links."""

import os

import pytest

from oddsmith.monitor.files import MAX_LINE_BYTES, Tail


def test_a_half_written_line_waits_for_its_end(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    assert list(tail.new_lines()) == []
    file.write_bytes(b"one\ntw")
    assert list(tail.new_lines()) == [b"one"]
    file.write_bytes(b"one\ntwo\n")
    assert list(tail.new_lines()) == [b"two"]
    assert list(tail.new_lines()) == []


def test_a_line_that_is_too_long_is_skipped_even_while_it_grows(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    file.write_bytes(b"a\n" + b"x" * (3 * MAX_LINE_BYTES))
    assert list(tail.new_lines()) == [b"a"]
    with file.open("ab") as more:
        more.write(b"x" * MAX_LINE_BYTES)
    assert list(tail.new_lines()) == []
    with file.open("ab") as more:
        more.write(b"yz\nb\n" + b"w" * (MAX_LINE_BYTES + 1) + b"\nc\n")
    assert list(tail.new_lines()) == [b"b", b"c"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.parent / "secret")])
def test_neither_pipes_nor_links_are_read(tmp_path, make):
    (tmp_path / "secret").write_bytes(b"secret\n")
    make(tmp_path / "lines")
    assert list(Tail(tmp_path / "lines").new_lines()) == []
