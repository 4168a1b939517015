"""``oddsmith compare``: answers and figures of two real models, the page, and the files for evaluators."""

import json
import math
import shutil
import subprocess
import weakref
from html.parser import HTMLParser

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from oddsmith.data.prompts import Prompt, read_prompts
from oddsmith.errors import DataError
from oddsmith.inference.chat.backends import Sampling
from oddsmith.inference.compare.comparison import compare, repetition
from oddsmith.inference.compare.files import comparison_page, short_name
from oddsmith.model.loading import models as loading
from tests.command import run_here, save_model, save_rows
from tests.pairs import user
from tests.tiny import tiny_model, tiny_tokenizer

SHORT = ("--max-new-tokens", 6)
ASK = ("BASE", "RUN", "--prompts", "PAIRS")


@pytest.fixture
def base(tmp_path):
    return save_model(tmp_path / "base")


@pytest.fixture
def tuned(tmp_path, base):
    model = tiny_model()
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"question": "Why is the sky blue?", "chosen": "Because of scattering.", "rejected": "It just is."},
        {"question": "<b>Hi</b> & bye", "chosen": "Hello.", "rejected": "No. <script>alert(1)</script>"},
    ]
    return save_rows(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def questions(tmp_path):
    row = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}
    return save_rows(tmp_path / "question.jsonl", [row])


def greedy(model, messages, tokens: int = 6) -> str:
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = tiny_tokenizer().apply_chat_template(messages, **options)
    output = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    return tiny_tokenizer().decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def odds_by_hand(model, question: str, chosen: str, rejected: str) -> float:
    """log p/(1-p) of both answers, token by token in float64."""

    def log_odds(answer: str) -> float:
        tokenizer = tiny_tokenizer()
        prompt = tokenizer.apply_chat_template([user(question)], add_generation_prompt=True, return_dict=False)
        ids = prompt + tokenizer(answer + "<|im_end|>", add_special_tokens=False).input_ids
        logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        mean = sum(logps[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))) / (len(ids) - len(prompt))
        return mean - math.log1p(-math.exp(mean))

    return log_odds(chosen) - log_odds(rejected)


def test_answers_and_log_odds_are_each_model_s_own(capsys, base, tuned, pairs):
    outcome = run_here(capsys, "compare", base, tuned, "--prompts", pairs, *SHORT, "--json")
    document = json.loads(outcome.out)
    models = {"base": tiny_model(), "tuned": loading.load_model(str(tuned))}
    for row, pair in zip(document["rows"], map(json.loads, pairs.read_text().splitlines()), strict=True):
        for side, model in models.items():
            said = row[side]["answers"][0]
            assert said["text"] == greedy(model, [user(pair["question"])])
            assert (said["tokens"], said["is_finished"]) == (6, False)
            assert row[side]["log_odds"] == pytest.approx(odds_by_hand(model, **pair), abs=1e-5)
    odds = [row["tuned"]["log_odds"] for row in document["rows"]]
    assert odds != [row["base"]["log_odds"] for row in document["rows"]]
    assert document["summary"]["tuned"]["log_odds"] == pytest.approx(sum(odds) / 2)
    assert document["summary"]["tuned"]["prefers_chosen"] == sum(value > 0 for value in odds) / 2
    assert "tuned: answered 2 of 2 questions" in outcome.err


def test_an_adapter_and_its_base_are_loaded_once(base, tuned, pairs, monkeypatch):
    loaded = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda place, **more: loaded.append(place) or load(place, **more)
    )
    prompts = read_prompts(str(pairs))
    once = compare(str(base), str(tuned), prompts, sampling=Sampling(0.0, 6))
    assert loaded == [str(base)]
    shutil.copytree(base, base.with_name("copy"))  # another place: an adapter that is no adapter on it
    twice = compare(str(base.with_name("copy")), str(tuned), prompts, sampling=Sampling(0.0, 6))
    assert len(loaded) == 3
    assert [row.base.answers for row in once.rows] == [row.base.answers for row in twice.rows]
    assert [row.tuned.answers for row in once.rows] == [row.tuned.answers for row in twice.rows]


