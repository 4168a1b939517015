"""Every rule fires on a history made for it, and stays silent on one that is well."""

import re

import numpy as np
import pytest

from oddsmith.diagnose.findings import Finding, Verdict, overall
from oddsmith.diagnose.history import HistoryBuilder
from oddsmith.diagnose.readers import history_of_events
from oddsmith.diagnose.rules import RULES, judge

POINTS = 60
EVALUATIONS = (0, 20, 40, 60, 80, 100, 120)


def line(first, last, noise=0.02, bend=3.0, seed=0, points=POINTS) -> list[float]:
    """From first to last, fast and then slower, with noise."""
    x = np.linspace(0, 1, points)
    course = (1 - np.exp(-bend * x)) / (1 - np.exp(-bend)) if bend else x
    return list(first + (last - first) * course + np.random.default_rng(seed).normal(0, noise, points))


def there_and_back(first: float, turn: float, last: float, noise: float = 0.02) -> list:
    half = POINTS // 2
    return line(first, turn, noise, points=half) + line(turn, last, noise, bend=0, seed=1, points=POINTS - half)


def constant(value: float) -> list:
    return [value] * POINTS


def warm_up(top: float, share: float) -> list:
    x = (np.arange(POINTS) + 1) / POINTS
    return list(top * np.minimum(x / share, 1 - 0.9 * np.maximum(x - share, 0) / (1 - share + 1e-9)))


def good() -> dict[str, list]:
    """A LoRA run that is well: everything goes where it should, with noise."""
    return {
        "loss": line(2.6, 1.6, 0.08),
        "nll_loss": line(2.4, 1.5, 0.08, seed=1),
        "or_loss": line(0.9, 0.4, 0.05, seed=2),
        "logps/chosen": line(-2.5, -1.6, 0.08, seed=3),
        "logps/rejected": line(-2.0, -2.9, 0.08, seed=4),
        "log_odds_chosen": line(-0.5, 1.4, 0.1, seed=5),
        "rewards/accuracies": [min(max(a, 0.0), 1.0) for a in line(0.35, 0.85, 0.08, seed=6)],
        "grad_norm": line(1.2, 0.8, 0.1, seed=7),
        "learning_rate": warm_up(1e-4, 0.1),
        "tokens_per_second": line(5000, 5000, 200, seed=8),
    }


def good_held_out() -> dict[str, list]:
    return {
        "nll_loss": [2.45, 2.1, 1.9, 1.8, 1.76, 1.74, 1.73],
        "loss": [2.65, 2.3, 2.05, 1.92, 1.86, 1.84, 1.83],
        "logps/chosen": [-2.5, -2.1, -1.95, -1.85, -1.8, -1.78, -1.77],
        "logps/rejected": [-2.0, -2.2, -2.4, -2.5, -2.6, -2.65, -2.66],
        "rewards/accuracies": [0.4, 0.6, 0.7, 0.75, 0.78, 0.8, 0.8],
        "length_correlation": [0.2, 0.22, 0.25, 0.2, 0.25, 0.24, 0.25],
    }


def findings(training=None, held_out=None, settings=None, steps=2, **changed) -> dict[str, Finding]:
    """What the rules say of the good run with these series in place of its own."""
    builder = HistoryBuilder()
    series = {**(good() if training is None else training), **changed}
    for number in range(max(map(len, series.values()))):
        values = {name: found[number] for name, found in series.items() if number < len(found)}
        builder.add((number + 1) * steps, values)
    for prefix, found in (held_out if held_out is not None else {"eval_": good_held_out()}).items():
        for number, step in enumerate(EVALUATIONS):
            builder.add(step, {prefix + name: values[number] for name, values in found.items() if number < len(values)})
    builder.history.settings.update({"beta": 0.1, "adapter": True, "parameters": 7e9, "max_steps": POINTS * steps})
    builder.history.settings.update(settings or {})
    if builder.history.settings["adapter"] is None:  # not known
        del builder.history.settings["adapter"]
    return {finding.rule: finding for finding in judge(builder.build())}


def test_a_good_run_is_reported_healthy():
    found = findings()
    assert set(found) == {"preference_learned", "language_learned"}
    assert overall(finding.verdict for finding in found.values()) is Verdict.HEALTHY
    assert all(finding.change == "" for finding in found.values())


