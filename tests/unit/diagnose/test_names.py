"""Names of metrics in any spelling, and those of held-out sets."""

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
