"""Tables as spreadsheet programs write them: delimiters, quotes, code pages, and the spreadsheets themselves."""

import csv
import gzip
import io
import json
import time
import tracemalloc
import zipfile
from itertools import product

import pytest

from oddsmith.data.formats.values import number_of
from oddsmith.data.sources import decoding, delimited
from oddsmith.data.sources.delimited import DELIMITERS
from oddsmith.data.sources.files import read_rows
from oddsmith.data.sources.loading import load_rows
from oddsmith.errors import DataError

# Text with every delimiter in it, quotes and line breaks.
ROWS = [
    {"prompt": "Why, oh; why?", "chosen": 'It is "so":\n- a, b\n- c; d', "rejected": "No | yes\tmaybe"},
    {"prompt": "And, now", "chosen": "4,5", "rejected": ""},
    {"prompt": "Où?", "chosen": "Là-bas, à gauche", "rejected": "–"},
]
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
CASES = list(product(DELIMITERS, ("utf-8", "utf-8-sig", "utf-16", "cp1252"), (".csv", ".tsv", ".txt"), ("\n", "\r\n")))


def table(rows, delimiter, *, quoting=csv.QUOTE_MINIMAL, end="\r\n"):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return file.getvalue()


@pytest.mark.parametrize(
    ("delimiter", "encoding", "suffix", "end"),
    CASES,
    ids=[f"{NAMES[mark]} {code} {suffix} {len(end)}" for mark, code, suffix, end in CASES],
)
def test_every_table_gives_its_rows(tmp_path, delimiter, encoding, suffix, end):
    path = tmp_path / f"a{suffix}"
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        path.write_bytes(table(ROWS, delimiter, quoting=quoting, end=end).encode(encoding))
        assert list(read_rows(path)) == ROWS


@pytest.mark.parametrize("number", range(60))
def test_the_delimiter_is_found_in_tables_of_any_text(tmp_path, number):
    import random

    draw = random.Random(number)
    columns = draw.sample(["prompt", "chosen", "rejected", "score_a", "note", "id"], draw.randint(2, 6))
    texts = ["a", "b, c", "d; e; f", "g | h", "i\tj", 'k "l", m', "n\no, p; q", "", "1,5", "-", "x,y;z|w"]
    rows = [{name: draw.choice(texts) for name in columns} for _ in range(draw.randint(1, 12))]
    rows[0][columns[0]] = "a"  # a row of blanks alone is none
    path = tmp_path / f"a{draw.choice(['.csv', '.tsv', '.txt'])}"
    path.write_text(table(rows, draw.choice(DELIMITERS)), encoding="utf-8", newline="")
    assert list(read_rows(path)) == rows


@pytest.mark.parametrize("suffix", (".csv", ".csv.gz"))
def test_a_table_is_read_line_by_line(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(delimited, "TRIED_LETTERS", 10_000)
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 10_000)
    path, rows = tmp_path / f"a{suffix}", 1_000
    data = table([{"prompt": "x" * 8_000, "chosen": "é", "rejected": "No"}] * rows, ",").encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == rows
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < len(data)


