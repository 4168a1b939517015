"""Datasets: where they are, and what their files hold."""

from typing import Any

from tests.bad_inputs.case import CONFIG, GOOD, BadInput, Content, folder, lines


def _file(name: str, content: str | bytes) -> dict[str, Content]:
    """Another file of pairs, which the settings name."""
    return {"c.yaml": CONFIG.replace("pairs.jsonl", name), name: content}


def _named(name: str) -> dict[str, Content]:
    return {"c.yaml": CONFIG.replace("pairs.jsonl", name)}


def _rows(*rows: Any) -> dict[str, Content]:
    return {"pairs.jsonl": lines(*rows)}


def _folder_of(*names: str) -> dict[str, Content]:
    return {"c.yaml": CONFIG.replace("pairs.jsonl", "data"), **{f"data/{name}": lines(GOOD, GOOD) for name in names}}


# fmt: off
SOURCES = (
    BadInput("misspells the file", "train c.yaml",
        "pair.jsonl: no such file; did you mean pairs.jsonl?", _named("pair.jsonl")),
    BadInput("names a file in a folder that is not there", "train c.yaml",
        "data/pairs.jsonl: no such file, and no folder data", _named("data/pairs.jsonl")),
    BadInput("names a folder without data", "train c.yaml",
        "data: the folder holds no file of rows; expected .jsonl, .json, .csv, .tsv, .xlsx or .parquet",
        {**_named("data"), "data": folder}),
    BadInput("names a file of another kind", "train c.yaml",
        "pairs.docx: found the suffix '.docx'; expected one of .jsonl, .ndjson, .json, .csv, .tsv, .txt, .xlsx, .xlsm,"
        " .xls, .ods, .parquet (or .gz)",
        _file("pairs.docx", b"PK")),
    BadInput("names a dataset of the hub, without a connection", "train c.yaml",
        "dataset 'someone/some-pairs' split 'train': no file or folder of this name, and not loaded from the hub:"
        " HF_HUB_OFFLINE is set, and it is not in the cache; check the name, or give a local file (JSONL, JSON, CSV,"
        " Parquet) or folder instead",
        _named("someone/some-pairs")),
    BadInput("names a file without a suffix", "train c.yaml",
        "pairs: found no suffix; expected one of .jsonl, .ndjson, .json, .csv, .tsv, .txt, .xlsx, .xlsm,"
        " .xls, .ods, .parquet (or .gz)",
        _file("pairs", "mine")),
    BadInput("misspells the file, beside a script of that name", "train c.yaml",
        "pear.jsonl: no such file; did you mean pairs.jsonl?",
        {**_named("pear.jsonl"), "pear.py": "", "peer.sh": ""}),
    BadInput("names a script", "train c.yaml",
        "pairs.py: found the suffix '.py'; expected one of .jsonl, .ndjson, .json, .csv, .tsv, .txt, .xlsx, .xlsm,"
        " .xls, .ods, .parquet (or .gz)",
        _file("pairs.py", "print('hello')")),
    BadInput("names an unknown built-in dataset", "train c.yaml",
        "no built-in dataset 'builtin:house'; expected builtin:house-style", _named("builtin:house")),
    BadInput("asks for a split that is not there", "train c.yaml --dataset-train-split dev",
        "data: no split 'dev'; found train", _folder_of("train.jsonl")),
    BadInput("asks for an unknown built-in split", "train c.yaml --dataset-train-split dev",
        "builtin:house-style: no split 'dev'; found train, test", _named("builtin:house-style")),
    BadInput("mixes Parquet with other files", "train c.yaml",
        "data: split 'train' has Parquet beside other files; keep one kind of them",
        _folder_of("train-a.jsonl", "train-b.parquet")),
)

