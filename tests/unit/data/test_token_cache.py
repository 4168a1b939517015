"""The token cache: a hit only where nothing that decides on the tokens has changed, and never a corrupt file."""

import os
import stat
import threading
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pytest
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from oddsmith.data import token_cache
from oddsmith.data.prepare import RowTokenizer, prepare
from oddsmith.data.token_cache import MIN_ROWS, cached, token_key
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.errors import RowError
from tests.faults import file_size_limit
from tests.templates import PLAIN
from tests.tiny import tiny_tokenizer

ROWS = [{"prompt": f"Question {n}? ", "chosen": f"Yes {n}", "rejected": "No"} for n in range(MIN_ROWS)]
ROWS[3] = ROWS[3] | {"rejected": "Yes 3"}
ROWS[5] = ROWS[5] | {"chosen": "Yes " * 20}
BAD_ROW = ROWS[0] | {"chosen": None}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ODDSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def pair_tokenizer(tokenizer=None, **options) -> PairTokenizer:
    tokenizer = tokenizer or tiny_tokenizer(bos="<s>", eos="</s>")
    return PairTokenizer(tokenizer, **{"max_length": 32, **options})


@pytest.fixture
def tokenized(monkeypatch) -> list[int]:
    """Grows by the number of every row that is tokenized."""
    numbers: list[int] = []
    kept_rows = RowTokenizer.kept_rows

    def counted(self, columns, rows, report):
        numbers.extend(rows)
        return kept_rows(self, columns, rows, report)

    monkeypatch.setattr(RowTokenizer, "kept_rows", counted)
    return numbers


def same(first, second) -> bool:
    """Whether two results are the same, down to the types of the columns."""
    return (
        first.dataset.to_dict() == second.dataset.to_dict()
        and first.dataset.features == second.dataset.features
        and first.report.to_dict() == second.report.to_dict()
        and first.report.lines() == second.report.lines()
    )


def table(value: int = 1) -> pa.Table:
    return pa.table({"a": [value] * 10})


def tokenizing(folder: Path) -> tuple[threading.Thread, threading.Event]:
    """Start to make the rows of a key in a thread, which has the lock and goes on after 5 s or the event."""
    go_on = threading.Event()

    def make() -> pa.Table:
        go_on.wait(5)
        return table()

    thread = threading.Thread(target=cached, args=("key", make))
    thread.start()
    while not (folder / "key.lock").exists():
        time.sleep(0.01)
    return thread, go_on


class TestHit:
    @pytest.mark.parametrize("make", (list, datasets.Dataset.from_list), ids=("list", "dataset"))
    @pytest.mark.parametrize("is_encoder_decoder", (False, True))
    def test_nothing_is_tokenized_and_all_is_the_same(self, make, is_encoder_decoder, tokenized, folder):
        options = {"is_encoder_decoder": is_encoder_decoder, "max_completion_length": 10}
        first = prepare(make(ROWS), pair_tokenizer(**options))
        assert len(tokenized) == MIN_ROWS
        second = prepare(make(ROWS), pair_tokenizer(**options))
        assert len(tokenized) == MIN_ROWS
        assert same(first, second)
        assert first.report.dropped == {"identical answers": [3]}
        assert first.report.cut == {"chosen": [5]}
        assert [file.suffix for file in folder.iterdir()] == [".tokens"]

    def test_name_of_the_dataset_is_not_kept(self):
        prepare(ROWS, pair_tokenizer())
        assert prepare(ROWS, pair_tokenizer(), source="eval").report.lines()[0].startswith("eval: 1,000 rows")

    def test_too_few_pairs_are_too_few_again(self):
        for _ in range(2):
            with pytest.raises(ValueError, match="expected at least 2000"):
                prepare(ROWS, pair_tokenizer(), min_pairs=2000)

    def test_tokens_stay_in_the_file(self):
        def make() -> pa.Table:
            return pa.table({"a": range(1_000_000)})

        made, before = cached("key", make), pa.total_allocated_bytes()
        assert cached("key", make) == made
        assert pa.total_allocated_bytes() - before < 100_000

    def test_rows_are_hashed_as_they_are_selected_not_as_they_lie(self):
        rows = datasets.Dataset.from_list(ROWS)
        halves = datasets.concatenate_datasets([rows.select(range(300)), rows.select(range(300, MIN_ROWS))])
        moved = datasets.Dataset.from_list([*ROWS[7:], *ROWS[:7]])
        moved = moved.select([*range(MIN_ROWS - 7, MIN_ROWS), *range(MIN_ROWS - 7)])
        assert len({token_key(each, pair_tokenizer(), "error") for each in (rows, halves, moved)}) == 1

    def test_what_an_earlier_call_left_in_the_tokenizer_does_not_matter(self):
        used = pair_tokenizer()
        used.tokenizer(["a", "bc"], padding=True, truncation=True, max_length=5)
        rows = datasets.Dataset.from_list(ROWS)
        assert token_key(rows, used, "error") == token_key(rows, pair_tokenizer(), "error")


