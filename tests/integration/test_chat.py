"""``oddsmith chat``: one answer, a conversation in a real terminal, and errors."""

import json
import signal
import subprocess
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from oddsmith.config import ModelConfig
from oddsmith.inference.loading import load_for_inference
from oddsmith.model.adapters import get_quantization_config
from oddsmith.system.run_folder import Event, append_event
from tests.command import START, environment, run_apart, run_forked, run_here, save_model
from tests.pairs import assistant, user
from tests.terminal import Terminal
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf
from tests.tiny_runs import train_run

# Weights whose likeliest tokens lead by 0.48 logits or more: llama.cpp rounds keys and values to 16 bits, 0.02 logits.
CLEAR_SEED = 198
UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model")


def said(model_folder, question: str = "Hi", tokens: int = 8) -> str:
    """Return the answer of plain transformers."""
    tokenizer = tiny_tokenizer()
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = tokenizer.apply_chat_template([user(question)], **options)
    output = tiny_model().generate(**ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_one_answer_is_plain_text_without_a_terminal(capsys, model):
    outcome = run_here(capsys, "chat", model, "--prompt", "Hi", "--max-new-tokens", 8)
    assert (outcome.code, outcome.out, outcome.err) == (0, said(model) + "\n", "(cut after 8 tokens)\n")


def test_a_piped_question_is_answered(model):
    done = subprocess.run(
        [*START, "chat", str(model), "--max-new-tokens", "8"], input="Hi\n", capture_output=True, text=True,
        env=environment(), timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, said(model) + "\n")


def test_json_is_one_document(capsys, model):
    outcome = run_here(capsys, "chat", model, "--prompt", "Hi", "--system", "Be kind.", "--max-new-tokens", 8, "--json")
    document = json.loads(outcome.out)
    answer = document["answer"]
    assert document["messages"] == [{"role": "system", "content": "Be kind."}, user("Hi"), assistant(answer)]
    assert (document["command"], document["model"]) == ("chat", str(model))
    assert (document["finish_reason"], document["answer_tokens"]) == ("length", 8)
    assert document["prompt_tokens"] > 20
    assert outcome.err == ""


def test_an_adapter_answers_with_its_base(capsys, model, tmp_path):
    tuned = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(model)
    tuned.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(0)
    outcome = run_here(capsys, "chat", tmp_path / "adapter", "--prompt", "Hi", "--max-new-tokens", 8)
    assert outcome.code == 0
    assert outcome.out.strip()
    assert outcome.out != said(model) + "\n"


def test_a_run_answers_in_the_bits_it_was_trained_in(capsys, tmp_path):
    """A LoRA that was trained on 4 bits computes something else on the base in 16 bits."""
    pytest.importorskip("bitsandbytes")
    base = save_model(tmp_path / "base", hidden_size=64, intermediate_size=64)
    quantization = get_quantization_config(ModelConfig(load_in_4bit=True, use_peft=True))
    run = train_run(base, tmp_path / "run", {}, quantization_config=quantization)
    model, _ = load_for_inference(str(run))
    assert model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.dtype is torch.uint8
    outcome = run_here(capsys, "chat", run, "--prompt", "Hi", "--max-new-tokens", 8)
    assert outcome.code == 0
    assert outcome.out.strip()


def test_a_gguf_file_answers(capsys, tmp_path):
    pytest.importorskip("cyllama")
    model = tiny_model(seed=CLEAR_SEED, hidden_size=64, vocab_size=258)
    file = write_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer(), merges=["Ā ā"])
    save_model(tmp_path / "model", model=model)
    words = ("--prompt", "Hi", "--max-new-tokens", 8)
    folder, gguf = (run_here(capsys, "chat", place, *words) for place in (tmp_path / "model", file))
    assert folder == gguf
    assert gguf.out.strip()


def test_a_model_without_a_template_says_so(capsys, tmp_path):
    save_model(tmp_path, chat_template=None)
    outcome = run_here(capsys, "chat", tmp_path, "--prompt", "Once", "--max-new-tokens", 8)
    assert outcome.code == 0
    assert outcome.err.startswith(f"{tmp_path} has no chat template: your text is continued as it stands\n")