# fmt: off
FILES = (
    BadInput("gives an empty file", "train c.yaml",
        "pairs.jsonl: the dataset is empty; expected rows with a prompt and two answers", _rows()),
    BadInput("leaves a comma behind", "train c.yaml",
        "pairs.jsonl, line 2, column ...: not JSON: ...", {"pairs.jsonl": lines(GOOD) + '{"prompt": "a", }\n'}),
    BadInput("cuts the last line off", "train c.yaml",
        "pairs.jsonl, line 2, column 20: not JSON: Unterminated string ...",
        {"pairs.jsonl": lines(GOOD) + lines(GOOD)[:20]}),
    BadInput("writes single quotes", "train c.yaml",
        "pairs.jsonl, line 1, column 2: not JSON: ...", {"pairs.jsonl": "{'prompt': 'a'}\n"}),
    BadInput("spreads an object over lines", "train c.yaml",
        "pairs.jsonl, line 1, column 2: not JSON: ...; expected one whole object a line (a list of rows over many lines"
        " belongs into a .json file)",
        {"pairs.jsonl": '{\n"prompt": "a"\n}\n'}),
    BadInput("puts a list into JSON Lines", "train c.yaml",
        'pairs.jsonl, line 1: found a list; expected an object such as {"prompt": ..., "chosen": ..., "rejected": ...};'
        " a list of all rows belongs into a .json file",
        {"pairs.jsonl": lines([GOOD, GOOD])}),
    BadInput("puts a text into JSON Lines", "train c.yaml",
        'pairs.jsonl, line 2: found text; expected an object such as {"prompt": ..., "chosen": ..., "rejected": ...}',
        _rows(GOOD, "Why?")),
    BadInput("saves Latin-1", "train c.yaml",
        "pairs.jsonl, line 1: not UTF-8 at byte 15 of the file (found 0xe9); save the file as UTF-8",
        {"pairs.jsonl": '{"prompt": "caf\xe9"}'.encode("latin-1")}),
    BadInput("saves UTF-16", "train c.yaml",
        "pairs.jsonl, line 1: not UTF-8 at byte 0 of the file (found 0xff); save the file as UTF-8",
        {"pairs.jsonl": lines(GOOD).encode("utf-16")}),
    BadInput("nests lists without end", "train c.yaml",
        "pairs.jsonl, line 1, column 1: not JSON: nested more than 100 levels deep",
        {"pairs.jsonl": '{"tools": ' + "[" * 100_000}),
    BadInput("writes a number of thousands of digits", "train c.yaml",
        "pairs.jsonl, line 1, column 1: not JSON: a number of thousands of digits",
        {"pairs.jsonl": '{"a": ' + "9" * 5_000 + "}"}),
    BadInput("writes one number as JSON", "train c.yaml",
        'pairs.json: found a number; expected a list of rows, or {"data": [...]}', _file("pairs.json", "3")),
    BadInput("mixes objects and texts in JSON", "train c.yaml",
        'pairs.json, row 1: found text; expected an object such as {"prompt": ..., "chosen": ..., "rejected": ...}',
        _file("pairs.json", '[{"prompt": "a"}, "b"]')),
    BadInput("forgets to quote a comma", "train c.yaml",
        "pairs.csv, line 2: found 4 fields; expected the 3 of the header (prompt, chosen, rejected); put fields with"
        " ',' or a line break in double quotes",
        _file("pairs.csv", "prompt,chosen,rejected\na,b,c, d\n")),
    BadInput("names a column twice", "train c.yaml",
        "pairs.csv: the header names 'chosen' twice; give each column its own name",
        _file("pairs.csv", "prompt,chosen,chosen\na,b,c\n")),
    BadInput("leaves a quote open", "train c.yaml",
        "pairs.csv, line 2: malformed: unexpected end of data; put fields with quotes in double quotes, and write each"
        ' quote in them twice ("")', _file("pairs.csv", 'prompt,chosen,rejected\na,b,"c\n')),
    BadInput("saves a table in a code page", "train c.yaml",
        "pairs.csv, line 2: not UTF-8 at byte 23 of the file (found 0xcf); save the file as UTF-8",
        _file("pairs.csv", "prompt;chosen;rejected\nПочему;Потому;Нет\n".encode("cp1251"))),
    BadInput("gives a text that is no table", "train c.yaml",
        "pairs.txt: the first line has no tab, comma, semicolon or bar between names of columns; expected a table (rows"
        " of JSON belong into a .jsonl file)",
        _file("pairs.txt", "Why?\nBecause.\n")),
    BadInput("gives a spreadsheet without the reader for it", "train c.yaml",
        'pairs.xlsx: reading a spreadsheet needs an optional dependency; install it with: pip install'
        ' "oddsmith[spreadsheets]"',
        _file("pairs.xlsx", b"PK"), without=("python_calamine",)),
    BadInput("calls a file gzip that is none", "train c.yaml",
        "pairs.jsonl.gz: not a whole gzip file (...); write it again or unpack it",
        _file("pairs.jsonl.gz", lines(GOOD))),
    BadInput("damages a Parquet file", "train c.yaml",
        "pairs.parquet: ...; write the file again", _file("pairs.parquet", b"PAR1 or so")),
)
# fmt: on
# fmt: on


