"""What is advised from lengths, from ways to train, and from the number of pairs."""

import numpy as np
import pytest

from oddsmith import ORPOConfig
from oddsmith.errors import ConfigError
from oddsmith.planning.advice import Lengths, OwnSplit, advise_settings, best_ways, chosen_way, held_out, pairs_per_step
from oddsmith.planning.cards import CARDS, gpus_of
from oddsmith.planning.ranks import ALONE, DDP, FSDP2, ZERO_3, RankMemory, Sharing
from oddsmith.planning.recipe import ALL_WEIGHTS, LORA, LORA_4BIT, Choice

NO_MEMORY = RankMemory(0, 0, 0, 0, 0, 0)


def way(
    training: str, *, fits: bool = True, kind: str = ALONE, checkpointing: bool = False, size: float = 1, pairs: int = 8
) -> Choice:
    memory = replace_memory(size)
    return Choice(training, Sharing(kind, 1), checkpointing, memory, fits, None, pairs, 0, None, False)


def replace_memory(size: float) -> RankMemory:
    return NO_MEMORY._replace(weights=size)


def test_the_length_holds_99_of_100_pairs_whole():
    lengths = Lengths(np.sort([*range(1, 100), 5000]), positions=8192)
    assert lengths.quantiles == {0.5: 50, 0.9: 90, 0.99: 99, 1.0: 5000}
    assert (lengths.max_length, lengths.cut_by(128), lengths.cut_by(90)) == (128, 1, 10)


def test_the_length_is_no_more_than_the_model_reads():
    assert Lengths(np.array([900, 1000]), positions=1000).max_length == 1000
    assert Lengths(np.array([900, 1000]), positions=None).max_length == 1024


def test_of_two_ways_that_fit_the_simpler_is_taken():
    """Without gradient checkpointing first, then what needs no sharding; DeepSpeed is never advised."""
    ways = [
        way(ALL_WEIGHTS, kind=DDP, checkpointing=True),
        way(ALL_WEIGHTS, kind=FSDP2),
        way(ALL_WEIGHTS, kind=ZERO_3),
        way(LORA, kind=FSDP2),
        way(LORA, kind=DDP),
        way(LORA_4BIT, fits=False, size=3),
        way(LORA_4BIT, fits=False, checkpointing=True, size=2),
    ]
    found = best_ways(ways)
    assert (found["full"], found["lora"], found["4bit"]) == (ways[1], ways[4], ways[6])


def test_few_pairs_take_an_adapter_and_many_all_weights():
    ways = {"full": way(ALL_WEIGHTS), "lora": way(LORA), "4bit": way(LORA_4BIT)}
    everything = tuple(ways)
    assert chosen_way(ways, 300, everything) == "lora"
    assert chosen_way(ways, 60_000, everything) == "full"
    large = ways | {"full": way(ALL_WEIGHTS, fits=False), "lora": way(LORA, fits=False)}
    assert chosen_way(large, 60_000, everything) == "4bit"
    assert chosen_way(large, 60_000, ("full", "lora")) is None  # no bitsandbytes here


def test_pairs_a_step_are_shared_out():
    assert (pairs_per_step(300, 1), pairs_per_step(300, 4), pairs_per_step(300, 64)) == (8, 2, 1)
    assert pairs_per_step(60_000, 4) == 8


def test_how_many_pairs_are_held_out():
    assert [held_out(rows) for rows in (10, 100, 2_000, 10**6)] == [0, 16, 100, 500]


@pytest.mark.parametrize("text", ["h100x8", "H100 x 8", "8xh100", "8 x H100"])
def test_gpus_are_counted_in_each_spelling(text):
    assert (gpus_of(text)[0].name, gpus_of(text)[1]) == ("H100", 8)


def test_an_x_may_be_part_of_a_name():
    assert [gpus_of(text)[1] for text in ("rtx4090", "4090", "rtx4090x2", "24GB", "24GBx2")] == [None, None, 2, None, 2]
    assert gpus_of("rtx4090x2")[0].memory == CARDS["RTX 4090"].memory
    for text in ("h999x8", "x8", "8x", "h100x", "hx8"):
        with pytest.raises(ConfigError, match="expected its memory, such as 24GB, or one of"):
            gpus_of(text)


