"""From rows to a dataset of tokens and the account of every row."""

import datasets
import pytest

from oddsmith.data import prepare as prepare_module
from oddsmith.data.prepare import prepare
from oddsmith.data.processes import parallel_map
from oddsmith.data.report import DataReport, named_rows
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import TEXT_COLUMNS
from oddsmith.errors import DataError, ModelError, RowError
from tests.templates import MISTRAL, PLAIN, SMOLLM2
from tests.tiny import tiny_tokenizer


def pair_tokenizer(max_length: int | None = 64, **options) -> PairTokenizer:
    return PairTokenizer(tiny_tokenizer(bos="<s>", eos="</s>"), max_length=max_length, **options)


def text_row(number: int) -> dict:
    return {"prompt": f"Question {number}? ", "chosen": f"Yes {number}", "rejected": "No"}


def chat_row(*roles: str) -> dict:
    prompt = [{"role": role, "content": "Hi"} for role in roles or ("user",)]
    answers = [[{"role": "assistant", "content": text}] for text in ("Yes", "No")]
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


NULL_ROW = {"prompt": "Question? ", "chosen": None, "rejected": "No"}
SAME_ROW = {"prompt": "Question? ", "chosen": "Same", "rejected": "Same"}
LONG_ROW = {"prompt": "Question? " * 10, "chosen": "Yes", "rejected": "No"}
COLUMNS = [
    "row", "chosen_input_ids", "chosen_prompt_tokens", "chosen_end", "chosen_gaps", "rejected_input_ids",
    "rejected_prompt_tokens", "rejected_end", "rejected_gaps",
]  # fmt: skip


def stream_of(rows: list[dict]) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


SOURCES = (
    list, datasets.Dataset.from_list, stream_of, lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
)  # fmt: skip
SOURCE_NAMES = ("list", "dataset", "generator", "stream")
every_source = pytest.mark.parametrize("make", SOURCES, ids=SOURCE_NAMES)