HELD_OUT_WORSE = {**good_held_out(), "nll_loss": [2.4, 2.3, 2.35, 2.5, 2.7, 2.8, 2.9]}
FALLING = {"logps/chosen": there_and_back(-2.5, -1.8, -2.6), "logps/rejected": there_and_back(-2.0, -2.4, -5.0)}
FEW = {name: values[:6] for name, values in good().items()}
WITH_NAN = {name: [*values[:3], float("nan"), *values[4:]] for name, values in good_held_out().items()}
BY_LENGTH = {**good_held_out(), "length_correlation": [0.2, 0.5, 0.7, 0.8, 0.85, 0.88, 0.9]}
ANCHOR = {"nll_loss": [1.5, 1.6, 1.9, 2.1, 2.2, 2.3, 2.4]}
SPIKES = [40.0 if i in (20, 35, 50) else g for i, g in enumerate(good()["grad_norm"])]
HIGH_RATE = {"learning_rate": constant(2e-3), "loss": there_and_back(2.6, 3.6, 3.4), "nll_loss": line(2.4, 3.0)}

# Rule -> what makes it fire, and a verdict it must reach.
CASES: dict[str, tuple[dict, Verdict]] = {
    "not_finite": ({"loss": [*line(2.6, 1.6)[:30], *[float("nan")] * 30]}, Verdict.ACT),
    "evaluation_not_finite": ({"held_out": {"eval_": WITH_NAN}}, Verdict.WATCH),
    "zero_loss": ({"loss": [*line(2.6, 1.6)[:30], *[0.0] * 30]}, Verdict.ACT),
    "steps_skipped": ({"skipped_steps": [1.0, 2.0, 1.0]}, Verdict.ACT),
    "throughput_drop": ({"tokens_per_second": [*[5000.0] * 30, *[800.0] * 30]}, Verdict.ACT),
    "over_penalisation": (FALLING, Verdict.ACT),
    "log_odds_not_rising": ({"log_odds_chosen": line(0.1, 0.1, 0.1)}, Verdict.ACT),
    "accuracy_at_chance": ({"rewards/accuracies": line(0.5, 0.5, 0.08)}, Verdict.ACT),
    "accuracy_at_once": ({"rewards/accuracies": constant(1.0), "held_out": {}}, Verdict.ACT),
    "margin_from_length": ({"held_out": {"eval_": BY_LENGTH}}, Verdict.ACT),
    "loss_rising": ({"loss": there_and_back(2.6, 1.6, 2.4)}, Verdict.ACT),
    "nll_diverging": ({"nll_loss": there_and_back(2.4, 1.5, 2.4)}, Verdict.ACT),
    "forgetting": ({"held_out": {"eval_": good_held_out(), "eval_anchor_": ANCHOR}}, Verdict.ACT),
    "over_fitting": ({"held_out": {"eval_": HELD_OUT_WORSE}}, Verdict.ACT),
    "format_not_learned": ({"nll_loss": line(6.5, 5.5)}, Verdict.ACT),
    "learning_rate_high": (HIGH_RATE, Verdict.ACT),
    "learning_rate_low": ({"learning_rate": constant(1e-7), "loss": line(2.6, 2.6, 0.05)}, Verdict.ACT),
    "gradient_spikes": ({"grad_norm": SPIKES}, Verdict.ACT),
    "warm_up_long": ({"learning_rate": warm_up(1e-4, 0.8)}, Verdict.ACT),
    "too_few_steps": ({"training": FEW, "settings": {"max_steps": 6}, "steps": 1, "held_out": {}}, Verdict.ACT),
    "preference_learned": ({}, Verdict.HEALTHY),
    "language_learned": ({}, Verdict.HEALTHY),
}


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_fires_on_what_it_is_for(rule):
    made, verdict = CASES[rule]
    found = findings(**made)[rule]
    assert found.verdict is verdict
    assert found.evidence
    assert found.meaning
    assert bool(found.change) is (verdict is not Verdict.HEALTHY)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_trend(seed):
    """A run that stands still is reported as such, and nothing else is reported that is only noise."""
    generator = np.random.default_rng(seed)
    flat = {name: list(np.mean(values) + generator.normal(0, 0.1, POINTS)) for name, values in good().items()}
    flat["learning_rate"], flat["tokens_per_second"] = constant(1e-4), constant(5000.0)
    flat["rewards/accuracies"] = [0.7] * POINTS
    found = findings(training=flat, held_out={})
    assert set(found) <= {"log_odds_not_rising", "preference_learned", "too_little"}


def test_a_single_step_that_was_skipped_is_to_be_watched():
    found = findings(skipped_steps=[1.0])["steps_skipped"]
    assert found.verdict is Verdict.WATCH
    assert found.evidence == "1 of 120 steps, the first by step 2, the last by step 2"