def test_the_system_message_of_the_training_is_offered(capsys, tmp_path):
    save_model(tmp_path)
    append_event(tmp_path, Event.START, 0, settings={"system_prompt": "Be brief."})
    outcome = run_here(capsys, "chat", tmp_path, "--prompt", "Once", "--max-new-tokens", 8)
    said = f"{tmp_path} was trained with the system message 'Be brief.': --system, or /system, gives it\n"
    assert outcome.err.startswith(said)
    outcome = run_here(capsys, "chat", tmp_path, "--prompt", "Once", "--max-new-tokens", 8, "--system", "Rhyme.")
    assert "was trained with" not in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model is given; expected oddsmith chat MODEL"),
        (["MODEL"], "the prompt is empty; give the question with --prompt TEXT, or pipe it in"),  # nothing is piped in
        (["MODEL", "--prompt", " "], "the prompt is empty; give the question with --prompt TEXT, or pipe it in"),
        (["MODEL", "--prompt", "x", "--temperature", "hot"], "--temperature is 'hot'; expected a number"),
        (["MODEL", "--prompt", "x", "--max-new-tokens", "1.5"], "--max-new-tokens is '1.5'; expected a whole number"),
        (["MODEL", "--prompt", "x", "--temperature", "-2"], "temperature is -2.0; expected a number from 0 (greedy)"),
        (["MODEL", "--prompt", "x", "--sytem", "y"], "unknown flag --sytem; did you mean --system?"),
        (["MODEL", "--prompt", "x", "--colour", "y"], "unknown flag --colour; --help lists all flags"),
        (["MODEL", "OTHER"], "found 'OTHER'; expected a flag such as --prompt there"),
        (["./nothing", "--prompt", "x"], "./nothing: nothing there"),
        (["./nothing.gguf", "--prompt", "x"], "./nothing.gguf: nothing there"),
        (["MODEL", "--prompt", "y" * 3000], "the message has 3,019 tokens, and "),
    ],
)
def test_bad_input_is_one_clear_line(capsys, monkeypatch, model, words, message):
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    outcome = run_here(capsys, "chat", *[str(model) if word == "MODEL" else word for word in words])
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1


@pytest.fixture
def endless(tmp_path):
    """A model that never ends an answer: it is always cut."""
    model = tiny_model(max_position_embeddings=100_000)
    with torch.no_grad():
        model.lm_head.weight[257] = 0
    return save_model(tmp_path / "endless", model=model)


def test_a_conversation_in_a_terminal(model, tmp_path):
    with Terminal("chat", model, "--max-new-tokens", 8) as terminal:
        start = terminal.wait_for(r"greedy; /help lists the commands, Ctrl-D ends\n.*> ")
        terminal.wait_for(r"\(cut after 8 tokens\).*> ", terminal.type("Hi\n"))
        terminal.wait_for(r"\(saved in .*> ", terminal.type(f"/save {tmp_path}/first.json\n"))
        terminal.type("/help\n")
        terminal.wait_for(r"/temperature X .*Ctrl-D ends.*> ", start)
        terminal.wait_for(r"\(system message set\).*> ", terminal.type("/system Be kind.\n"))
        terminal.wait_for(r"\(temperature 0.5\).*> ", terminal.type("/temperature 0.5\n"))
        terminal.wait_for(r"\(greedy\).*> ", terminal.type("/temperature 0\n"))
        terminal.wait_for(r"\(cut after 8 tokens\).*> ", terminal.type("Hi\n"))
        terminal.wait_for(r"Hi.*\(cut after 8 tokens\).*> ", terminal.type(UP + "\n"))  # history brings the line back
        terminal.wait_for(r"error: /temperature is 'hot'; expected a number.*> ", terminal.type("/temperature hot\n"))
        terminal.wait_for(r"error: no command /sav; /help lists them.*> ", terminal.type("/sav\n"))
        terminal.wait_for(r"\(saved in .*> ", terminal.type(f"/save {tmp_path}/chat.json\n"))
        terminal.wait_for(r"\(forgotten\).*> ", terminal.type("/reset\n"))
        terminal.wait_for(r"\(saved in .*> ", terminal.type(f"/save {tmp_path}/chat.json\n"))
        terminal.wait_for(r"is there already.*> ", terminal.type(f"/save {model}/config.json\n"))
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    messages = json.loads((tmp_path / "first.json").read_text(encoding="utf-8"))["messages"]
    assert messages == [user("Hi"), assistant(said(model))]
    assert json.loads((tmp_path / "chat.json").read_text())["messages"] == [{"role": "system", "content": "Be kind."}]
    assert "Traceback" not in terminal.text