class TestEverySource:
    @every_source
    def test_rows_become_tokens(self, make):
        tokenizer = pair_tokenizer()
        prepared = prepare(make([text_row(n) for n in range(5)]), tokenizer)
        rows = list(prepared.dataset)
        assert prepared.dataset.column_names == [*COLUMNS, *TEXT_COLUMNS]
        assert [rows[3][name] for name in TEXT_COLUMNS] == ["Question 3? ", "Yes 3", "No"]
        assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]
        assert tokenizer.tokenizer.decode(rows[3]["chosen_input_ids"]) == "<s>Question 3? Yes 3</s>"
        assert tokenizer.tokenizer.decode(rows[3]["rejected_input_ids"]) == "<s>Question 3? No</s>"
        assert (rows[3]["chosen_prompt_tokens"], rows[3]["chosen_end"], rows[3]["rejected_end"]) == (13, 19, 16)

    @every_source
    def test_turns_of_others_in_an_answer_are_gaps(self, make):
        rows = [chat_row(), chat_row()]
        rows[1] = rows[1] | {"chosen": [*rows[1]["chosen"], {"role": "user", "content": "?"}, *rows[1]["rejected"]]}
        tokenizer = PairTokenizer(SMOLLM2.tokenizer(), max_length=None)
        found = list(prepare(make(rows), tokenizer).dataset)
        assert [row["rejected_gaps"] for row in found] == [[], []]
        ((), (start, end)) = ([*row["chosen_gaps"]] for row in found)
        gap = tokenizer.tokenizer.decode(found[1]["chosen_input_ids"][start:end])
        assert gap == "\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"

    @every_source
    def test_account(self, make):
        rows = [text_row(0), SAME_ROW, text_row(2), LONG_ROW, SAME_ROW, {**text_row(5), "chosen": "Yes " * 20}]
        prepared = prepare(make(rows), pair_tokenizer(), source="pairs.jsonl")
        assert [row["row"] for row in prepared.dataset] == [0, 2, 5]
        assert prepared.report.to_dict() == {
            "source": "pairs.jsonl", "format": "standard", "rows": 6, "kept": 3,
            "dropped": {"identical answers": [1, 4], "prompt fills max_length": [3]},
            "cut": {"chosen": [5]}, "left_out": {}, "odd": {}, "forms": {"plain text as it is": 3},
            "longest_tokens": 64, "max_length": 64,
        }  # fmt: skip

    @every_source
    def test_rows_without_a_preference_are_left_out_and_counted(self, make):
        answers = {"prompt": "Why?", "response_a": "Because.", "response_b": "No."}
        rows = [answers | {"winner": name} for name in ("tie", "model_a", "tie (bothbad)", "model_b", "tie", None)]
        prepared = prepare(make(rows), PairTokenizer(SMOLLM2.tokenizer(), max_length=None))
        assert [row["row"] for row in prepared.dataset] == [1, 3]
        assert prepared.report.dropped == {"tie": [0, 4], "tie, both bad": [2], "no judgement": [5]}
        assert prepared.report.format == "answers with a winner or scores"

    @every_source
    def test_pairs_with_close_scores_are_left_out_where_a_margin_is_set(self, make):
        answers = {"prompt": "Why?", "response_1": "Because.", "response_2": "No."}
        rows = [answers | {"score_1": first, "score_2": second} for first, second in ((3, 1), (1, 2), (4, 2.5), (2, 2))]
        tokenizer = PairTokenizer(SMOLLM2.tokenizer(), max_length=None, min_score_margin=1.5)
        prepared = prepare(make(rows), tokenizer)
        assert [row["row"] for row in prepared.dataset] == [0, 2]
        assert prepared.report.dropped == {"scores closer than min_score_margin": [1], "tie": [3]}

    @every_source
    def test_bad_row_stops_with_its_number(self, make):
        rows = [text_row(0), text_row(1), NULL_ROW, text_row(3)]
        with pytest.raises(RowError) as error:
            list(prepare(make(rows), pair_tokenizer(), source="pairs.jsonl").dataset)
        assert (error.value.row, error.value.source) == (2, "pairs.jsonl")
        assert str(error.value).startswith("pairs.jsonl, row 2: ")
        assert str(error.value).endswith("; bad_rows=drop leaves such rows out")

    @every_source
    def test_bad_rows_are_left_out_and_counted(self, make):
        rows = [NULL_ROW, text_row(1), NULL_ROW, text_row(3)]
        prepared = prepare(make(rows), pair_tokenizer(), bad_rows="drop")
        assert [row["row"] for row in prepared.dataset] == [1, 3]
        assert list(prepared.report.dropped.values()) == [[0, 2]]
        assert (prepared.report.rows, prepared.report.kept) == (4, 2)

    @every_source
    def test_refusal_of_the_template_is_a_bad_row(self, make):
        rows = [chat_row(), chat_row("user", "assistant", "user"), chat_row("user", "user")]
        tokenizer = PairTokenizer(MISTRAL.tokenizer(), max_length=None)
        prepared = prepare(make(rows), tokenizer, bad_rows="drop")
        assert len(list(prepared.dataset)) == 2
        assert prepared.report.dropped == {"refused by the chat template": [2]}
        with pytest.raises(RowError, match=r"train, row 2: refused .*roles must alternate.*bad_rows=drop"):
            list(prepare(make(rows), tokenizer).dataset)

    @pytest.mark.parametrize("make", SOURCES[:3], ids=SOURCE_NAMES[:3])
    def test_empty(self, make):
        with pytest.raises(DataError, match=r"train: the dataset is empty; expected rows"):
            prepare(make([]), pair_tokenizer())

    @every_source
    def test_unknown_columns(self, make):
        with pytest.raises(DataError, match=r"pairs\.csv: .*quest"):
            prepare(make([{"quest": "a", "answer": "b"}] * 2), pair_tokenizer(), source="pairs.csv")

    @every_source
    def test_model_at_fault_is_no_bad_row(self, make):
        tokenizer = PairTokenizer(tiny_tokenizer(chat_template=None), max_length=None)
        with pytest.raises(ModelError, match="no chat template"):
            list(prepare(make([chat_row(), chat_row()]), tokenizer, bad_rows="drop").dataset)

    @every_source
    def test_encoder_decoder_has_the_prompt_apart(self, make):
        tokenizer = pair_tokenizer(is_encoder_decoder=True)
        prepared = prepare(make([text_row(0), text_row(1)]), tokenizer)
        row = list(prepared.dataset)[1]
        assert prepared.dataset.column_names == [*COLUMNS, "prompt_input_ids", *TEXT_COLUMNS]
        assert tokenizer.tokenizer.decode(row["prompt_input_ids"]) == "Question 1? "
        assert tokenizer.tokenizer.decode(row["chosen_input_ids"]) == "Yes 1"
        assert row["chosen_prompt_tokens"] == 0