def test_the_base_leaves_the_memory_before_the_tuned_model_comes(base, pairs, monkeypatch):
    alive, bases = [], []
    original = AutoModelForCausalLM.from_pretrained

    def load(place, **options):
        alive.append([model() is not None for model in bases])
        loaded = original(place, **options)  # with what was found in the files
        bases.append(weakref.ref(loaded[0]))
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    tuned = save_model(base.with_name("tuned"))
    compare(str(base), str(tuned), read_prompts(str(pairs)), sampling=Sampling(0.0, 6))
    assert alive == [[], [False]]


def test_mt_bench_s_second_turn_follows_the_model_s_own_answer(base, tuned, questions):
    (row,) = compare(str(base), str(tuned), read_prompts(str(questions)), sampling=Sampling(0.0, 6)).rows
    model = tiny_model()
    first = greedy(model, [user("Write.")])
    second = greedy(model, [user("Write."), {"role": "assistant", "content": first}, user("Again.")])
    assert [answer.text for answer in row.base.answers] == [first, second]


def test_batches_do_not_change_greedy_answers_and_a_seed_decides_drawn_ones(base, tuned, tmp_path):
    prompts = [Prompt(n, [user("x" * (3 * n + 1))]) for n in range(5)]

    def said(temperature: float, seed: int = 0, batch_size: int = 16) -> list[str]:
        result = compare(str(base), str(tuned), prompts, sampling=Sampling(temperature, 6, seed), batch_size=batch_size)
        return [row.tuned.answers[0].text for row in result.rows]

    assert said(0.0) == said(0.0, batch_size=2)
    assert said(1.0, seed=1) == said(1.0, seed=1) != said(1.0, seed=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("one two three", 0), ("a b c d e", 0), ("a b c d a b c d", 1 / 5), ("no no no no no no", 2 / 3)],
)
def test_repetition_is_the_share_of_four_word_sequences_said_before(text, expected):
    assert repetition(text) == pytest.approx(expected)


def test_a_base_without_a_template_is_asked_with_the_tuned_model_s(base, tmp_path):
    save_model(tmp_path / "plain", chat_template=None)
    (row,) = compare(str(tmp_path / "plain"), str(base), [Prompt(0, [user("Hi")])], sampling=Sampling(0.0, 6)).rows
    assert row.base == row.tuned