def test_ctrl_c_stops_the_answer_and_not_the_program(endless):
    with Terminal("chat", endless, "--max-new-tokens", 50_000) as terminal:
        terminal.wait_for("Ctrl-D ends\n.*> ")
        before = terminal.type("Hi\n")
        terminal.wait_for(r"Hi\n.*\S", before)
        terminal.type(CTRL_C)
        terminal.wait_for(r"\(stopped\)\n.*> ", before)
        time.sleep(0.3)  # a terminal that is interrupted throws away what it has not shown or handed over yet
        terminal.wait_for("half a line", terminal.type("half a line"))
        terminal.wait_for(r"\n> ", terminal.type(CTRL_C))  # in the prompt it drops the line
        time.sleep(0.3)
        terminal.wait_for(r"\(forgotten\).*> ", terminal.type("/reset\n"))
        terminal.type(CTRL_D)
        assert terminal.end() == 0


@pytest.mark.slow
def test_ctrl_c_ends_a_single_answer_where_it_is(endless):
    process = subprocess.Popen(
        [*START, "chat", str(endless), "--prompt", "Hi", "--max-new-tokens", "50000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.endswith(b"\n")
    said = [line for line in err.splitlines() if not line.startswith(b"loading ")]  # said where it takes two seconds
    assert said == [b"(stopped)"]


def test_a_model_cannot_write_control_codes_to_a_terminal(tmp_path):
    """A model with answers of escape characters alone."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("ě")] = 1  # byte 0x1b in the byte-level alphabet
        model.model.norm.weight.fill_(0)
    save_model(tmp_path, model=model, tokenizer=tokenizer)
    with Terminal("chat", tmp_path, "--prompt", "Hi", "--max-new-tokens", 4) as terminal:
        terminal.wait_for("cut after 4 tokens")
    assert "\x1b\x1b" not in terminal.raw


def test_run_apart_with_a_missing_extra_names_the_install_command(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model(vocab_size=258), tiny_tokenizer(), merges=["Ā ā"])
    code = f"main(['chat', {str(file)!r}, '--prompt', 'Hi'])"
    code = f"import sys; sys.modules['cyllama'] = None; from oddsmith.cli.main import main; {code}"
    done = run_apart(start=[START[0], "-c", code])
    assert done.code == 2
    assert 'install it with: pip install "oddsmith[gguf]"' in done.err
    assert done.err.count("\n") == 1


def test_a_run_that_never_finished_names_its_checkpoint(model, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint-4").mkdir(parents=True)
    (model / "config.json").rename(run / "checkpoint-4" / "config.json")
    outcome = run_forked("chat", run, "--prompt", "Hi")
    assert outcome.code == 2
    assert f"did you mean {run}/checkpoint-4?" in outcome.err


@pytest.mark.parametrize("command", ["chat", "diagnose"])
def test_standard_input_that_is_open_for_writing_alone_is_one_line(model, tmp_path, monkeypatch, capsys, command):
    with (tmp_path / "written").open("w") as file:
        monkeypatch.setattr("sys.stdin", file)
        outcome = run_here(capsys, command, model if command == "chat" else "-")
    assert outcome.code == 2
    assert "standard input cannot be read" in outcome.err