class TestTooFew:
    def test_nothing_left_names_the_reasons(self):
        with pytest.raises(DataError) as error:
            prepare([SAME_ROW, LONG_ROW, SAME_ROW], pair_tokenizer())
        assert str(error.value) == (
            "train: 0 usable pairs in 3 rows (dropped 2 identical answers: rows 0, 2;"
            " 1 prompt fills max_length: row 1); expected at least 2; for the 1 too long: max_length 128 keeps all of"
            " them whole (2 times the tokens take about as many times the memory), max_prompt_length 48 all, prompts"
            " cut from the left"
        )

    def test_one_row_is_an_evaluation_set(self):
        assert prepare([text_row(0)], pair_tokenizer(), source="eval").report.kept == 1

    @pytest.mark.parametrize(
        ("rows", "options", "message"),
        [
            ([text_row(0)], {}, "train: 1 usable pair in 1 row; expected at least 2"),
            ([SAME_ROW], {"source": "eval"}, "eval: 0 usable pairs in 1 row"),
            ([text_row(0), text_row(1)], {"min_pairs": 3}, "expected at least 3"),
        ],
    )
    def test_the_least_number_of_pairs(self, rows, options, message):
        with pytest.raises(DataError, match=message):
            prepare(rows, pair_tokenizer(), **options)


class TestOddRows:
    """What Arrow would refuse, or change, in a list of dicts."""

    def test_columns_and_types_may_differ_from_row_to_row(self):
        rows = [
            text_row(0) | {"score": 1},
            chat_row() | {"score": "high"},
            {"chosen": 3, "rejected": "No", "prompt": "Hi "},
            chat_row() | {"score": [1, {"a": None}]},
        ]
        tokenizer = PairTokenizer(SMOLLM2.tokenizer(), max_length=None, chat_template_on_text=False)
        prepared = prepare(rows, tokenizer, bad_rows="drop")
        assert prepared.dataset["row"][:] == [0, 1, 3]
        assert list(prepared.report.dropped.values()) == [[2]]

    def test_stream_of_such_rows(self):
        rows = [text_row(0), text_row(1) | {"score": 1}, SAME_ROW, chat_row()]
        tokenizer = PairTokenizer(SMOLLM2.tokenizer(), max_length=None, chat_template_on_text=False)
        assert [row["row"] for row in prepare(stream_of(rows), tokenizer).dataset] == [0, 1, 3]

    def test_first_row_may_be_the_odd_one(self):
        prepared = prepare([{"quest": "a"}, text_row(1), text_row(2)], pair_tokenizer(), bad_rows="drop")
        assert prepared.report.format == "standard"
        assert prepared.report.dropped == {"missing column": [0]}

    def test_values_that_json_does_not_know(self):
        def weather(city: str) -> str:
            """
            The weather of a city.
            Args:
                city: Its name.
            """
            return city

        tokenizer = tiny_tokenizer("{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}" + SMOLLM2.template)
        rows = [chat_row() | {"tools": [weather], "time": object()}] * 2
        prepared = prepare(rows, PairTokenizer(tokenizer, max_length=None))
        assert tokenizer.decode(prepared.dataset[0]["chosen_input_ids"]).startswith("weather")

    @pytest.mark.parametrize("rows", ("text", 7, {"prompt": ["a"]}))
    def test_no_rows_at_all(self, rows):
        with pytest.raises(DataError, match=rf"train: found {type(rows).__name__}; expected a list of rows"):
            prepare(rows, pair_tokenizer())

    def test_row_that_is_no_object(self):
        for rows in ([text_row(0), "text"], ["text", text_row(0)]):
            with pytest.raises(RowError, match=rf"train, row {rows.index('text')}: malformed row: .*bad_rows=drop"):
                prepare(rows, pair_tokenizer())


class TestStreams:
    def test_account_grows_as_rows_are_read(self):
        prepared = prepare(stream_of([text_row(n) for n in range(100)]), pair_tokenizer())
        assert prepared.report.rows == 0
        assert "0 rows read so far" in prepared.report.lines()[0]
        next(iter(prepared.dataset))
        assert 0 < prepared.report.rows < 100

    def test_later_epochs_are_not_counted_again(self):
        prepared = prepare(stream_of([text_row(0), SAME_ROW, text_row(2)]), pair_tokenizer())
        for _ in range(2):
            assert len(list(prepared.dataset)) == 2
        assert (prepared.report.rows, prepared.report.kept) == (3, 2)

    def test_account_follows_a_shuffled_stream(self):
        rows = datasets.Dataset.from_list([text_row(n) for n in range(9)]).to_iterable_dataset()
        prepared = prepare(rows.shuffle(seed=0, buffer_size=4), pair_tokenizer())
        prepared.dataset.set_epoch(1)
        assert len(list(prepared.dataset)) == 9
        assert prepared.report.kept == 9