def _mixture(entry: str) -> str:
    return f"train --model-name-or-path model --output-dir out --use-cpu --no-bf16 --datasets '{entry}'"


# fmt: off
MIXTURES = (
    BadInput("gives no JSON", _mixture("[{path: a}]"),
        "--datasets is '[{path: a}]'; expected a list of mappings as JSON"),
    BadInput("gives an empty mixture", _mixture("[]"),
        "no dataset is given; set dataset_name to a file, folder or hub id, or datasets to a mixture"),
    BadInput("misspells a key", _mixture('[{"path": "pairs.jsonl", "wieght": 1}]'),
        "datasets[0] has the unknown key 'wieght'; did you mean 'weight'?"),
    BadInput("forgets the path", _mixture('[{"name": "pairs.jsonl"}]'), "datasets[0].path is null; expected text"),
    BadInput("weighs a part with nothing", _mixture('[{"path": "pairs.jsonl", "weight": 0}]'),
        "datasets[0].weight is 0; expected a number above 0"),
    BadInput("weighs only some", _mixture('[{"path": "pairs.jsonl", "weight": 1}, {"path": "b.jsonl"}]'),
        "datasets[1] has no weight, others have; give all of them one, or none"),
    BadInput("names a part that is not there", _mixture('[{"path": "b.jsonl"}]'),
        "b.jsonl: no such file; did you mean pairs.jsonl?"),
    BadInput("gives a mixture beside a dataset", "train c.yaml --datasets '[{\"path\": \"pairs.jsonl\"}]'",
        "dataset_name and datasets are both given; put all datasets of the mixture into datasets"),
    BadInput("writes a slice wrongly", "train c.yaml --dataset-train-split 'train[5'",
        "split 'train[5' is not understood; expected a name such as train, train[:100] or train[10%:]"),
    BadInput("slices beyond the end", "train c.yaml --dataset-train-split 'train[90:]'",
        "pairs.jsonl, split 'train[90:]': the dataset is empty; expected rows with a prompt and two answers"),
    BadInput("slices a stream", "train c.yaml --dataset-streaming --max-steps 5 --dataset-train-split 'train[:2]'",
        "pairs.jsonl: split 'train[:2]' is a slice, but a stream has no length; name a whole split"),
    BadInput("evaluates on a file that is not there", "train c.yaml --eval-dataset-name held.jsonl",
        "held.jsonl: no such file; did you mean pairs.jsonl?"),
    BadInput("evaluates on rows that are no pairs", "train c.yaml --eval-dataset-name e.jsonl",
        "eval: found the columns a; expected prompt, chosen and rejected (instead of prompt also conversations,"
        " messages, conversation, question, query, instruction, input, or none if the answers begin with it); or"
        " instruction and completions; or prompt and completions; or instruction and output",
        {"e.jsonl": lines({"a": 1})}),
    BadInput("holds out a share of a stream", "train c.yaml --dataset-streaming --max-steps 5 --test-split-size 0.5",
        "test_split_size is 0.5, but a stream has no length; give a number of rows"),
)
# fmt: on
