"""Make a trainer from settings: rows -> tokens -> model -> ORPOTrainer. Weights are loaded last: the rest can fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
)

from ....config import ModelConfig
from ....data.prepare import prepare
from ....data.sources import RunRows, load_datasets
from ....data.tokens.pair_tokenizer import PairTokenizer
from ....errors import ConfigError, ModelError
from ....model.adapters import get_peft_config, get_quantization_config
from ....model.computing import require_computing
from ....model.loading.chat_template import set_chat_template
from ....model.loading.models import load_config, load_model, load_tokenizer
from ....model.loading.place import is_adapter_folder, is_gguf, locate
from ....model.loading.setup import clear_option_errors, default_dtype, run_dtype
from ....model.loading.stored_quantisation import require_trainable_base, stored_quantisation
from ....system.memory import clear_memory_errors
from ....system.run_folder import CONSOLE_FILE
from ....training.trainer import ORPOTrainer
from ...parsing.resolve import Resolved, Settings
from ...terminal.console import is_live, is_main_process, record_into, working
from ...terminal.progress import TokenizingLines
from .run_folder import write_settings

if TYPE_CHECKING:
    from ....data.report import DataReport

logger = logging.getLogger(__name__)

MIN_ROWS_FOR_A_BAR = 5_000


def make_trainer(
    settings: Settings, train_rows: Any, eval_rows: Any, callbacks: list[TrainerCallback] | None = None
) -> ORPOTrainer:
    """Tokenize the rows, load the model, and make the trainer, which gets the reports of both datasets.

    ``train_rows`` is ``None`` only to evaluate; ``eval_rows`` may be several sets by name, or ``None``.
    """
    orpo, chosen, _ = settings
    name = str(chosen.model_name_or_path)
    _check_devices(settings)
    if train_rows is not None:
        require_trainable(settings)
    tokenizer = load_its_tokenizer(settings)
    seq2seq = is_encoder_decoder_by_config(settings)
    reports: dict[str, DataReport] = {}
    train_data, eval_data = _tokenized(settings, tokenizer, train_rows, eval_rows, seq2seq, reports)
    with working(f"loading {name}"), clear_memory_errors():
        model = _load(settings, is_trainable=train_rows is not None)
        if bool(model.config.is_encoder_decoder) != seq2seq:  # seen only now; the trainer tokenizes again
            train_data, eval_data, reports = train_rows, eval_rows, {}
        is_adapter = isinstance(model, PeftModel)
        if is_adapter and chosen.use_peft:
            tell_of_adapter(name, model, chosen)
        orpo.model_init_kwargs, orpo.disable_tqdm = None, True
        trainer = ORPOTrainer(
            model,
            args=orpo,
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=tokenizer,
            peft_config=get_peft_config(chosen) if train_rows is not None and not is_adapter else None,
            callbacks=callbacks,
        )
        if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):  # these place their shares later
            require_computing(name, trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.data_reports.update(reports)
    return trainer


def tell_of_adapter(name: str, model: PeftModel, chosen: ModelConfig) -> None:
    """Warn of settings of an adapter that the model, which is one already and is trained further, does not have."""
    its, asked = model.active_peft_config, get_peft_config(chosen)
    names = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    names |= {setting: setting for setting in ("use_rslora", "use_dora")}
    odd = {
        setting: getattr(its, field, None)
        for setting, field in names.items()
        if getattr(chosen, setting) not in (getattr(ModelConfig, setting), getattr(its, field, None))
    }
    if asked is not None and odd:
        shown = ", ".join(f"{setting} stays {value}" for setting, value in odd.items())
        logger.warning("%s is an adapter, which is trained further as it is: %s", name, shown)


def load_its_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model of a run, with the chat template that its settings name."""
    orpo, chosen, _ = settings
    name = str(chosen.model_name_or_path)
    with working(f"loading the tokenizer of {name}"):
        tokenizer = load_tokenizer(name, revision=chosen.model_revision, trust_remote_code=orpo.trust_remote_code)
        if orpo.chat_template is not None:
            set_chat_template(tokenizer, orpo.chat_template, is_main=is_main_process())
        return tokenizer


def _load(settings: Settings, is_trainable: bool) -> PreTrainedModel:
    """Load the model; ``model_init_kwargs`` overrides the other settings."""
    orpo, chosen, _ = settings
    options: dict[str, Any] = {
        "dtype": base_dtype(settings),
        "revision": chosen.model_revision,
        "trust_remote_code": orpo.trust_remote_code,
        "attn_implementation": chosen.attn_implementation,
        "quantization_config": get_quantization_config(chosen, compute_dtype=run_dtype(orpo)),
        "is_trainable": is_trainable,
    }
    with clear_option_errors(orpo.model_init_kwargs):
        return load_model(str(chosen.model_name_or_path), **{**options, **_init_options(settings)})