def test_the_table_is_for_people(capsys, base, tuned, pairs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = run_here(capsys, "compare", base, tuned, "--prompts", pairs, *SHORT).out
    assert max(map(len, out.splitlines())) <= 80
    assert "1  Why is the sky blue?" in out
    assert "log-odds, chosen against rejected" in out
    assert str(base.parent) not in out


class Page(HTMLParser):
    """Tags and texts of a page; complains about one that is not well-formed."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.texts, self.links = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_stands_alone_and_everything_in_it_is_escaped(capsys, base, tuned, pairs, tmp_path):
    file = tmp_path / "new" / "page.html"
    outcome = run_here(capsys, "compare", base, tuned, "--prompts", pairs, *SHORT, "--html", file)
    assert outcome.code == 0
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    assert page.links == []
    assert not {"script", "b", "link", "img"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert str(tmp_path) not in html
    text = " ".join(" ".join(page.texts).split())
    shown = ("base and run, side by side", "<b>Hi</b> & bye", "<script>alert(1)</script>", "log-odds of its pair")
    assert all(expected in text for expected in shown)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_page_shows_what_came_before_and_every_turn(base, tuned):
    messages = [{"role": "system", "content": "Be kind."}, user("One")]
    result = compare(str(base), str(tuned), [Prompt(0, messages, ("Two",))], sampling=Sampling(0.0, 4))
    text = " ".join(" ".join(Page(comparison_page(result)).texts).split())
    for expected in ("system: Be kind.", "1.1 One", "1.2 Two"):
        assert expected in text
    assert "Log-odds" not in text


def test_alpaca_eval_s_files(capsys, base, tuned, tmp_path):
    row = {"dataset": "helpful_base", "instruction": "Hi", "output": "Hello", "generator": "reference"}
    (tmp_path / "set.json").write_text(json.dumps([row]))
    words = ("--prompts", tmp_path / "set.json", *SHORT, "--format", "alpaca_eval", "--output", tmp_path / "out")
    assert run_here(capsys, "compare", base, tuned, *words).code == 0
    for name, model in {"base": tiny_model(), "run": loading.load_model(str(tuned))}.items():
        written = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert written == [{**row, "output": greedy(model, [user("Hi")]), "generator": name}]


def test_mt_bench_s_files(capsys, base, tuned, questions, tmp_path):
    words = ("--prompts", questions, *SHORT, "--format", "mt_bench", "--output", tmp_path / "out")
    assert run_here(capsys, "compare", base, tuned, *words).code == 0
    (line,) = (tmp_path / "out" / "run.jsonl").read_text().splitlines()
    answer = json.loads(line)
    assert set(answer) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert (answer["question_id"], answer["model_id"]) == (81, "run")
    assert answer["choices"][0]["index"] == 0
    assert answer["choices"][0]["turns"][0] == greedy(loading.load_model(str(tuned)), [user("Write.")])
    assert len(answer["choices"][0]["turns"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "two models are needed; expected oddsmith compare BASE TUNED --prompts FILE"),
        (("BASE", "RUN"), "no prompts are given; expected --prompts FILE"),
        (("BASE", "RUN", "--prompts", "gone.txt"), "gone.txt: no such file"),
        (("BASE", "./gone", "--prompts", "PAIRS"), "./gone: nothing there"),
        (("./gone", "RUN", "--prompts", "PAIRS"), "./gone: nothing there"),
        ((*ASK, "--format", "csv"), "--format is 'csv'; expected alpaca_eval or mt_bench"),
        ((*ASK, "--format", "mt_bench"), "--format and --output go together"),
        (
            (*ASK, "--format", "mt_bench", "--output", "out"),
            "prompt 0: has no question_id with turns; mt_bench takes answers to MT-Bench's question file",
        ),
        (
            ("BASE", "RUN", "--prompts", "QUESTIONS", "--format", "alpaca_eval", "--output", "out"),
            "prompt 0: is a conversation; alpaca_eval takes single instructions",
        ),
        ((*ASK, "--html", "PAIRS"), "is there already; choose another name"),
        ((*ASK, "--html", "RUN"), "is a folder; expected the name of a file"),
        ((*ASK, "--batch-size", "0"), "--batch-size is 0; expected 1 or more"),
        ((*ASK, "--seed", "x"), "--seed is 'x'; expected a whole number"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, monkeypatch, base, tuned, pairs, questions, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    places = {"BASE": base, "RUN": tuned, "PAIRS": pairs, "QUESTIONS": questions}
    outcome = run_here(capsys, "compare", *[places.get(word, word) for word in words])
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_prompt_beyond_the_context_is_named(base):
    message = r"prompt 1: has \d,\d+ tokens, and the base model reads at most 2,048; shorten"
    with pytest.raises(DataError, match=message):
        compare(str(base), str(base), [Prompt(0, [user("Hi")]), Prompt(1, [user("x" * 3000)])])


def test_a_model_s_short_name_has_no_path():
    assert short_name("builtin:smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert short_name("owner/Model-1.5B") == "Model-1.5B"
    assert short_name("/some/where/my run/") == "my_run"
    assert short_name("a/b.gguf") == "b"


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_a_phone_and_a_desk(width, base, tuned, pairs, tmp_path):
    """In a real browser: nothing is wider than the window, even where names and words are long."""
    prompts = [*read_prompts(str(pairs)), Prompt(2, [user("W" * 300)])]
    html = comparison_page(compare(str(base), str(tuned), prompts, sampling=Sampling(0.0, 6)))
    html = html.replace("style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'")
    probe = "const page = document.documentElement; document.title = page.scrollWidth - page.clientWidth + ' too wide'"
    html = html.replace("</body>", f"<script>{probe}</script></body>")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
    frame += "<script>onload = () => document.title = frames[0].document.title</script>"
    (tmp_path / "frame.html").write_text(frame)
    dumped = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
            "--virtual-time-budget=3000", (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    assert "<title>0 too wide</title>" in dumped