def test_a_column_alone_is_a_table_of_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("chosen\nyes\nno\n")
    assert list(read_rows(path)) == [{"chosen": "yes"}, {"chosen": "no"}]


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_excel_may_name_the_delimiter(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(f"{first}prompt,what;chosen;rejected\na;b;c\n", newline="")
    assert list(read_rows(path)) == [{"prompt,what": "a", "chosen": "b", "rejected": "c"}]


def test_columns_without_a_name_at_the_end_are_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt;chosen;rejected;;\na;b;c;;\nd;e;f\n")
    assert [list(row.values()) for row in read_rows(path)] == [["a", "b", "c"], ["d", "e", "f"]]
    path.write_text("prompt;chosen;rejected;;\na;b;c;d;\n")
    with pytest.raises(DataError, match=r"line 2: found 4 fields; expected the 3 of the header"):
        list(read_rows(path))


def test_a_code_page_is_read_with_a_warning_and_only_where_it_is_likely(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_bytes(table(ROWS, ";").encode("cp1252"))
    list(read_rows(path))
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: not UTF-8, and read as Windows-1252; look at its accents, or save it as UTF-8"
    ]
    damaged = table(ROWS, ";").encode().replace("–".encode(), b"\xff")
    for content in (damaged, table([{"prompt": "Почему", "chosen": "Да"}], ";").encode("cp1251"), b"prompt\n\x81\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not UTF-8 at byte \d+ of the file"):
            list(read_rows(path))
    path.write_bytes(b"\xff\xfea\x00\x00\xd8")
    with pytest.raises(DataError, match=r"not UTF-16-LE at byte 2; save the file as UTF-8"):
        list(read_rows(path))


def test_a_decimal_comma_is_that_of_a_number():
    numbers = {"4,5": 4.5, "-0,75": -0.75, " 3,1415 ": 3.1415, "1,234": None, "1,2,3": None, "4,": None, ",5": None}
    assert {text: number_of(text) for text in numbers} == numbers


def test_a_text_beside_data_is_no_data(tmp_path):
    (tmp_path / "README.txt").write_text("a, b\nc, d\n")
    (tmp_path / "train.csv").write_text("prompt,chosen\na,b\n")
    assert load_rows(str(tmp_path)) == [{"prompt": "a", "chosen": "b"}]


# Spreadsheets

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def xlsx(**sheets) -> bytes:
    """A workbook of sheets of text, numbers and (as tuples of a number) dates."""

    def cell(value):
        if isinstance(value, tuple):
            return f'<c s="1"><v>{value[0]}</v></c>'
        if isinstance(value, bool):
            return f'<c t="b"><v>{int(value)}</v></c>'
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t xml:space="preserve">{value}</t></is></c>'
        return "<c/>" if value is None else f"<c><v>{value}</v></c>"

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as book:
        sheet_list, links = "", ""
        for number, (name, rows) in enumerate(sheets.items(), 1):
            body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
            book.writestr(
                f"xl/worksheets/sheet{number}.xml",
                f'<worksheet xmlns="{_MAIN}"><sheetData>{body}</sheetData></worksheet>',
            )
            sheet_list += f'<sheet name="{name}" sheetId="{number}" r:id="r{number}"/>'
            links += f'<Relationship Id="r{number}" Type="{_LINKS}/worksheet" Target="worksheets/sheet{number}.xml"/>'
        links += f'<Relationship Id="s" Type="{_LINKS}/styles" Target="styles.xml"/>'
        book.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{_MAIN}" xmlns:r="{_LINKS}"><sheets>{sheet_list}</sheets></workbook>',
        )
        book.writestr(
            "xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{_PACKAGE}/relationships">{links}</Relationships>'
        )
        book.writestr(
            "xl/styles.xml",
            f'<styleSheet xmlns="{_MAIN}"><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs></styleSheet>',
        )
        book.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="b" Type="{_LINKS}/officeDocument"'
            ' Target="xl/workbook.xml"/></Relationships>',
        )
        book.writestr("[Content_Types].xml", f'<Types xmlns="{_PACKAGE}/content-types"/>')
    return file.getvalue()


HEADER = ["prompt", "chosen", "rejected", "score_a"]


@pytest.fixture
def read():
    pytest.importorskip("python_calamine")
    return lambda path: list(read_rows(path))


def test_a_spreadsheet_gives_its_rows_as_text(tmp_path, read):
    path = tmp_path / "a.xlsx"
    rows = [HEADER, ["a\nb", "c, d", 42, 4.5], [None] * 4, [(45000,), True, None, -3]]
    path.write_bytes(xlsx(Pairs=rows))
    assert read(path) == [
        dict(zip(HEADER, texts, strict=True))
        for texts in (["a\nb", "c, d", "42", "4.5"], ["2023-03-15", "true", "", "-3"])
    ]


