"""A run that some processes saved goes on in another number of them: same steps and pairs, weights to 1e-6."""

from functools import cache
from typing import Any

import pytest
import torch

from .kinds import KINDS
from .launch import launch
from .test_table import EXACT, require_installed, require_same_history, weights_in

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

# An optimizer with a state; with a large epsilon, because Adam else makes much of a small gradient's last bits.
ADAM = {"optim": "adamw_torch", "learning_rate": 0.01, "adam_epsilon": 0.1, "weight_decay": 0.1}
MOMENTUM = {"optim": "sgd", "optim_args": "momentum=0.9"}
CASES = {
    "adam": {"settings": ADAM},
    "momentum": {"settings": MOMENTUM},
    "lora": {"settings": ADAM, "lora": True},
    "tied": {"settings": ADAM, "model": {"tie_word_embeddings": True}},
}
FEW = {("zero-2", "adam", 2, 3), ("zero-3", "adam", 2, 3)}
CHANGES = [(2, 1), (2, 3), (2, 4), (4, 2), (1, 2)]


def cells() -> list[Any]:
    """Return all cells of the table, those beyond ``FEW`` marked as exhaustive."""
    return [
        pytest.param(kind, case, *change, marks=[] if (kind, case, *change) in FEW else [pytest.mark.exhaustive])
        for kind in KINDS
        for case in CASES
        for change in CHANGES
    ]


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Return what the processes of a kind find in a case, and the folder of the case; others are lived with it."""
    folder = tmp_path_factory.mktemp("worlds")

    @cache
    def together(kind: str, names: tuple[str, ...], processes: int, before: int | None):
        require_installed(kind)
        cases = {name: {**CASES[name], "pairs_per_step": 12} for name in names}
        for name, case in cases.items():
            case["settings"] = {**KINDS[kind], **case["settings"]}
            if before is not None:
                case["resumes"] = str(together(kind, names, before, None)[1] / name)
        place = folder / f"{kind}-{names[0]}-{before}-{processes}"
        return launch(place, cases, processes), place

    def of(kind: str, case: str, processes: int, before: int | None = None):
        names = (case,) if case == "adam" else tuple(name for name in CASES if name != "adam")
        found, place = together(kind, names, processes, before)
        return found[case], place / case

    return of


@pytest.mark.parametrize(("kind", "case", "before", "after"), cells())
def test_a_run_goes_on_in_another_number_of_processes(lived, kind, case, before, after):
    (whole, *_), expected = lived(kind, case, before)
    assert "error" not in whole, whole
    found, folder = lived(kind, case, after, before)
    for rank in found:
        assert "error" not in rank, rank
        require_same_history(rank["history"], whole["history"])
    weights, others = weights_in(folder / "run"), weights_in(expected / "run")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=EXACT)