def changed(change) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(bos="<s>", eos="</s>")
    change(tokenizer)
    return tokenizer


def with_template(text):
    return changed(lambda tokenizer: setattr(tokenizer, "chat_template", text))


WITH_PREFIX_SPACE = pre_tokenizers.ByteLevel(add_prefix_space=True)


class TestMiss:
    @pytest.mark.parametrize(
        "options",
        (
            {"max_length": 33},
            {"max_length": None},
            {"max_prompt_length": 8},
            {"is_encoder_decoder": True},
            {"max_completion_length": 7},
            {"chat_template_on_text": True},
            {"tokenizer": tiny_tokenizer(bos="</s>", eos="</s>")},
            {"tokenizer": tiny_tokenizer(bos="<s>", eos="<s>")},
            {"tokenizer": tiny_tokenizer(bos="<s>", eos="</s>", pad="<s>")},
            {"tokenizer": with_template(PLAIN.template)},
            {"tokenizer": with_template({"default": PLAIN.template, "tool_use": "x"})},
            {"tokenizer": changed(lambda tokenizer: tokenizer.add_tokens(["Question"]))},
            {"tokenizer": changed(lambda tokenizer: setattr(tokenizer, "split_special_tokens", True))},
            {"tokenizer": changed(lambda t: setattr(t.backend_tokenizer, "pre_tokenizer", WITH_PREFIX_SPACE))},
        ),
        ids=lambda options: next(iter(options)),
    )
    def test_settings_tokenizer_and_treatment_of_bad_rows(self, options):
        rows = datasets.Dataset.from_list(ROWS)
        assert token_key(rows, pair_tokenizer(**options), "error") != token_key(rows, pair_tokenizer(), "error")
        assert token_key(rows, pair_tokenizer(), "error") != token_key(rows, pair_tokenizer(), "drop")

    @pytest.mark.parametrize(
        "rows",
        (
            [*ROWS[1:], ROWS[0]],
            [*ROWS, ROWS[0]],
            [*ROWS[:-1], ROWS[-1] | {"chosen": "yes"}],
            [row | {"system": "Be kind."} for row in ROWS],
            [{"question" if key == "prompt" else key: text for key, text in row.items()} for row in ROWS],
        ),
        ids=("order", "one more", "one letter", "another column", "another name"),
    )
    def test_rows(self, rows):
        keys = {token_key(datasets.Dataset.from_list(each), pair_tokenizer(), "error") for each in (rows, ROWS)}
        assert len(keys) == 2

    def test_template_that_writes_the_date(self, monkeypatch):
        class Tomorrow(date):
            @classmethod
            def today(cls):
                return cls.fromordinal(date.today().toordinal() + 1)

        rows = datasets.Dataset.from_list(ROWS)
        dated = pair_tokenizer(with_template(PLAIN.template + "{{ strftime_now('%d %b %Y') }}"))
        today = [token_key(rows, each, "error") for each in (dated, pair_tokenizer())]
        monkeypatch.setattr(token_cache, "date", Tomorrow)
        tomorrow = [token_key(rows, each, "error") for each in (dated, pair_tokenizer())]
        assert [a == b for a, b in zip(today, tomorrow, strict=True)] == [False, True]

    def test_versions(self, monkeypatch):
        rows = datasets.Dataset.from_list(ROWS)
        before = token_key(rows, pair_tokenizer(), "error")
        monkeypatch.setattr(token_cache, "__version__", "9.9")
        assert token_key(rows, pair_tokenizer(), "error") != before

    def test_code_outside_the_room_that_reads_json_columns(self, monkeypatch, tmp_path):
        before = token_cache._code_digest()
        changed = tmp_path / "strict_json.py"
        changed.write_text("MAX_DEPTH = 7\n")
        monkeypatch.setattr(token_cache.strict_json, "__file__", str(changed))
        assert token_cache._code_digest() != before