def require_trainable(settings: Settings) -> None:
    """Refuse weights that are stored quantised where what is asked for cannot be trained on them."""
    orpo, chosen, _ = settings
    name = str(chosen.model_name_or_path)
    place = locate(name)
    if is_gguf(place) or is_adapter_folder(Path(place)):
        return
    try:
        config = load_config(name, revision=chosen.model_revision, trust_remote_code=orpo.trust_remote_code)
    except ModelError:  # an adapter on the hub, or something that cannot be loaded; loading it gives the error
        return
    quantise = chosen.load_in_4bit or chosen.load_in_8bit
    stored = stored_quantisation(name, config)
    require_trainable_base(name, stored, adapter=chosen.use_peft, quantise=quantise)


def _init_options(settings: Settings) -> dict[str, Any]:
    given = settings.orpo.model_init_kwargs
    return given if isinstance(given, dict) else {}


def read_rows(settings: Settings) -> RunRows:
    """Read the rows to train and, where the settings ask for an evaluation, to evaluate on."""
    orpo, _, data = settings
    holds_out = data.eval_dataset_name is not None or data.test_split_size is not None
    with working("reading the pairs"):
        return load_datasets(data, seed=orpo.seed, evaluate=orpo.eval_strategy != "no" or holds_out)


def base_dtype(settings: Settings) -> torch.dtype | str:
    """Return the type to load the weights in: the given one (``"auto"``: as stored), or ``default_dtype``."""
    given = _init_options(settings).get("dtype", settings.model.dtype)
    if given is not None:
        return getattr(torch, given) if isinstance(given, str) and given != "auto" else given
    return default_dtype(settings.orpo, adapter=settings.model.use_peft)


def _tokenized(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Any,
    eval_rows: Any,
    is_encoder_decoder: bool,
    reports: dict[str, DataReport],
) -> tuple[Any, Any]:
    """Tokenize both datasets; their reports go into ``reports``."""
    orpo = settings.orpo
    pair_tokenizer = PairTokenizer.from_settings(tokenizer, orpo, is_encoder_decoder=is_encoder_decoder)

    def tokens(name: str, rows: Any) -> Any:
        if rows is None:
            return None
        options: dict[str, Any] = {"bad_rows": orpo.bad_rows, "num_proc": orpo.dataset_num_proc, "source": name}
        progress = None if is_live() else TokenizingLines(name)
        with tokenizing(rows):
            prepared = prepare(rows, pair_tokenizer, progress=progress, **options)
        reports[name] = prepared.report
        return prepared.dataset

    train_tokens = tokens("train", train_rows)
    if isinstance(eval_rows, Mapping):
        return train_tokens, {name: tokens(name, rows) for name, rows in eval_rows.items()}
    return train_tokens, tokens("eval", eval_rows)


@contextmanager
def tokenizing(rows: Any) -> Iterator[None]:
    """Show on a terminal that pairs are tokenized; with many rows by the progress bar of ``datasets``."""
    if isinstance(rows, Sized) and len(rows) >= MIN_ROWS_FOR_A_BAR and is_live() and is_main_process():
        yield
        return
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with working("tokenizing the pairs"):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def is_encoder_decoder_by_config(settings: Settings) -> bool:
    """Return whether the configuration says that the model is an encoder-decoder, before the model is loaded."""
    name = str(settings.model.model_name_or_path)
    if is_gguf(locate(name)):
        return False
    source: Any = {"revision": settings.model.model_revision, "trust_remote_code": settings.orpo.trust_remote_code}
    try:
        return bool(load_config(name, **source).is_encoder_decoder)
    except ModelError:  # an adapter, or something that cannot be loaded; loading it gives the error
        return False


def _check_devices(settings: Settings) -> None:
    """Refuse more processes than this machine has devices for."""
    orpo = settings.orpo
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() and not orpo.use_cpu else None
    if devices is not None and orpo.world_size > 1 and orpo.local_process_index >= devices:
        raise ConfigError(f"more processes than the {devices} devices here; give at most --num-processes {devices}")


class WriteSettings(TrainerCallback):
    """Writes ``run.yaml``, and the record of what is printed, when training begins: after all checks that could refuse
    the run, so that a folder that is refused stays as it is.
    """

    def __init__(self, resolved: Resolved, settings: Settings):
        self._resolved, self._settings = resolved, settings

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the files, on the main process alone."""
        if state.is_world_process_zero:
            write_settings(Path(args.output_dir), self._resolved, self._settings)
            record_into(Path(args.output_dir) / CONSOLE_FILE)