def test_changes_name_numbers():
    assert findings(**CASES["over_penalisation"][0])["over_penalisation"].change.startswith("beta 0.1 -> 0.05")
    assert findings(**CASES["learning_rate_low"][0])["learning_rate_low"].change == "learning_rate 1e-07 -> 0.0001"
    assert findings(**CASES["warm_up_long"][0])["warm_up_long"].change == "warmup_steps 96 -> 12 (a tenth of the run)"


@pytest.mark.parametrize(
    ("beta", "parameters", "change"),
    [
        (0.8, 1.35e8, "beta 0.8 -> 0.4"),  # usual for a small model, where the authors take 0.5 to 1.0
        (2.0, 1.35e8, "beta 2 -> 0.5 (0.1 to 1 is usual below 2B)"),
        (0.8, 7e9, "beta 0.8 -> 0.1 (0.05 to 0.25 is usual from 6B)"),
        (0.2, 7e9, "beta 0.2 -> 0.1"),
        (0.5, float("nan"), "beta 0.5 -> 0.25"),  # of a size that is not known
        (0.8, -1.0, "beta 0.8 -> 0.1 (0.05 to 0.25 is usual from 6B)"),
    ],
)
def test_which_beta_is_usual_depends_on_the_size_of_the_model(beta, parameters, change):
    found = findings(**FALLING, settings={"beta": beta, "parameters": parameters})
    assert found["over_penalisation"].change.split(";")[0] == change


CONTRADICTING = {
    "slow and not learning": {"log_odds_chosen": line(0.1, 0.1, 0.1), **CASES["learning_rate_low"][0]},
    "not learning and rising": {"log_odds_chosen": line(0.1, 0.1, 0.1), "loss": there_and_back(2.6, 1.6, 2.4)},
    "far too high": {**HIGH_RATE, **FALLING, "skipped_steps": [1.0, 2.0, 1.0]},
    "memorised and short": {"held_out": {"eval_": HELD_OUT_WORSE}, "settings": {"max_steps": 30}},
    "spikes and rising": {"grad_norm": SPIKES, "loss": there_and_back(2.6, 1.6, 2.4)},
}


@pytest.mark.parametrize("adapter", [True, False, None], ids=["adapter", "full", "unknown"])
@pytest.mark.parametrize("case", CONTRADICTING)
def test_findings_of_a_run_agree_on_what_to_change(case, adapter):
    made = CONTRADICTING[case]
    found = findings(**{**made, "settings": {"adapter": adapter, **made.get("settings", {})}})
    changes = [finding.change for finding in found.values() if finding.change]
    assert len(changes) > 1
    for setting in ("learning_rate", "beta", "max_grad_norm"):
        values = [value for change in changes for value in re.findall(rf"{setting} (.*?)(?:;|, or |$)", change)]
        assert len(set(values)) <= 1
        if setting == "learning_rate" and any("->" in value for value in values):
            assert ("for all weights" in values[0] and "LoRA" in values[0]) is (adapter is None)
    text = "\n".join(changes)
    assert not ("more epochs" in text and "fewer epochs" in text)


@pytest.mark.parametrize(
    ("adapter", "rate", "change"),
    [
        (True, 1e-6, "1e-06 -> 0.0001"),
        (False, 1e-6, "1e-06 -> 1e-05"),
        (None, 1e-6, "1e-06 -> 1e-05 for all weights, 0.0001 with an adapter (LoRA)"),
        (False, 4e-6, "4e-06 -> 8e-06"),
    ],
)
def test_a_low_learning_rate_rises_to_what_is_usual_for_the_kind_of_run(adapter, rate, change):
    made = {**CASES["learning_rate_low"][0], "learning_rate": constant(rate)}
    assert findings(settings={"adapter": adapter}, **made)["learning_rate_low"].change == f"learning_rate {change}"


def test_no_finding_calls_good_what_another_calls_bad():
    assert "language_learned" not in findings(held_out={"eval_": HELD_OUT_WORSE})  # over-fitting
    assert "language_learned" not in findings(**CASES["forgetting"][0])
    assert "language_learned" not in findings(loss=there_and_back(2.6, 1.6, 2.4))
    at_chance = {**good_held_out(), "rewards/accuracies": [0.53, 0.55, 0.52, 0.5, 0.54, 0.55, 0.55]}
    assert "preference_learned" not in findings(held_out={"eval_": at_chance})


