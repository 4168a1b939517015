"""The token budget of micro-batches: what a step takes is measured, and the budget stays within the free memory."""

from collections.abc import Callable
from functools import partial

import psutil
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from oddsmith.model.logprobs import token_budget as memory
from oddsmith.model.logprobs.token_budget import (
    MAX_TOKENS,
    MIN_TOKENS,
    USABLE,
    StepBytes,
    fit,
    free_bytes,
    share,
    step_bytes,
    token_budget,
)
from oddsmith.system import machine

D, F = 24, 40
CPU = torch.device("cpu")


class Layer(nn.Module):
    """A small layer of a language model."""

    def __init__(self, checkpointing: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(100, D)
        self.up, self.down = nn.Linear(D, F), nn.Linear(F, D)
        self.checkpointing = checkpointing

    def forward(self, ids_T: torch.Tensor) -> torch.Tensor:
        hidden_TD = self.embedding(ids_T)
        return checkpoint(self.block, hidden_TD, use_reentrant=False) if self.checkpointing else self.block(hidden_TD)

    def block(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(hidden_TD)))


def loss_of(model: nn.Module) -> Callable[[int, int], torch.Tensor]:
    return lambda tokens, head_bytes: model(torch.zeros(tokens, dtype=torch.long)).sum()


def measured(model: nn.Module, tokens: int) -> StepBytes:
    return step_bytes(model, partial(loss_of(model), tokens, 0))


def budget_of(model: nn.Module, **more):
    return token_budget(model, loss_of(model), **{"vocabulary": 100, "head_bytes_per_token": 0, **more})


def a_token_keeps(model: nn.Module) -> float:
    return (measured(model, 192).kept - measured(model, 64).kept) / 128


def test_what_is_kept_is_counted():
    """The ids (int64) and the input of each linear layer; tanh saves its result, which is the second one's input."""
    assert a_token_keeps(Layer()) == 8 + 4 * (D + F)
    assert a_token_keeps(Layer().double()) == 8 + 8 * (D + F)
    assert a_token_keeps(Layer(checkpointing=True)) == 8 + 4 * D


def test_a_frozen_layer_keeps_only_what_its_input_needs():
    model = Layer()
    model.down.requires_grad_(False)  # it passes gradients on, for which its weight is enough
    model.embedding.requires_grad_(False)
    assert a_token_keeps(model) == 4 * (D + F)
    model.up.requires_grad_(False)
    model.down.bias.requires_grad_(True)
    assert a_token_keeps(model) == 0
    model.down.bias.requires_grad_(False)
    assert measured(model, 64).kept == 4  # the sum
    assert budget_of(model).bytes_per_token > 0  # never 0, which would be divided by


def test_the_peak_is_in_the_backward_pass():
    """Beside what is kept: the gradient of tanh's result and of its input."""
    assert measured(Layer(), 640).peak - measured(Layer(), 640).kept >= 640 * 4 * 2 * F
    plain, checkpointed = (measured(Layer(checkpointing), 640) for checkpointing in (False, True))
    assert checkpointed.kept < 0.4 * plain.kept
    assert checkpointed.peak > 0.9 * plain.peak  # of a single layer all is computed again


def test_measuring_leaves_gradients_as_they_are():
    model = Layer()
    model.up.weight.grad = given = torch.ones(F, D)
    measured(model, 64)
    assert model.up.weight.grad is given
    assert torch.equal(given, torch.ones(F, D))
    assert model.down.weight.grad is None
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_line_through_two_rows_and_what_comes_on_top_of_it():
    def at(tokens, on_top=lambda tokens: 50 * tokens):
        return StepBytes(1000 + 200 * tokens, 1000 + 200 * tokens + on_top(tokens))

    assert fit((4096, 2048), [at(4096), at(2048)], 32768) == (250, 1000)
    # The peak of a short row is where all gradients are: at 9,000 whatever its length is.
    assert fit((8, 16), [at(8, lambda t: 9000 - 200 * t), at(16, lambda t: 9000 - 200 * t)], 1024) == (200, 1000 + 7400)


