"""Names of metrics in any spelling, and those of held-out sets."""

import pytest

from oddsmith.diagnose.names import held_out_name, known_name
from oddsmith.metrics import BY_NAME


def test_names():
    for name in BY_NAME:
        for spelling in (name, f"train/{name}", name.replace("/", " / ").title()):
            assert known_name(spelling) == name
        assert held_out_name(f"eval_{name}") == ("", name)
        assert held_out_name(f"eval/{name}") == ("", name)
        assert held_out_name(f"eval_my_set_{name}") == ("my_set", name)
    assert known_name("train_runtime") is None
    assert known_name("train_loss") is None  # the mean of the whole run, logged once at its end
    assert held_out_name("evaluation") is None


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ("val_loss", ("", "loss")),
        ("Validation Loss", ("", "loss")),
        ("test_loss", ("test", "loss")),
        ("test_code_rewards/chosen", ("test_code", "rewards/chosen")),
        ("dev/acc", ("dev", "rewards/accuracies")),
        ("anchor_loss", None),
        ("testing", None),
    ],
)
def test_prefixes_of_evaluations(raw, place):
    assert held_out_name(raw) == place


def test_an_evaluation_may_have_any_prefix():
    """``Trainer.evaluate(metric_key_prefix=...)``: whatever stands before the metric names the set."""
    for prefix in ("train", "anchor", "my_set", "test"):
        assert held_out_name(f"{prefix}_loss", of_evaluation=True) == (prefix, "loss")
        assert held_out_name(f"{prefix}_rewards/chosen", of_evaluation=True) == (prefix, "rewards/chosen")
    assert held_out_name("eval_loss", of_evaluation=True) == ("", "loss")
    assert held_out_name("runtime", of_evaluation=True) is None