def test_who_trains_an_adapter_is_not_told_to_train_one():
    assert "train an adapter" not in findings(**CASES["forgetting"][0])["forgetting"].change
    made = {**CASES["forgetting"][0], "settings": {"adapter": False}}
    assert "train an adapter instead" in findings(**made)["forgetting"].change


def test_where_no_rule_finds_anything_nobody_can_tell():
    few = {"loss": [2.6, 2.7, 2.5, 2.6, 2.6]}
    found = findings(training=few, held_out={})
    assert set(found) == {"too_little"}
    assert found["too_little"].verdict is Verdict.CANNOT_TELL
    assert found["too_little"].evidence.startswith("5 values of the loss, 0 of the log odds, 0 evaluations")
    assert overall([]) is Verdict.CANNOT_TELL
    assert overall([Verdict.HEALTHY, Verdict.CANNOT_TELL]) is Verdict.CANNOT_TELL
    assert overall([Verdict.CANNOT_TELL, Verdict.WATCH]) is Verdict.WATCH


def test_a_loss_of_few_values_that_rises_much_is_found():
    rising = {"loss": [1.82, 2.9, 4.4, 6.1, 8.42]}
    assert findings(training=rising, held_out={})["loss_rising"].verdict is Verdict.ACT
    slightly = {"loss": [1.82, 1.83, 1.84, 1.85, 1.86]}
    assert "loss_rising" not in findings(training=slightly, held_out={})
    with_a_turn = {"loss": [1.9, 1.8, 1.82, 2.1, 1.95, 2.6, 3.1, 3.0, 3.9]}
    assert findings(training=with_a_turn, held_out={})["loss_rising"].verdict is Verdict.ACT


def test_a_loss_alone_can_be_healthy():
    assert set(findings(training={"loss": line(2.6, 1.6, 0.08)}, held_out={})) == {"language_learned"}


def test_a_part_of_a_run_is_not_called_short():
    builder = HistoryBuilder()
    for step in range(1, 5):
        builder.add(step, {"loss": 2.0})
    builder.history.is_excerpt = True
    for planned in ({}, {"max_steps": 30}):
        builder.history.settings = planned
        assert "too_few_steps" not in {finding.rule for finding in judge(builder.build())}
    builder.history.settings = {"max_steps": 4}
    assert "too_few_steps" in {finding.rule for finding in judge(builder.build())}


def test_a_warm_up_is_not_called_long_where_the_end_of_the_schedule_is_missing():
    history = HistoryBuilder()
    for step in range(1, 31):
        history.add(step, {"loss": 2 - step / 100, "learning_rate": step * 1e-6})
    history.history.is_excerpt = True
    assert "warm_up_long" not in {finding.rule for finding in judge(history.build())}
    history.history.settings = {"max_steps": 40}
    assert "warm_up_long" in {finding.rule for finding in judge(history.build())}


def test_where_most_lines_were_not_understood_the_rest_is_no_verdict():
    builder = HistoryBuilder()
    for number, value in enumerate(line(2.6, 1.6)):
        builder.add(number, {"loss": value})
    builder.history.unread, builder.history.unread_example = 100, "rank 3 critic loss 1.5"
    found = {finding.rule: finding for finding in judge(builder.build())}
    assert found["language_learned"].verdict is Verdict.HEALTHY
    assert found["not_read"].verdict is Verdict.CANNOT_TELL
    assert "rank 3 critic loss 1.5" in found["not_read"].evidence


def test_the_step_is_where_it_begins():
    assert findings(**CASES["not_finite"][0])["not_finite"].step == 62
    assert findings(**CASES["throughput_drop"][0])["throughput_drop"].step == 62
    assert abs(findings(**CASES["loss_rising"][0])["loss_rising"].step - 60) <= 10
    assert findings(**CASES["gradient_spikes"][0])["gradient_spikes"].step == 42


def test_a_loss_that_jumps_and_then_falls_again_has_risen():
    loss = line(0.8, 0.6, points=30) + line(4.5, 4.0, points=30)
    found = findings(loss=loss)["loss_rising"]
    assert found.verdict is Verdict.ACT
    assert found.step == 62


def test_an_nll_that_ends_above_its_start_diverges():
    found = findings(nll_loss=[2.0, *line(3.6, 2.8, points=POINTS - 1)])
    assert found["nll_diverging"].verdict is Verdict.ACT
    assert found["nll_diverging"].step == 2


def test_two_bad_points_are_not_a_trend():
    loss = good()["loss"]
    loss[-1] += 1.0
    loss[-2] += 0.8
    assert "loss_rising" not in findings(loss=loss)


