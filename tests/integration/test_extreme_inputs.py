"""Inputs at the edge, through the real trainer: the run goes on with finite numbers, or stops with one clear line."""

import math
import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from oddsmith.errors import DataError, ModelError, NonFiniteError
from tests.command import run_apart, with_tests
from tests.tiny import CHATML, ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import make_trainer


def run(folder, rows, model=None, tokenizer=None, **more) -> list[dict[str, float]]:
    """Train, and return the log lines."""
    settings = {"max_steps": 3, "learning_rate": 1e-3, "max_length": 256, "prefix_forest": False, **more}
    trainer = make_trainer(folder, model, rows, tokenizer=tokenizer, **settings)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def assert_finite(lines, steps=3) -> None:
    assert len(lines) == steps
    for line in lines:  # the perplexity may be infinite: e to a large number
        assert all(math.isfinite(value) for name, value in line.items() if name != "perplexity/chosen")
    assert not any("skipped_steps" in line for line in lines)


# ---- Log-probabilities at the edge: the contract's table, as a model gives them

CHAIN = "abcdefghijklmnopqr"
TARGETS = len(CHAIN) + 2  # of a response: its first letter, the chain, the end of turn
OUT_OF_QUESTION = -30000.0
HIDDEN = 32


def model_with(logp_chosen: float, logp_rejected: float):
    """Make a Llama that predicts from the last token alone, in which two responses have these mean logps.

    ?  ->  W or L          together certain
    W, L  ->  a            with what is missing to the wanted mean, otherwise some other token
    a -> b -> ... -> end   certain
    """
    tokenizer = tiny_tokenizer()
    ids = {letter: tokenizer(letter).input_ids[0] for letter in "?WLx" + CHAIN} | {"end": tokenizer.eos_token_id}
    wanted = {"W": logp_chosen * TARGETS, "L": logp_rejected * TARGETS}
    first = {"W": math.log(0.5), "L": math.log(0.5)}
    for likely, other in ("WL", "LW"):
        if wanted[likely] > math.log(0.5):
            first = {other: -20.0, likely: math.log1p(-math.exp(-20.0))}
    after = {name: min(0.0, wanted[name] - first[name]) for name in "WL"}
    logits = {("?", name): first[name] for name in "WL"}
    for name, logp in after.items():
        logits |= {(name, "a"): logp, (name, "x"): math.log(-math.expm1(logp)) if logp else OUT_OF_QUESTION}
    logits |= dict.fromkeys(zip(CHAIN, [*CHAIN[1:], "end"], strict=True), 0.0)

    model = tiny_model(hidden_size=HIDDEN, rms_norm_eps=1e-12)
    place = {name: number for number, name in enumerate(ids)}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.fill_(OUT_OF_QUESTION / math.sqrt(HIDDEN))
        for name, token in ids.items():
            model.model.embed_tokens.weight[token, place[name]] = 1.0
        for (last, following), logit in logits.items():
            model.lm_head.weight[ids[following], place[last]] = logit / math.sqrt(HIDDEN)
    return model


# (logp_w, logp_l) of semantics.md -> L_OR. (0, 0) needs two certain answers to one prompt, which no model gives.
TABLE = {
    (-3.0, -3.0): 0.6931472,
    (-500.0, -1.0): 499.4587,
    (-50.0, -0.1): 52.25217,
    (-1.0, -500.0): 0.0,
    (-1e-4, -2.0): 1.565243e-5,
    (0.0, -1.0): 5.81977e-7,
    (-1.0, 0.0): 14.35684,
}


