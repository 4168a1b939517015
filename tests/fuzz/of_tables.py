"""Tables whose readers are not written in Python: Arrow, Parquet, spreadsheets; and CSV files of odd shapes.

Every example is read in a process of its own, which a reader may crash.
"""

import io
import json
import os
import struct
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from oddsmith.data.sources.loading import numbered_rows, open_rows
from oddsmith.errors import DataError
from tests.fuzz.answers import answered
from tests.fuzz.material import SNIPPETS, TEXTS, VALUES, damaged
from tests.fuzz.target import Target, folder

EXTREMES = (0, 1, 7, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Why {number}?"}],
        "chosen": [{"role": "assistant", "content": "Because. " * (number % 5)}],
        "rejected": [{"role": "assistant", "content": None if number % 3 else "No."}],
        "score": number / 3,
        "row": number,
        "sure": number % 2 == 0,
        "tags": [["a"] * (number % 3)],
        "source": "ab"[number % 2] * 30,
    }
    for number in range(60)
]


@cache
def _table() -> pa.Table:
    table = pa.Table.from_pylist(ROWS)
    return table.append_column("kind", table["source"].dictionary_encode())


def _arrow(*, compression: str | None = None, file: bool = False) -> bytes:
    sink = io.BytesIO()
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(sink, _table().schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(_table(), max_chunksize=25)
    return sink.getvalue()


def _parquet(**options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(), sink, **options)
    return sink.getvalue()


@cache
def _saved() -> dict[str, bytes]:
    """The files of ``save_to_disk``."""
    with tempfile.TemporaryDirectory() as place:
        datasets.Dataset(_table()).save_to_disk(place)
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


ARROW = [_arrow(), _arrow(), _arrow(compression="zstd"), _arrow(compression="lz4"), _arrow(file=True)]
PARQUET = [
    _parquet(),
    _parquet(compression="none", row_group_size=20),
    _parquet(compression="zstd", data_page_version="2.0", write_page_index=True),
    _parquet(compression="none", use_dictionary=False, data_page_size=100, store_schema=False),
]


@st.composite
def binary(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sound file with numbers replaced where they are aligned, or with faults of any kind."""
    if draw(st.sampled_from([False, False, True])):
        return draw(damaged(samples))
    content = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.sampled_from([1, 2, 4, 4, 8]))
        place = draw(st.integers(0, len(content) // width - 1)) * width
        number = draw(st.sampled_from(EXTREMES) | st.integers(0, 300)) % 256**width
        content[place : place + width] = struct.pack("<Q", number)[:width]
    return bytes(content)


@st.composite
def saved(draw: st.DrawFn) -> dict[str, bytes]:
    """A folder of ``save_to_disk`` with faults in one of its files."""
    files = dict(_saved())
    name = draw(st.sampled_from(sorted(files) + ["data-00000-of-00001.arrow"] * 5))
    if name.endswith(".arrow"):
        files[name] = draw(binary([*ARROW, files[name], files[name]]))
        return files
    document = json.loads(files[name])
    if draw(st.booleans()):
        files[name] = draw(damaged([files[name], *SNIPPETS[:8]]))
    else:
        files[name] = json.dumps(_replaced(draw, document)).encode()
    return files


def _replaced(draw: st.DrawFn, value: object) -> object:
    """Replace one value, at any depth."""
    if not value or not isinstance(value, dict | list) or draw(st.sampled_from([False, False, False, True])):
        return draw(VALUES | st.sampled_from(["Image", "Audio", "string", "../../x", {"_type": "Value"}]))
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copy = value.copy()
    copy[place] = _replaced(draw, copy[place])
    return copy


def _workbook(cells: list[list[str]]) -> dict[str, bytes]:
    """The parts of a spreadsheet."""
    rows = "".join(
        "<row>" + "".join(f'<c t="inlineStr"><is><t>{text}</t></is></c>' for text in row) + "</row>" for row in cells
    )
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    return {
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="A" sheetId="1" r:id="r1"'
        "/></sheets></workbook>".encode(),
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}"><Relationship Id="r1" Target='
        f'"worksheets/sheet1.xml" Type="{office}/worksheet"/></Relationships>'.encode(),
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>'.encode(),
    }


_PARTS = _workbook([["prompt", "chosen", "rejected"], ["Why?", "Because.", "No."], ["a", "b", "c"]])


@st.composite
def spreadsheets(draw: st.DrawFn) -> bytes:
    """A spreadsheet with faults in one of its parts, or in the archive."""
    parts = dict(_PARTS)
    name = draw(st.sampled_from(sorted(parts)))
    parts[name] = draw(damaged([parts[name]]))
    packed, packing = io.BytesIO(), draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(packed, "w") as archive:
        for part, content in parts.items():
            # Under its name alone it would have the time of now, and the same draws would not give the same file.
            archive.writestr(zipfile.ZipInfo(part), content, packing)
    return draw(binary([packed.getvalue()])) if draw(st.booleans()) else packed.getvalue()


@st.composite
def odd_tables(draw: st.DrawFn) -> bytes:
    """A CSV file with parts of it repeated thousands of times."""
    units = ["a,", '"', '""', "\n", "a\n", ",", "\r", "prompt,", "\x00", ";", "|", "\t", " ", '"\n', "é"]
    parts = st.tuples(st.sampled_from(units) | TEXTS, st.sampled_from([1, 2, 1_000, 20_000]))
    text = "".join(unit * times for unit, times in draw(st.lists(parts, max_size=4)))
    header = draw(st.sampled_from(["", "prompt,chosen,rejected\n", "sep=;\n"]))
    return (header + text[:3_000_000]).encode(errors="surrogatepass")


def read_tables(files: dict[str, bytes], name: str) -> None:
    """Rows are read to the last value, or an error says what is wrong; no process crashes but the one for it."""
    with folder() as place:
        (place / "given").mkdir()
        for file, content in files.items():
            (place / "given" / file).write_bytes(content)
        report = place / "report"
        child = os.fork()
        if child == 0:
            try:
                datasets.config.HF_DATASETS_CACHE = place / "cache"
                datasets.disable_progress_bars()
                with answered(DataError):
                    for _, row in numbered_rows(open_rows(str(place / "given" / name))):
                        repr(row)
            except BaseException:  # noqa: BLE001 - whatever escapes a reader is what is looked for
                report.write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, report.read_text() if report.exists() else f"the reader ended by signal {status & 127}"


def _reader(name: str) -> Callable[[bytes], None]:
    return lambda content: read_tables({name: content}, name)


TARGETS = {
    "folders of Arrow": Target(saved(), lambda files: read_tables(files, ".")),
    "Parquet": Target(binary(PARQUET), _reader("rows.parquet")),
    "spreadsheets": Target(spreadsheets(), _reader("rows.xlsx")),
    "odd tables": Target(odd_tables(), _reader("rows.csv")),
}