def advised(rows: int = 80, accumulation: int = 1, pairs: int = 8, own: OwnSplit | None = None, **given) -> dict:
    """Return name -> what is advised of a small run by LoRA."""
    lengths = Lengths(np.arange(1, 101), None)
    found = advise_settings(
        parameters=10**6,
        rows=rows,
        lengths=lengths,
        max_length=128,
        training="lora",
        why_training="as asked",
        choice=way(LORA, pairs=pairs),
        per_device=8,
        accumulation=accumulation,
        given=given,
        own=own,
    )
    return {one.setting: one for one in found}


@pytest.mark.parametrize(
    "given",
    [
        {"eval_steps": 10},
        {"save_steps": 7},
        {"eval_steps": 10, "save_steps": 7},
        {"save_strategy": "epoch"},
        {"save_strategy": "no"},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "no"},
        {"eval_strategy": "no", "save_strategy": "epoch"},
        {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 5},
        {"save_total_limit": 1},
        {"load_best_model_at_end": False},
        {"eval_dataset_name": "held.jsonl"},
        {"test_split_size": 0.1, "save_steps": 4},
        {"max_steps": 50},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [20, 80])
def test_a_recipe_with_any_given_setting_is_taken(given, rows, tmp_path):
    recipe = {name: one.value for name, one in advised(rows, **given).items()} | given
    of_data_and_model = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "test_split_size", "eval_dataset_name")
    rest = {name: value for name, value in recipe.items() if name not in of_data_and_model}
    args = ORPOConfig(output_dir=str(tmp_path), report_to="none", **rest)  # refuses what does not go together
    assert args.load_best_model_at_end <= (args.save_strategy == args.eval_strategy)


def test_what_follows_from_a_given_setting_follows():
    assert advised(lora_r=64)["lora_alpha"].value == 128
    assert "num_train_epochs" not in advised(max_steps=50)
    assert advised(eval_steps=10)["save_steps"].value == 10
    assert advised(save_steps=7)["eval_steps"].value == 7
    assert advised(save_strategy="epoch")["eval_strategy"].value == "epoch"
    with_pairs = advised(20, eval_dataset_name="held.jsonl")
    assert (with_pairs["eval_strategy"].value, "test_split_size" in with_pairs) == ("steps", False)
    pairs = advised(accumulation=4, gradient_accumulation_steps=4)["per_device_train_batch_size"]
    assert pairs.why == "32 pairs a step; 8 are usual"


def test_fewer_pairs_at_once_leave_the_pairs_of_a_step():
    found = advised(pairs=2)
    assert (found["per_device_train_batch_size"].value, found["gradient_accumulation_steps"].value) == (2, 4)
    assert found["gradient_accumulation_steps"].why == "8 pairs a step; so that few pairs make enough steps"
    assert found["per_device_eval_batch_size"].value == 2
    assert "gradient_accumulation_steps" not in advised()


def test_a_test_split_of_its_own_is_evaluated_on_unless_it_is_useless():
    found = advised(own=OwnSplit("test", 2_000))
    assert found["dataset_test_split"].value == "test[:500]"
    assert found["dataset_test_split"].why.startswith("the data set's own first 500 of 2,000 pairs to evaluate on")
    assert ("test_split_size" in found, found["eval_strategy"].value) == (False, "steps")
    assert advised(20, own=OwnSplit("test", 30))["dataset_test_split"].value == "test"  # too few to cut some off
    assert advised(own=OwnSplit("test[10%:]", 2_000))["dataset_test_split"].value == "test[10%:]"
    for own, why in (
        (OwnSplit("test", 3), "its own split test has 3 pairs"),
        (OwnSplit("test", 40, "row 3: no answers"), "its own split test cannot be used: row 3: no answers"),
    ):
        found = advised(own=own)
        assert (found["test_split_size"].value, "dataset_test_split" in found) == (16, False)
        assert found["test_split_size"].why.endswith(f"; {why}")
    assert "dataset_test_split" not in advised(own=OwnSplit("test", 40), eval_dataset_name="held.jsonl")
