"""Callbacks of TRL run as with TRL's trainer."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import GenerationConfig
from trl import BEMACallback, LogCompletionsCallback, RichProgressCallback

from tests.pairs import assistant, user
from tests.tiny import ragged_pairs
from tests.tiny_runs import make_trainer

CHAT = [{"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("Go")]}] * 4
SETTINGS = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("rows", "prompt"),
    [
        (CHAT, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (ragged_pairs(4), ragged_pairs(4)[0]["prompt"]),
    ],
    ids=["chat", "text"],
)
def test_log_completions(tmp_path, rows, prompt):
    trainer = make_trainer(tmp_path, None, rows, Dataset.from_list(rows), **SETTINGS)
    callback = LogCompletionsCallback(trainer, GenerationConfig(max_new_tokens=3), num_prompts=2, freq=1)
    trainer.add_callback(callback)
    trainer.train()
    assert [row[:2] for row in callback.table] == [
        (step, text) for step in "12" for text in (prompt, trainer.eval_dataset[1]["prompt"])
    ]


def test_a_progress_of_rich(tmp_path, capsys):
    make_trainer(tmp_path, None, 4, 4 * ragged_pairs(1), callbacks=[RichProgressCallback()], **SETTINGS).train()
    assert "rewards" in capsys.readouterr().out


def test_an_average_of_the_weights(tmp_path):
    callback = BEMACallback(update_freq=1, bias_power=0.0)
    trainer = make_trainer(tmp_path, None, 4, callbacks=[callback], max_steps=2, learning_rate=1e-2)
    trainer.train()
    averaged = load_file(tmp_path / "bema" / "model.safetensors")
    trained = trainer.model.state_dict()
    for name, weight in averaged.items():
        assert weight.shape == trained[name].shape
        assert weight.isfinite().all()
    assert any(not torch.equal(weight, trained[name]) for name, weight in averaged.items())