@pytest.mark.parametrize("prefix_forest", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("logps", TABLE)
def test_log_probabilities_of_the_contract_s_table_are_trained_on(logps, prefix_forest, tmp_path):
    row = {"prompt": "?", "chosen": f"W{CHAIN}", "rejected": f"L{CHAIN}"}
    lines = run(tmp_path, [row] * 2, model_with(*logps), prefix_forest=prefix_forest, nll_on="response")
    assert_finite(lines)
    assert lines[0]["logps/chosen"] == pytest.approx(logps[0], rel=1e-4, abs=1e-6)
    assert lines[0]["logps/rejected"] == pytest.approx(logps[1], rel=1e-4, abs=1e-6)
    assert lines[0]["or_loss"] == pytest.approx(TABLE[logps], rel=2e-3, abs=1e-9)
    assert lines[0]["nll_loss"] == pytest.approx(-logps[0], rel=1e-4, abs=1e-6)


def with_outputs_times(factor):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(factor)
    return model


@pytest.mark.parametrize("factor", [0.0, 1e2, 1e6])
def test_outputs_of_any_size_are_trained_on(factor, tmp_path):
    assert_finite(run(tmp_path, ragged_pairs(6), with_outputs_times(factor)))


@pytest.mark.parametrize("factor", [1e30, 1e38])
def test_outputs_beyond_float32_stop_the_run_with_their_rows_and_no_weight_is_touched(factor, tmp_path):
    model = with_outputs_times(factor)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    message = r"^step 3: .* dataset rows .*, the last of 3 in a row, and there is no good"
    with pytest.raises(NonFiniteError, match=message):
        run(tmp_path, ragged_pairs(6), model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


# ---- Lengths

LONG = 32768


def long_rows(tokens: int) -> list[dict[str, str]]:
    return [
        {"prompt": prompt, "chosen": " " + "ab c" * (tokens // 4), "rejected": " " + "ef g" * (tokens // 4)}
        for prompt in ("the cat?", "a mat?")
    ]


def train_on_long_responses(folder: Path, tokens: int, path: str) -> int:
    """Memory that it takes at most, beyond what is there before, MiB."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = tiny_model(**sizes, max_position_embeddings=tokens + 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = run(
        folder, long_rows(tokens), model, max_length=tokens + 64, max_steps=1, prefix_forest=path == "forest",
        per_device_train_batch_size=1,
    )  # fmt: skip
    assert_finite(lines, steps=1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


@pytest.mark.parametrize("path", ["padded", "forest"])
def test_responses_of_4096_tokens(path, tmp_path):
    train_on_long_responses(tmp_path, 4096, path)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["padded", "forest"])
def test_responses_of_32768_tokens_in_bounded_memory(path, tmp_path):
    """Scores of one head alone would be 4 GiB; it took 310 MiB (padded) and 230 MiB (forest)."""
    done = run_apart(tmp_path, LONG, path, start=[sys.executable, "-m", __name__], env=with_tests(os.environ))
    assert done.code == 0, done.err[-2000:]
    assert int(done.out.split()[-1]) < 1024


def test_prompts_that_fill_the_length_are_left_out_and_the_rest_is_trained_on(tmp_path):
    full = {"prompt": "p" * 300, "chosen": " yes", "rejected": " no"}
    assert_finite(run(tmp_path, [*ragged_pairs(5), full, full]))
    with pytest.raises(DataError, match=r"train: 0 usable pairs in 3 rows.*prompt"):
        run(tmp_path, [full, full, full])


@pytest.mark.parametrize("steps", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_one_row_is_refused_and_rows_that_are_all_alike_are_trained_on(steps, tmp_path):
    row = ragged_pairs(1)[0]
    with pytest.raises(DataError, match="train: 1 usable pair in 1 row; expected at least 2"):
        run(tmp_path, [row])
    lines = run(tmp_path, [row] * 8, max_steps=steps, num_train_epochs=99)
    assert_finite(lines, steps=steps)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_answers_of_a_single_token(tmp_path):
    rows = [{"prompt": row["prompt"], "chosen": "y", "rejected": "n"} for row in ragged_pairs(6)]
    assert_finite(run(tmp_path, rows))


# ---- Tokenizers


def without_end(template):
    tokenizer = tiny_tokenizer(template)
    tokenizer.eos_token = tokenizer.pad_token = None
    return tokenizer


def conversations(count):
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in ragged_pairs(count)
    ]


def test_a_tokenizer_without_an_end_token_is_refused_where_answers_would_have_none(tmp_path):
    with pytest.raises(ModelError, match=r"has no EOS token, so an answer would have no end to learn"):
        run(tmp_path, ragged_pairs(6), tokenizer=without_end(None))


def test_a_tokenizer_without_an_end_token_will_do_where_the_template_ends_turns(tmp_path):
    theirs = run(tmp_path / "none", conversations(6), tokenizer=without_end(CHATML))
    assert_finite(theirs)
    ours = run(tmp_path / "usual", conversations(6), tokenizer=tiny_tokenizer(CHATML))
    assert [line["loss"] for line in theirs] == [line["loss"] for line in ours]


def test_padding_with_the_end_token_hides_no_end(tmp_path):
    same, other = (
        run(tmp_path / str(pad), ragged_pairs(6), tiny_model(vocab_size=265), tiny_tokenizer(pad=pad))
        for pad in (None, "<|pad|>")
    )
    assert [line["loss"] for line in same] == [line["loss"] for line in other]


# ---- Precision


@pytest.mark.parametrize("settings", [{"bf16": True}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}])
def test_sixteen_bit_runs_have_finite_numbers(settings, tmp_path):
    dtype = settings.get("dtype", torch.float32)
    lines = run(tmp_path, ragged_pairs(6), tiny_model(dtype=dtype), bf16=settings.get("bf16", False))
    assert_finite(lines)


if __name__ == "__main__":
    sys.stdout.write(str(train_on_long_responses(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
