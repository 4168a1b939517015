"""How large a checkpoint becomes, against real ones; and what is said where there is no room for it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback, TrainerState

from oddsmith import ORPOConfig
from oddsmith.checkpoint.space import CheckpointSize, Room, checkpoint_size, checkpoints_at_once, require_writable
from oddsmith.errors import ConfigError, SaveError
from oddsmith.model.adapters import add_adapter
from oddsmith.system.files import in_units
from oddsmith.training.preflight import require_room, saves_to_come, size_in_training
from tests.faults import file_size_limit
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_runs import SETTINGS, make_trainer

GB = 10**9
WHOLE = CheckpointSize(weights_bytes=GB, optimizer_bytes=2 * GB, tokenizer_bytes=0, rest_bytes=0)


@pytest.mark.parametrize(
    ("optim", "bytes_a_weight"),
    [
        ("adamw_torch", 8),
        ("adamw_torch_fused", 8),
        ("paged_adamw_8bit", 2 * (1 + 4 / 256)),
        ("lion_32bit", 4),
        ("ademamix", 12),
        ("sgd", 0),
        ("adafactor", 4 / 1024 + 4 / 4096),
        ("galore_adamw", 8),
    ],
)
def test_what_an_optimizer_keeps_of_a_weight(optim, bytes_a_weight):
    model = torch.nn.Linear(1024, 4096, bias=False)
    size = checkpoint_size(model, None, optim=optim)
    assert size.weights_bytes == 4 * 1024 * 4096
    assert size.optimizer_bytes == pytest.approx(bytes_a_weight * 1024 * 4096, rel=0.01)
    assert checkpoint_size(model, None, optim=optim, save_only_model=True).optimizer_bytes == 0


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad", "RMSprop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_by_name_is_what_torch_s_optimizers_keep(name, dtype):
    model = torch.nn.Linear(64, 64, dtype=dtype)
    optimizer = getattr(torch.optim, name)(model.parameters())
    model(torch.ones(1, 64, dtype=dtype)).sum().backward()
    optimizer.step()
    optim = {"AdamW": "adamw_torch"}.get(name, name.lower())
    estimated = checkpoint_size(model, None, optim=optim).optimizer_bytes
    counted = checkpoint_size(model, None, optim=optim, optimizer=optimizer).optimizer_bytes
    assert estimated == pytest.approx(counted, abs=16)  # the number of steps


def test_of_an_adapter_only_what_is_trained_is_saved_and_the_model_needs_no_storage():
    with torch.device("meta"):
        model = add_adapter(tiny_model(), LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"]))
    size = checkpoint_size(model, tiny_tokenizer(), optim="adamw_torch")
    assert size.weights_bytes == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size.optimizer_bytes == 2 * size.weights_bytes


def test_the_size_of_a_tokenizer_is_that_of_its_file(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    size = checkpoint_size(torch.nn.Linear(1, 1), tokenizer, optim="sgd")
    assert size.tokenizer_bytes == (tmp_path / "tokenizer.json").stat().st_size


@pytest.mark.parametrize(
    ("lora", "optim", "dtype"),
    [
        (True, "adamw_torch", torch.float32),
        (False, "adamw_torch", torch.bfloat16),
        (False, "adafactor", torch.float32),
        (False, "sgd", torch.float32),
    ],
)
def test_the_estimate_is_what_a_checkpoint_takes(tmp_path, lora, optim, dtype):
    """Within a tenth, before the first step and after it, of the checkpoint and of the final model."""
    settings = {**SETTINGS, "save_strategy": "steps", "save_steps": 2, "optim": optim, "prefix_forest": False}
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    model = tiny_model(hidden_size=160, intermediate_size=320, dtype=dtype)
    before, after = [], []
    options = {"peft_config": adapter, "callbacks": [Sizes(before, after)]}
    trainer = make_trainer(tmp_path, model, 6, **settings, **options)
    trainer.train()
    trainer.save_model()
    saved = [file.stat().st_size for file in (tmp_path / "checkpoint-2").rglob("*") if file.is_file()]
    for (size,) in (before, after):
        assert sum(size) == pytest.approx(sum(saved), rel=0.1)
        assert size.final_bytes == pytest.approx(sum(f.stat().st_size for f in tmp_path.glob("*.*")), rel=0.1)
    with file_size_limit(1000), pytest.raises(SaveError, match="not saved .file too large.; checkpoint-2 is complete"):
        trainer.save_model()


class Sizes(TrainerCallback):
    """What is estimated before the first step, and after the last."""

    def __init__(self, before: list[CheckpointSize], after: list[CheckpointSize]):
        self._before, self._after = before, after

    def on_train_begin(self, args, state, control, model=None, processing_class=None, optimizer=None, **kwargs):
        self._before.append(size_in_training(args, state, model, processing_class, optimizer))

    def on_train_end(self, args, state, control, model=None, processing_class=None, optimizer=None, **kwargs):
        self._after.append(size_in_training(args, state, model, processing_class, optimizer))


@pytest.mark.parametrize(
    ("saves", "limit", "there", "expected"),
    [(10, None, 0, 10), (10, None, 4, 10), (10, 2, 0, 3), (10, 1, 0, 3), (10, 5, 0, 6), (2, 5, 0, 2), (10, 2, 2, 1)],
)
def test_how_many_checkpoints_lie_there_at_once(saves, limit, there, expected):
    """One more than the limit, while the newest is written; and two complete ones always stay."""
    assert checkpoints_at_once(saves, limit, there) == expected


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({"save_strategy": "no"}, {}, 0),
        ({"save_strategy": "steps"}, {}, 10),
        ({"save_strategy": "steps"}, {"global_step": 55}, 5),
        ({"save_strategy": "epoch"}, {}, 3),
        ({"save_strategy": "epoch"}, {"epoch": 1.5, "global_step": 50}, 2),
        ({"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps"}, {}, 5),
    ],
)
def test_how_many_checkpoints_are_still_to_come(settings, steps, expected):
    state = TrainerState(max_steps=100, save_steps=10, eval_steps=20, num_train_epochs=3, **steps)
    assert saves_to_come(ORPOConfig("unused", use_cpu=True, bf16=False, **settings), state) == expected


def test_a_run_that_cannot_be_saved_once_is_refused():
    with pytest.raises(ConfigError) as raised:
        require_room(Path("run"), Room(WHOLE, free=3 * GB, wanted=3))
    assert str(raised.value) == (
        "output_dir run: a checkpoint and the final model take 4.0 GB, and 3.0 GB are free there; make room, or choose"
        " another output_dir"
    )
    with pytest.raises(ConfigError, match="the final model takes 1.0 GB, and 500 MB are free"):
        require_room(Path("run"), Room(WHOLE, free=GB // 2, wanted=0))
    assert require_room(Path("run"), Room(WHOLE, free=3 * GB, wanted=0)) is None


def test_a_run_that_cannot_be_saved_to_its_end_is_warned_of():
    assert require_room(Path("run"), Room(WHOLE, free=20 * GB, wanted=3)) is None
    assert require_room(Path("run"), Room(WHOLE, free=8 * GB, wanted=3)) == (
        "output_dir run: 8.0 GB are free, enough for 2 of the 3 checkpoints of 3.0 GB that will lie there; make room,"
        " or set save_total_limit, save_only_model or another output_dir"
    )


def test_a_limit_on_the_size_of_files_is_met_before_training():
    room = Room(WHOLE, free=100 * GB, wanted=1)
    message = r"a file of 2.0 GB will be saved, .* 1.0 GB .*ulimit -f"
    with file_size_limit(GB), pytest.raises(ConfigError, match=message):
        require_room(Path("run"), room)
    with file_size_limit(3 * GB):
        assert require_room(Path("run"), room) is None


def test_room_is_described_in_words():
    assert str(Room(WHOLE, free=20 * GB, wanted=3)) == (
        "a checkpoint takes about 3.0 GB; 6 of them fit beside the final model (20 GB free)"
    )
    assert [in_units(size) for size in (12_345, 3.5e8, 1.234e9, 2.5e13)] == ["12 kB", "350 MB", "1.2 GB", "25 TB"]


def test_a_folder_is_tried_by_writing_there_and_nothing_of_it_stays(tmp_path):
    require_writable(tmp_path / "not" / "yet" / "there")
    assert not list(tmp_path.iterdir())
    with file_size_limit(1000), pytest.raises(ConfigError, match="run: cannot be written .file too large.; choose"):
        require_writable(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"cannot be written .*choose another output_dir"):
        require_writable(Path("/proc/run"))
