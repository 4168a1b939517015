"""The token budget of micro-batches: what autograd saves is counted, and the budget stays within the free memory."""

from collections.abc import Callable

import psutil
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from oddsmith.model.logprobs import token_budget as memory
from oddsmith.model.logprobs.token_budget import MAX_TOKENS, MIN_TOKENS, USABLE, free_bytes, token_budget

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


def loss_of(model: nn.Module) -> Callable[[int], torch.Tensor]:
    return lambda tokens: model(torch.zeros(tokens, dtype=torch.long)).sum()


def saved_bytes_per_token(model: nn.Module) -> float:
    return token_budget(model, loss_of(model)).saved_bytes_per_token


def test_bytes_of_saved_tensors_are_counted():
    """The ids (int64) and the input of each linear layer; tanh saves its result, which is the second one's input."""
    assert saved_bytes_per_token(Layer()) == 8 + 4 * (D + F)
    assert saved_bytes_per_token(Layer().double()) == 8 + 8 * (D + F)


def test_a_frozen_layer_saves_only_what_its_input_needs():
    model = Layer()
    model.down.requires_grad_(False)  # it passes gradients on, for which its weight is enough
    model.embedding.requires_grad_(False)
    assert saved_bytes_per_token(model) == 4 * (D + F)
    model.up.requires_grad_(False)
    model.down.bias.requires_grad_(True)
    assert saved_bytes_per_token(model) == 1.0  # nothing; never 0, which would be divided by


def test_a_checkpoint_saves_only_its_input():
    assert saved_bytes_per_token(Layer(checkpointing=True)) == 8 + 4 * D


@pytest.mark.parametrize(("free", "expected"), [(10**12, MAX_TOKENS["cpu"]), (0, MIN_TOKENS), (10**5, MIN_TOKENS)])
def test_budgets_have_limits(free, expected, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    model = Layer()
    budget = token_budget(model, loss_of(model))
    assert budget.max_tokens == expected
    assert budget.free_bytes == max(0, free - 3 * 4 * sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_budget_fills_the_memory_beside_gradients_and_optimizer(processes, monkeypatch):
    """Processes on one machine's CPUs share what is free."""
    model = Layer()
    fixed = 3 * 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(memory, "free_bytes", lambda device: processes * (fixed + 250_000))
    budget = token_budget(model, loss_of(model), processes=processes)
    assert budget.max_tokens == int(USABLE * 250_000 / (8 + 4 * (D + F)))
    assert MIN_TOKENS < budget.max_tokens < MAX_TOKENS["cpu"]
    assert str(budget) == f"at most {budget.max_tokens:,} tokens a micro-batch (0.00 MB a token, 0.0 GiB free)"


def test_frozen_parameters_need_no_gradients_and_optimizer(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    model = Layer().requires_grad_(False)
    model.up.bias.requires_grad_(True)
    assert token_budget(model, loss_of(model)).free_bytes == 10**6 - 3 * 4 * F


def control_group(folder, **files) -> None:
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    """The kernel gives up the pages of cached files when memory is needed."""
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    available = psutil.virtual_memory().available
    control_group(tmp_path, max=5_000_000, current=4_000_000, stat="anon 1000000\ninactive_file 2500000\nslab 12")
    assert free_bytes(CPU) == 3_500_000
    control_group(tmp_path, max=available * 10, current=0)
    assert free_bytes(CPU) == pytest.approx(available, rel=0.2)


@pytest.mark.parametrize("files", [{}, {"max": "max", "current": 1, "stat": "inactive_file 0"}])
def test_without_a_limit_all_available_memory_is_free(files, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    control_group(tmp_path, **files)
    assert free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
