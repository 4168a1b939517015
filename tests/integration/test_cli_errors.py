"""Each mistake a user can make, made: one or two lines on stderr that say where, what, and what to do; exit code 2.

The weights are read in none of them but where they are the mistake: `model.safetensors` is no file of weights here.
"""

from __future__ import annotations

import json

import pytest
from transformers import BertConfig, BertForMaskedLM

from tests.command import run_here, save_config, save_model, save_pairs
from tests.tiny import ragged_pairs, tiny_tokenizer

PROMPT = [{"role": "user", "content": "Why?"}]
GOOD = {"prompt": "Why?", "chosen": " Because.", "rejected": " No."}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose weights are never to be read."""
    folder = save_model(tmp_path_factory.mktemp("model"))
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.fixture
def fails(model, tmp_path, capsys):
    """Runs ``oddsmith train`` on rows or bytes, expects exit code 2, and returns what it said."""

    def run(data: list | bytes | str = (GOOD, GOOD), *words: object, model=model) -> str:
        pairs = tmp_path / "pairs.jsonl"
        if isinstance(data, str):
            pairs = data
        else:
            pairs.write_bytes(data if isinstance(data, bytes) else "".join(json.dumps(r) + "\n" for r in data).encode())
        config = save_config(tmp_path / "c.yaml", model_name_or_path=str(model), dataset_name=str(pairs), bf16=False)
        outcome = run_here(capsys, "train", config, "--use-cpu", "--output-dir", tmp_path / "out", *words)
        assert outcome.code == 2, outcome.err
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")
        assert len(outcome.err.splitlines()) <= 2
        assert not (tmp_path / "out" / "run.yaml").exists()
        return outcome.err.removeprefix("error: ").strip().replace(f"{tmp_path}/", "")

    return run


def conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


# ---- Data


def test_missing_file(fails):
    assert "no such file" in fails("nowhere.jsonl")


def test_empty_dataset(fails):
    assert "empty" in fails(b"")


def test_bad_json_names_the_line(fails):
    message = fails(b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": oops}\n')
    assert message.startswith("pairs.jsonl")
    assert "line 2" in message or "jsonl:2" in message


def test_invalid_utf8_names_the_byte(fails):
    message = fails(b'{"prompt": "a", "chosen": "b", "rejected": "caf\xe9"}\n')
    assert "UTF-8" in message
    assert "byte 47" in message


def test_missing_column(fails):
    message = fails([{"prompt": "a", "chosen": "b"}] * 2)
    assert "rejected" in message
    assert "prompt, chosen" in message.replace("'", "").replace("chosen, prompt", "prompt, chosen")


@pytest.mark.parametrize("value", [None, 7, ["a"]])
def test_a_null_or_a_number_for_a_response(fails, value):
    message = fails([GOOD, GOOD | {"chosen": value}, GOOD])
    assert "row 1" in message
    assert "chosen" in message


def test_unknown_role(fails):
    rows = [
        {
            "prompt": PROMPT,
            "chosen": conversation(("oracle", "Because.")),
            "rejected": conversation(("assistant", "No.")),
        }
    ]
    message = fails(rows * 2)
    assert "row 0" in message
    assert "oracle" in message


def test_last_turn_is_not_the_assistants(fails):
    rows = [
        {
            "prompt": PROMPT,
            "chosen": conversation(("assistant", "Because."), ("user", "Thanks.")),
            "rejected": conversation(("assistant", "No.")),
        }
    ]
    message = fails(rows * 2)
    assert "row 0" in message
    assert "last" in message


def test_all_rows_dropped_says_why(fails):
    message = fails([GOOD | {"rejected": GOOD["chosen"]}] * 3)
    assert "0 usable pairs in 3 rows" in message
    assert "identical" in message


def test_one_row_only(fails):
    assert "1 usable pair in 1 row" in fails([GOOD])


def test_a_split_that_is_not_there(fails, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    save_pairs(folder / "train.jsonl")
    assert "'validation'" in fails(str(folder), "--dataset-train-split", "validation")


def test_hub_dataset_unreachable(fails):
    message = fails("someone/some-pairs")
    assert "someone/some-pairs" in message
    assert "hub" in message


# ---- Model


def test_missing_model_folder(fails, tmp_path):
    assert "nothing there" in fails(model=tmp_path / "nowhere")


def test_hub_model_unreachable(fails):
    message = fails(model="someone/some-model")
    assert "the hub cannot be reached" in message


def test_conversations_without_a_chat_template(fails, tmp_path):
    folder = save_model(tmp_path / "plain", chat_template="")
    rows = [
        {
            "prompt": PROMPT,
            "chosen": conversation(("assistant", "Because.")),
            "rejected": conversation(("assistant", "No.")),
        }
    ]
    assert "chat template" in fails(rows * 2, model=folder)


def test_encoder_only_model(fails, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=264, **sizes)).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    message = fails(model=tmp_path / "bert")
    assert "is an encoder (bert)" in message


def test_unknown_lora_target_lists_the_candidates(fails, tmp_path):
    message = fails((GOOD, GOOD), "--use-peft", "--lora-target-modules", "k_porj", model=save_model(tmp_path / "real"))
    assert "k_porj" in message
    assert "k_proj" in message
    assert "gate_proj" in message


# ---- Settings


@pytest.mark.parametrize("rate", ["0", "-0.5"])
def test_learning_rate_of_nothing(fails, rate):
    message = fails((GOOD, GOOD), "--learning-rate", rate)
    assert message.startswith(f"learning_rate is {rate}; expected a number above 0")
    assert message.endswith("(learning_rate: --learning-rate)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rate", "nan"], "--learning-rate is 'nan'; expected a number"),
        (["--beta", "-0.1"], "beta is -0.1; expected a number from 0 upwards, such as 0.1 (beta: --beta)"),
        (["--max-length", "1"], "max_length is 1; expected at least 2 (max_length: --max-length)"),
        (
            ["--fp16", "--bf16"],
            "fp16 and bf16 are both on; choose one (bf16 where the hardware has it) (fp16: --fp16, bf16: --bf16)",
        ),
        (
            ["--max-steps", "0", "--num-train-epochs", "0"],
            "num_train_epochs and max_steps are both 0 or less, so nothing would be trained; set one"
            " (num_train_epochs: --num-train-epochs, max_steps: --max-steps)",
        ),
        (["--load-in-4bit"], "load_in_4bit freezes the model, so it trains nothing without an adapter; add use_peft"),
        (["--num-processes", "none"], "--num-processes is 'none'; expected a whole number from 1 upwards"),
        (["--resume", "nowhere"], "--resume nowhere is no checkpoint (no trainer_state.json there); expected a folder"),
    ],
)
def test_settings_that_make_no_sense(fails, words, message):
    assert fails((GOOD, GOOD), *words).startswith(message)


def test_contradictions_that_transformers_finds_are_told_in_one_line(fails):
    message = fails((GOOD, GOOD), "--load-best-model-at-end", "--eval-strategy", "no")
    assert "load_best_model_at_end" in message
    assert message.endswith("eval_strategy: --eval-strategy)") or "--load-best-model-at-end" in message


def test_no_model_and_no_data(capsys, tmp_path):
    assert run_here(capsys, "train").err.startswith("error: model_name_or_path is missing; give a hub id")
    assert run_here(capsys, "train", "--model-name-or-path", "m").err.startswith("error: dataset_name is missing; give")
    assert run_here(capsys, "eval").err.startswith("error: no model is given")
    assert run_here(capsys, "eval", "m").err.startswith("error: dataset_name is missing")


def test_existing_output_folder(fails, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert fails().startswith("output_dir out is not empty and holds no run")
    assert "choose another folder" in fails((GOOD, GOOD), "--overwrite-output-dir")
    assert (tmp_path / "out" / "notes.txt").is_file()


def test_a_file_in_the_way_of_the_output_folder(fails, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert fails().startswith("output_dir out is a file")


def test_a_bad_row_is_left_out_on_request(model, tmp_path, capsys):
    """The run then goes on to the weights, which are the next thing wrong."""
    rows = [*ragged_pairs(4), GOOD | {"chosen": None}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "--model-name-or-path",
        model,
        "--dataset-name",
        tmp_path / "pairs.jsonl",
        "--output-dir",
        tmp_path / "out",
    ]
    outcome = run_here(capsys, "train", *words, "--bad-rows", "drop", "--use-cpu", "--no-bf16")
    assert (outcome.code, "weights are damaged" in outcome.err) == (2, True)
