"""What an evaluation leaves of its pairs, derived by hand, and bounded."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from oddsmith.loss import log_odds
from oddsmith.pair_records import (
    BINS,
    MOST_LENGTHS,
    PAIRS_A_KIND,
    PAIRS_FILE,
    PairRecorder,
    pieces,
    snapshot,
    telling_pairs,
    token_logps,
)
from tests.command import save_model
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_runs import train_run


def test_a_snapshot_counts_the_margins():
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [-1.0, -1.5], [-9.0, -1.0]])
    found = snapshot(logps)
    odds = [(log_odds(chosen) - log_odds(rejected)).item() for chosen, rejected in logps.double()]
    assert found["below_zero"] == 0.5
    assert found["log_odds"]["mean"] == pytest.approx(sum(odds) / 4)
    assert found["log_odds"]["deviation"] == pytest.approx(torch.tensor(odds).std().item(), rel=1e-5)
    edges, counts = found["margins"]["edges"], found["margins"]["counts"]
    assert (len(edges), len(counts), sum(counts)) == (BINS + 1, BINS, 4)
    # margins 1.0, -2.0, 0.5, and -8.0, which lies beyond the lowest edge
    assert {edges[i] for i, count in enumerate(counts) if count} == {1.0, -2.0, 0.5, -5.0}


def test_one_pair_has_no_deviation():
    assert snapshot(torch.tensor([[-1.0, -2.0]]))["log_odds"]["deviation"] == 0.0


def test_the_telling_pairs():
    before = torch.tensor([-1.0, 2.0, 0.5, -3.0, 1.0])
    now = torch.tensor([1.0, -1.0, -0.1, 0.5, 2.0])
    assert telling_pairs(now, before) == {"worst": [1, 2, 3, 0, 4], "flipped": [3, 0], "forgotten": [1, 2]}
    assert telling_pairs(now, None) == {"worst": [1, 2, 3, 0, 4], "flipped": [], "forgotten": []}


def test_token_logps_are_those_of_the_plain_model():
    model = tiny_model().eval()
    ids = [3, 5, 7, 9, 11, 4]
    with torch.no_grad():
        plain = model(torch.tensor([ids])).logits[0, 1:-1].log_softmax(-1)
    expected = plain[torch.arange(4), torch.tensor(ids[2:])]
    torch.testing.assert_close(token_logps(model, ids, 2), expected, atol=1e-6, rtol=0)


def test_pieces_put_together_are_the_text():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("naïve 🙂 words")["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_new_adapter_has_changed_no_token(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    rows = [pair_row() for _ in range(1000)]
    recorder = PairRecorder(tmp_path, tiny_tokenizer())
    recorder.record("eval", 0, Rows(rows), -torch.rand(1000, 2), model)
    recorder.record("eval", 5, Rows(rows), -torch.rand(1000, 2), model)
    found = json.loads((tmp_path / PAIRS_FILE).read_text())["sets"]["eval"]
    assert found["step"] == 5
    assert len(found["lengths"]) <= MOST_LENGTHS
    assert found["lengths"][0][0] == 1
    for kind in ("worst", "flipped", "forgotten"):
        assert len(found["inspected"][kind]) == PAIRS_A_KIND
        for pair in found["inspected"][kind]:
            assert set(pair["chosen"]["change"]) == {0.0}
            assert len(pair["chosen"]["change"]) == len(pair["chosen"]["tokens"]) == 3
    diary = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in diary] == [0, 5]
    assert max(map(len, diary)) < 2000


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / PAIRS_FILE).mkdir()
    PairRecorder(tmp_path, tiny_tokenizer()).record("eval", 0, Rows([pair_row()]), -torch.rand(1, 2), None)
    assert "not written (Is a directory); the monitor shows older pairs" in caplog.text


def pair_row() -> dict:
    ids = {"chosen_input_ids": [3, 5, 7, 9, 11], "rejected_input_ids": [3, 5, 8, 10]}
    ends = {"chosen_prompt_tokens": 2, "rejected_prompt_tokens": 2, "chosen_end": 5, "rejected_end": 4}
    return ids | ends


class Rows(list):
    """A data set's two ways in: a row by number, a column by name."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_the_trainer_records_them(tmp_path):
    folder = train_run(save_model(tmp_path / "base"), tmp_path / "run", lora={})
    found = json.loads((folder / PAIRS_FILE).read_text())["sets"]["eval"]
    assert len(found["inspected"]["worst"]) == 3
    worst = found["inspected"]["worst"][0]
    assert worst["prompt"]
    assert any(worst["chosen"]["change"])
    assert not list(folder.glob("*.partial"))