def test_sheets_with_the_same_header_are_one_table(tmp_path, read, caplog):
    path = tmp_path / "a.xlsx"
    first, second = [["a", "b", "c", "1"]], [["d", "e", "f", "2"]]
    path.write_bytes(xlsx(Empty=[], Pairs=[HEADER, *first], More=[HEADER, *second], Notes=[["by", "whom"], ["x", "y"]]))
    assert [list(row.values()) for row in read(path)] == first + second
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: only sheets with the header of 'Pairs' are read, not Notes"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK no spreadsheet", "not a spreadsheet that can be read"),
        (b"no spreadsheet", "not a spreadsheet that can be read"),
        (xlsx(A=[["prompt", "prompt"], ["a", "b"]]), "the header names 'prompt' twice"),
    ],
    ids=["a damaged archive", "text", "a name twice"],
)
def test_a_fault_of_a_spreadsheet_is_named(tmp_path, read, content, message):
    path = tmp_path / "a.xlsx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_spreadsheet_that_unpacks_to_gigabytes_is_refused(tmp_path, read, monkeypatch):
    monkeypatch.setattr("oddsmith.data.bounds.MIN_LIMIT_BYTES", 1000)
    path = tmp_path / "a.xlsx"
    path.write_bytes(xlsx(A=[HEADER, ["a" * 2_000_000] * 4]))
    with pytest.raises(DataError, match="unpacks to more than"):
        read(path)


def test_a_cell_in_the_last_row_and_column_does_not_take_all_cells_before_it(tmp_path, read):
    """A sheet is a rectangle in memory: 17,179,869,184 cells, which the reader cannot have and aborts."""
    with zipfile.ZipFile(io.BytesIO(xlsx(A=[HEADER]))) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    last = b'<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>x</t></is></c></row>'
    parts["xl/worksheets/sheet1.xml"] = parts["xl/worksheets/sheet1.xml"].replace(
        b"</sheetData>", last + b"</sheetData>"
    )
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        for name, content in parts.items():
            book.writestr(name, content)
    with pytest.raises(DataError, match="a.xlsx: (damaged: reading it ended a process|too little memory to read it)"):
        read(tmp_path / "a.xlsx")


def seconds_to_refuse(path, message):
    began = time.process_time()
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path))
    assert len(str(caught.value)) < 2_000
    return time.process_time() - began


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_thousands_of_columns_are_refused_at_once(tmp_path, suffix):
    names = ["prompt", "chosen", "rejected", *(f"column {number}" for number in range(40_000))]
    row = dict.fromkeys(names, "a")
    path = tmp_path / f"a{suffix}"
    path.write_text(json.dumps(row) + "\n" if "json" in suffix else table([row], "," if suffix == ".csv" else "\t"))
    assert seconds_to_refuse(path, "found 40,003 columns; expected at most 1,000") < 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("p" * 5_000_000 + ",chosen,rejected\na,b,c\n", "found a name of 5,000,000 letters in the header"),
        ('prompt,chosen,rejected\n"' + "a,b\n" * 1_000_000, "unexpected end of data; put fields with quotes"),
        ("prompt,chosen,rejected\n" + '"' + "a" * 17_000_000 + '",b,c\n', "field larger than field limit"),
        ("prompt,chosen,rejected\n" + "a," * 1_000_000, "found 1000000 fields; expected the 3 of the header"),
    ],
    ids=["a name", "a quote that is never closed", "a field", "fields of a row"],
)
def test_what_is_far_too_long_is_refused_at_once(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    assert seconds_to_refuse(tmp_path / "a.csv", message) < 4


def test_a_table_with_a_thousand_columns_is_read(tmp_path):
    row = {f"column {number}": "a" for number in range(1_000)}
    (tmp_path / "a.csv").write_text(table([row], ","))
    assert list(read_rows(tmp_path / "a.csv")) == [row]