class TestNotKept:
    def test_few_rows(self, folder):
        prepare(ROWS[1:], pair_tokenizer())
        assert not folder.exists()

    def test_caching_switched_off_in_datasets(self, folder, tokenized):
        prepare(ROWS, pair_tokenizer())
        datasets.disable_caching()
        try:
            prepare(ROWS, pair_tokenizer())
            prepare(ROWS, pair_tokenizer(max_length=16))
        finally:
            datasets.enable_caching()
        assert len(tokenized) == 3 * MIN_ROWS
        assert len(list(folder.iterdir())) == 1

    def test_streams(self, folder):
        stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
        assert len(list(prepare(stream, pair_tokenizer()).dataset)) == MIN_ROWS - 1
        assert not folder.exists()

    def test_rows_that_stop_the_run(self, folder):
        for _ in range(2):
            with pytest.raises(RowError, match="row 1000"):
                prepare([*ROWS, BAD_ROW], pair_tokenizer())
        assert list(folder.iterdir()) == []

    def test_tokenizer_with_python_of_its_own(self):
        class Own(PreTrainedTokenizerFast):
            pass

        class Halves:
            def pre_tokenize(self, text):
                text.split(lambda _, part: [part[:3], part[3:]])

        rows = datasets.Dataset.from_list(ROWS)
        own_class = Own(tokenizer_object=tiny_tokenizer().backend_tokenizer)
        own_part = tiny_tokenizer()
        own_part.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Halves())
        assert token_key(rows, pair_tokenizer(own_class), "error") is None
        assert token_key(rows, pair_tokenizer(own_part), "error") is None