def test_a_learning_rate_above_the_usual_that_does_no_harm_is_at_most_to_be_watched():
    assert "learning_rate_high" not in findings(learning_rate=constant(6e-4))
    assert findings(learning_rate=constant(6e-3))["learning_rate_high"].verdict is Verdict.WATCH
    assert "learning_rate_high" not in findings(learning_rate=constant(1.9e-3), settings={"parameters": 1.35e8})


def test_what_begins_after_larger_steps_did_no_harm_is_not_the_learning_rates():
    """Rows that get harder at once, late in the schedule: the loss jumps, and the rate was higher before."""
    jump = line(2.6, 1.6, points=40) + line(4.5, 4.0, points=20)
    high = {"learning_rate": [5 * rate for rate in warm_up(1e-4, 0.1)]}
    found = findings(loss=jump, **high)
    assert "loss_rising" in found
    assert "learning_rate_high" not in found
    early = findings(loss=line(2.6, 2.5, points=5) + line(4.5, 4.0, points=55), **high)
    assert early["learning_rate_high"].verdict is Verdict.ACT


@pytest.mark.parametrize(("early", "verdict"), [((0.5, 0.5), Verdict.ACT), ((0.5, 0.75), Verdict.WATCH)])
def test_chance_is_certain_where_the_training_pairs_were_at_chance_when_they_were_new(early, verdict):
    """Two epochs, the pairs of the first learned by heart in the second; held-out pairs near chance all the time."""
    accuracy = line(*early, 0.05, bend=0, points=30) + line(0.9, 0.95, 0.02, points=30)
    held_out = {"eval_": {**good_held_out(), "rewards/accuracies": [0.53, 0.55, 0.52, 0.5, 0.54, 0.55, 0.55]}}
    epochs = [2 * (number + 1) / POINTS for number in range(POINTS)]
    found = findings(held_out=held_out, **{"rewards/accuracies": accuracy, "epoch": epochs})["accuracy_at_chance"]
    assert found.verdict is verdict
    assert ("at first sight" in found.evidence) is (verdict is Verdict.ACT)


def test_a_single_overflow_of_the_loss_scale_is_none():
    gradients = good()["grad_norm"]
    gradients[0] = float("inf")
    assert "not_finite" not in findings(grad_norm=gradients)


def test_nan_rows_of_an_evaluation_do_not_condemn_the_weights():
    """As a run with a broken held-out row logs them; a training that is NaN as well is another matter."""
    events = [{"event": "log", "step": step, "loss": 2.0, "nll_loss": 1.9} for step in (10, 20)]
    events.insert(1, {"event": "evaluate", "step": 10, "eval_loss": None, "eval_nll_loss": None})
    found = {finding.rule: finding for finding in judge(history_of_events(events))}
    assert "not_finite" not in found
    assert (found["evaluation_not_finite"].metric, found["evaluation_not_finite"].step) == ("eval_loss", 10)
    assert "1 of 1 evaluations" in found["evaluation_not_finite"].evidence
    events.append({"event": "log", "step": 30, "loss": None})
    rules = {finding.rule for finding in judge(history_of_events(events))}
    assert "not_finite" in rules
    assert "evaluation_not_finite" not in rules


def test_a_finding_names_the_held_out_set_that_shows_it():
    lengths = [0.2, 0.5, 0.7, 0.8, 0.85, 0.88, 0.9]
    falling = {"logps/chosen": [-1.5, -1.6, -1.8, -2.0, -2.2, -2.4, -2.6], "logps/rejected": [-2.0, *range(-3, -9, -1)]}
    known = {"rewards/accuracies": [1.0] * len(EVALUATIONS), "length_correlation": lengths, **falling}
    found = findings(held_out={"eval_code_": known}, **{"logps/chosen": constant(-2.0)})
    assert found["over_penalisation"].metric == "eval_code_logps/chosen"
    assert found["accuracy_at_once"].metric == "eval_code_rewards/accuracies"
    assert found["margin_from_length"].metric == "eval_code_length_correlation"


def test_findings_are_ordered_by_severity_and_are_json():
    builder = HistoryBuilder()
    for number, value in enumerate(constant(0.0)):
        builder.add(number, {"loss": value, "grad_norm": 1.0})
    ordered = judge(builder.build())
    assert [f.verdict.severity for f in ordered] == sorted((f.verdict.severity for f in ordered), reverse=True)
    assert set(ordered[0].to_dict()) == {"rule", "verdict", "metric", "step", "evidence", "meaning", "change"}
