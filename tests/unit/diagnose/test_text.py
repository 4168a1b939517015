"""Files of text in any encoding, with colours, carriage returns and HTML."""

import pytest

from oddsmith.diagnose.text import MAX_LINE, has_html_table, lines_of, text_of_html

TEXT = "{'loss': 1.5}\n ü 10%|█ | 1/10 [00:01<00:09]\n{'loss': 1.4}\n"
PLAIN = [line for line in TEXT.split("\n") if line]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    path = tmp_path / "train.log"
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert list(lines_of(path)) == PLAIN


@pytest.mark.parametrize(
    "shown",
    ["\x1b[32m{'loss'\x1b[0m: 1.5}", "\x1b[A\x1b[2K{'loss': 1.5}", "\x1b]8;;x\x1b\\{'loss': 1.5}", "\0{'loss': 1.5}"],
    ids=["colours", "cursor", "link", "nul"],
)
def test_what_only_a_terminal_shows_is_left_out(tmp_path, shown):
    (tmp_path / "train.log").write_text(shown)
    assert list(lines_of(tmp_path / "train.log")) == ["{'loss': 1.5}"]


def test_minus_signs_and_spaces_of_web_pages(tmp_path):
    (tmp_path / "page.txt").write_text("│ logps: −1.5 │", encoding="utf-8")
    assert list(lines_of(tmp_path / "page.txt")) == ["| logps: -1.5 |"]


def test_of_a_huge_line_the_beginning_is_read(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("{'loss': 1.0}\n" + "x" * (3 * MAX_LINE) + "\n{'loss': 0.9}\n", encoding="utf-8")
    assert [len(line) for line in lines_of(path)] == [13, MAX_LINE, 13]


def test_tables_of_html_become_rows_with_tabs():
    page = [
        "<p>[30/30 00:52, Epoch 1/1]</p><table><thead><tr>",
        "  <th>Step</th>",
        "  <th class='x'>Training Loss</th></tr></thead>",
        "<tr><td>10</td>",
        "<td>1.9</td></tr></table>",
    ]
    assert has_html_table(page)
    assert not has_html_table(["a <thead> b", "1 <t 2"])
    assert [line.strip() for line in text_of_html(page)] == [
        "[30/30 00:52, Epoch 1/1]",
        "Step\tTraining Loss",
        "10\t1.9",
    ]