def test_three_rows_show_what_grows_with_the_keys_that_a_token_sees():
    kept = {tokens: 500 + 100 * tokens + tokens**2 // 16 for tokens in (64, 128, 192, 1024)}
    per_token, fixed = fit((64, 128, 192), [StepBytes(kept[t], kept[t]) for t in (64, 128, 192)], 1024)
    assert per_token * 1024 + fixed == pytest.approx(kept[1024])
    steps = [StepBytes(kept, kept) for kept in (1000, 1000, 9000)]  # a recurrence that fills its chunks up
    assert fit((64, 128, 192), steps, 1024)[0] < 4 * 8000 / 128


@pytest.mark.parametrize(
    ("usable", "head", "expected"),
    [
        (10**6, 0, (900, 10**5)),  # a frozen head holds a chunk, and keeps nothing
        (10**6, 1000, (600, 4 * 10**5)),  # no room for all residuals beside 600 tokens
        (10**6, 100, (900, 10**5)),  # hardly any: a chunk holds them
        (4 * 10**6, 1000, (1939, 2_060_187)),  # room for all
        (10**8, 1000, (4000, 4_250_000)),
        (10**5, 1000, (50, 5 * 10**4)),  # a chunk takes half of the memory at most
        (0, 1000, (0, 1)),
    ],
)
def test_memory_is_shared_out_between_tokens_and_head(usable, head, expected):
    tokens, head_bytes = share(usable, 1000.0, head, chunk=10**5, most=4000, efficient=600 if head != 100 else 2000)
    assert (tokens, head_bytes) == expected


@pytest.mark.parametrize(("free", "expected"), [(10**12, MAX_TOKENS["cpu"]), (0, MIN_TOKENS), (10**5, MIN_TOKENS)])
def test_budgets_have_limits(free, expected, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    model = Layer()
    budget = budget_of(model)
    assert budget.max_tokens == expected
    assert budget.free_bytes == max(0, free - 3 * 4 * sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_budget_fills_the_memory_beside_gradients_and_optimizer(processes, monkeypatch):
    """Processes on one machine's CPUs share what is free, and each of them has buckets for gradients."""
    model = Layer()
    fixed = (2 + processes) * 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(memory, "free_bytes", lambda device: processes * (fixed + 500_000))
    budget = budget_of(model, processes=processes, exchanged=processes > 1)
    assert budget.free_bytes == 500_000
    assert MIN_TOKENS < budget.max_tokens < MAX_TOKENS["cpu"]
    taken = budget.fixed_bytes + budget.max_tokens * budget.bytes_per_token + budget.head_bytes
    assert taken == pytest.approx(USABLE * 500_000, rel=0.01)
    assert str(budget) == f"at most {budget.max_tokens:,} tokens a micro-batch (0.00 MB a token, 0.0 GiB free)"


def test_where_there_is_plenty_one_short_row_is_measured(monkeypatch):
    lengths = []

    def run(tokens, head_bytes):
        lengths.append(tokens)
        return loss_of(model)(tokens, head_bytes)

    model = Layer()
    for free, expected in ((10**9, [64]), (10**6, [64, 128, 192])):
        lengths.clear()
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        token_budget(model, run, vocabulary=100, head_bytes_per_token=0)
        assert lengths == expected


def test_rows_that_do_not_fit_are_followed_by_shorter_ones(monkeypatch):
    def run(tokens, head_bytes):
        lengths.append(tokens)
        if tokens > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_of(model)(tokens, head_bytes)

    model, lengths = Layer(), []
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    monkeypatch.setitem(memory.ROWS, "cpu", memory.ROWS["cuda"])
    for most, expected in ((5000, [4096, 2048]), (3000, [4096, 1024, 512]), (200, [4096, 1024, 128, 64])):
        limit = most
        lengths.clear()
        budget = token_budget(model, run, vocabulary=100, head_bytes_per_token=0)
        assert lengths == expected
        assert budget.bytes_per_token == pytest.approx(8 + 4 * (D + 3 * F), rel=0.2)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        token_budget(model, run, vocabulary=100, head_bytes_per_token=0)


def test_frozen_parameters_need_no_gradients_and_optimizer(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    model = Layer().requires_grad_(False)
    model.up.bias.requires_grad_(True)
    assert budget_of(model).free_bytes == 10**6 - 3 * 4 * F


def control_group(folder, **files) -> None:
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    """The kernel gives up the pages of cached files when memory is needed."""
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    available = psutil.virtual_memory().available
    control_group(tmp_path, max=5_000_000, current=4_000_000, stat="anon 1000000\ninactive_file 2500000\nslab 12")
    assert free_bytes(CPU) == 3_500_000
    control_group(tmp_path, max=available * 10, current=0)
    assert free_bytes(CPU) == pytest.approx(available, rel=0.2)


@pytest.mark.parametrize("files", [{}, {"max": "max", "current": 1, "stat": "inactive_file 0"}])
def test_without_a_limit_all_available_memory_is_free(files, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    control_group(tmp_path, **files)
    assert free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