class TestCaching:
    """datasets recognises earlier work by a hash of the function; a tokenizer changed in place must not look alike."""

    def test_changed_template_limit_and_tokens_take_effect(self, tmp_path):
        datasets.Dataset.from_list([chat_row(), chat_row()]).save_to_disk(tmp_path / "pairs")
        rows = datasets.load_from_disk(tmp_path / "pairs")
        tokenizer = SMOLLM2.tokenizer()
        tokens = PairTokenizer(tokenizer, max_length=None)
        whole = prepare(rows, tokens).dataset[0]["chosen_input_ids"]
        tokenizer.chat_template = PLAIN.template
        plain = prepare(rows, tokens).dataset[0]["chosen_input_ids"]
        tokens.max_length = len(plain) - 1
        cut = prepare(rows, tokens).dataset[0]["chosen_input_ids"]
        assert tokenizer.decode(whole) != tokenizer.decode(plain)
        assert cut == plain[:-1]

    def test_no_file_beside_the_users(self, tmp_path):
        datasets.Dataset.from_list([text_row(0), SAME_ROW, text_row(2)]).save_to_disk(tmp_path / "pairs")
        before = sorted(tmp_path.rglob("*"))
        prepared = prepare(datasets.load_from_disk(tmp_path / "pairs"), pair_tokenizer())
        assert len(prepared.dataset) == 2
        assert sorted(tmp_path.rglob("*")) == before
        assert prepared.dataset.cache_files == []

    def test_format_of_the_users_dataset_does_not_matter(self):
        rows = datasets.Dataset.from_list([text_row(0), text_row(1)]).with_format("pandas")
        assert prepare(rows, pair_tokenizer()).report.kept == 2
        stream = rows.with_format(None).to_iterable_dataset().with_format("arrow")
        assert [row["row"] for row in prepare(stream, pair_tokenizer()).dataset] == [0, 1]


class TestProcesses:
    @pytest.mark.parametrize("make", SOURCES[:2], ids=SOURCE_NAMES[:2])
    def test_same_tokens_and_account(self, make):
        rows = [text_row(n) for n in range(20)] + [SAME_ROW, NULL_ROW]
        options = {"bad_rows": "drop"}
        alone, together = (prepare(make(rows), pair_tokenizer(), **options, num_proc=n) for n in (None, 2))
        assert together.dataset.to_dict() == alone.dataset.to_dict()
        assert together.report == alone.report

    @pytest.mark.parametrize(("rows", "processes"), ((4, 0), (9, 1), (10, 2), (14, 2), (100, 3)))
    def test_as_many_as_pay_by_default(self, rows, processes, monkeypatch):
        used: list[int] = []

        def counting_map(work, spans, processes):
            used.append(processes)
            return parallel_map(work, spans, processes)

        monkeypatch.setattr(prepare_module, "usable_processes", lambda **_: 3)
        monkeypatch.setattr(prepare_module, "ROWS_PER_PROCESS", 5)
        monkeypatch.setattr(prepare_module, "parallel_map", counting_map)
        prepared = prepare([text_row(n) for n in range(rows)], pair_tokenizer())
        assert prepared.dataset["row"][:] == list(range(rows))
        assert used == [processes]

    def test_bad_row_is_named_from_another_process(self):
        with pytest.raises(RowError) as error:
            prepare([text_row(n) for n in range(9)] + [NULL_ROW], pair_tokenizer(), num_proc=2)
        assert (error.value.row, error.value.source) == (9, "train")


class TestProgress:
    def test_silent_where_there_is_no_terminal(self, capfd):
        datasets.enable_progress_bars()
        prepare([text_row(n) for n in range(20)], pair_tokenizer())
        assert capfd.readouterr() == ("", "")
        assert not datasets.are_progress_bars_disabled()


class TestReport:
    def test_lines(self):
        dropped = {"identical answers": [4, 9], "prompt fills max_length": [*range(100, 117)]}
        report = DataReport(
            "train", "conversational", max_length=512, rows=2354, kept=2335, dropped=dropped,
            cut={"chosen": [1, 2], "prompt": [1]}, longest_tokens=512,
        )  # fmt: skip
        assert report.lines() == [
            "train: 2,354 rows (conversational), 2,335 kept, 19 dropped",
            "  dropped 17: prompt fills max_length (rows 100, 101, 102, 103, 104, 105, 106, 107 and 9 more)",
            "  dropped 2: identical answers (rows 4, 9)",
            "  cut to fit max_length 512: 1 prompt, 2 chosen",
            "  longest sequence: 512 tokens of 512 allowed",
        ]

    def test_lines_without_a_limit(self):
        report = DataReport("eval", "standard", rows=1, kept=1, longest_tokens=9)
        assert report.lines() == ["eval: 1 row (standard), 1 kept", "  longest sequence: 9 tokens"]

    def test_named_rows(self):
        assert named_rows([3]) == "row 3"
        assert named_rows([3, 4]) == "rows 3, 4"
        assert named_rows(list(range(8))) == "rows 0, 1, 2, 3, 4, 5, 6, 7"
        assert named_rows(list(range(9))) == "rows 0, 1, 2, 3, 4, 5, 6, 7 and 1 more"