class TestDamage:
    @pytest.mark.parametrize(
        "harm",
        (
            lambda content: b"",
            lambda content: content[:31],
            lambda content: content[:-1],
            lambda content: content[: len(content) // 2],
            lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
            lambda content: content[:-1] + bytes([content[-1] ^ 1]),
            lambda content: content + b"\0",
            lambda content: b"something else" * 1000,
        ),
        ids=(
            "empty", "shorter than a digest", "one byte less", "half", "one bit", "digest", "one byte more", "foreign",
        ),
    )  # fmt: skip
    def test_file_that_is_not_as_it_was_written_is_made_anew(self, harm, folder, tokenized):
        first = prepare(ROWS, pair_tokenizer())
        (file,) = folder.iterdir()
        whole = file.read_bytes()
        file.write_bytes(harm(whole))
        assert same(first, prepare(ROWS, pair_tokenizer()))
        assert len(tokenized) == 2 * MIN_ROWS
        assert file.read_bytes() == whole

    def test_file_of_another_key(self, folder):
        cached("first", lambda: table(1))
        os.rename(folder / "first.tokens", folder / "second.tokens")
        assert cached("second", lambda: table(2)) == table(2)

    def test_file_that_was_signed_by_its_name_alone(self, folder):
        """The name of a file is no secret; what it is made of is not in it."""
        name, rest = "a" * token_cache.NAME_LETTERS, "b" * 64
        cached(name, lambda: table(1))
        assert [file.stem for file in folder.iterdir()] == [name]
        assert cached(name + rest, lambda: table(2)) == table(2)

    @pytest.mark.parametrize("harm", ("writable by others", "a link", "a pipe"))
    def test_file_that_others_may_have_written(self, harm, folder, caplog):
        cached("key", lambda: table(1))
        file = folder / "key.tokens"
        if harm == "writable by others":
            file.chmod(0o666)
        else:
            file.rename(folder.parent / "elsewhere")
            os.mkfifo(file) if harm == "a pipe" else file.symlink_to(folder.parent / "elsewhere")
        assert cached("key", lambda: table(2)) == table(2)
        assert "the rows are tokenized anew" in caplog.text
        assert stat.S_IMODE(file.lstat().st_mode) == 0o600
        assert cached("key", lambda: table(3)) == table(2)

    def test_file_and_folder_of_another_user(self, folder, monkeypatch, caplog):
        cached("key", lambda: table(1))
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        folder.with_name(f"tokens-{os.geteuid()}").mkdir()  # is of another user as well
        assert cached("key", lambda: table(2)) == table(2)
        assert caplog.text.count("may be written by others, and is not used") == 2

    def test_folder_of_another_user_leaves_another_place(self, folder):
        (folder.parent / "elsewhere").mkdir(parents=True)
        folder.symlink_to(folder.parent / "elsewhere")
        for _ in range(2):
            assert cached("key", lambda: table(1)) == table(1)
        assert [file.name for file in folder.with_name(f"tokens-{os.geteuid()}").iterdir()] == ["key.tokens"]
        assert list(folder.iterdir()) == []

    def test_folder_that_others_could_write_is_closed_to_them(self, folder):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        cached("key", table)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_what_is_in_use_can_be_replaced(self, folder):
        cached("key", table)
        found = cached("key", table)
        (folder / "key.tokens").unlink()
        cached("key", lambda: table(2))
        assert found == table()


class TestNoPlace:
    def test_cache_or_its_folder_of_tokens_is_a_file(self, folder):
        folder.parent.write_text("")
        assert prepare(ROWS, pair_tokenizer()).report.kept == MIN_ROWS - 1
        folder.parent.unlink()
        folder.parent.mkdir()
        folder.write_text("")
        assert cached("key", table) == table()
        assert folder.read_text() == ""

    def test_no_room(self, folder):
        with file_size_limit(100):
            assert cached("key", table) == table()
        assert list(folder.iterdir()) == []

    def test_oldest_go_when_there_is_no_more_room(self, folder, monkeypatch):
        for age, key in enumerate(("d", "c", "b", "a")):
            cached(key, table)
            os.utime(folder / f"{key}.tokens", times=(time.time() + age - 100,) * 2)
        cached("d", table)  # used again, so the youngest
        size = (folder / "d.tokens").stat().st_size
        monkeypatch.setattr(token_cache, "MAX_BYTES", 3 * size)
        cached("e", table)
        assert sorted(file.stem for file in folder.iterdir()) == ["a", "d", "e"]

    def test_one_that_is_large_is_kept_alone_where_there_is_room(self, folder, monkeypatch):
        cached("a", table)
        monkeypatch.setattr(token_cache, "MAX_BYTES", 100)
        cached("b", lambda: pa.table({"a": range(1000)}))
        assert [file.name for file in folder.iterdir()] == ["b.tokens"]

    def test_what_is_larger_than_half_of_the_room_is_not_kept(self, folder, monkeypatch):
        cached("a", table)
        monkeypatch.setattr(token_cache, "MAX_BYTES", 100)
        monkeypatch.setattr(token_cache, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
        assert cached("b", lambda: pa.table({"a": range(1000)})).num_rows == 1000
        assert [file.name for file in folder.iterdir()] == ["a.tokens"]


class TestTogether:
    def test_one_makes_it_while_the_others_wait(self, folder):
        made, found = [], []

        def make() -> pa.Table:
            made.append(1)
            time.sleep(0.2)
            return table()

        threads = [threading.Thread(target=lambda: found.append(cached("key", make))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [table()] * 4
        assert len(made) == 1
        assert [file.name for file in folder.iterdir()] == ["key.tokens"]

    def test_who_waits_says_so_once(self, folder, monkeypatch, caplog):
        monkeypatch.setattr(token_cache, "SILENT_WAIT_S", 0.05)
        first, made = tokenizing(folder)
        second = threading.Thread(target=cached, args=("key", lambda: table(2)))
        second.start()
        while not caplog.records:
            time.sleep(0.01)
        made.set()
        first.join()
        second.join()
        (said,) = [record.getMessage() for record in caplog.records]
        assert said == f"another process tokenizes the same rows: waiting for it ({folder / 'key.lock'})"

    def test_waiting_ends(self, folder, monkeypatch):
        monkeypatch.setattr(token_cache, "WAIT_S", 0.1)
        slow, others = tokenizing(folder)
        assert cached("key", table) == table()
        others.set()
        slow.join()

    def test_only_the_owner_can_read_it(self, folder):
        cached("key", table)
        assert stat.S_IMODE((folder / "key.tokens").stat().st_mode) == 0o600
