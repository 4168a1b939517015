"""Write the model of a run, and what belongs beside it: tokenizer, processor, the base's record, the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..model.generation import stop_at_end_tokens
from ..model.loading.place import is_adapter_folder
from ..model.loading.processor_files import copy_processor_files
from ..model.loading.quiet import no_progress_bars
from ..model.text_part import as_stored, is_multimodal
from ..model.vocabulary import grown_rows


def write_model(trainer: Any, folder: Path, state: dict[str, Any] | None, *, is_gathered: bool) -> None:
    """Write the model and the tokenizer, in all processes together where shards are gathered.

    Args:
        trainer: The trainer, for its model, its shards and its tokenizer.
        folder: Where to.
        state: The weights, if transformers has gathered them.
        is_gathered: Whether all processes take part in transformers' own ``save_pretrained``.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    tokenizer, is_writer = trainer.processing_class, trainer.args.should_save
    if tokenizer is not None:
        stop_at_end_tokens(model, tokenizer)  # once more: a person may have changed either
    options: dict[str, Any] = {"is_main_process": is_writer}
    if isinstance(model, PeftModel) and grown_rows(model):
        options["save_embedding_layers"] = False  # the rows that the base lacks are made anew, or trained ones
    if trainer.shards.is_sharded:
        state = trainer.shards.state_to_save(embeddings=options.get("save_embedding_layers", "auto"))
    elif is_multimodal(model) and not hasattr(model, "peft_config"):
        state = as_stored(model, model.state_dict() if state is None else state)
    if is_writer or is_gathered:
        with no_progress_bars(), _told_to_write(model):
            model.save_pretrained(folder, state_dict=state, **options)
    trainer.shards.write(folder)
    if is_writer:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        copy_processor_files(model, folder)
        _write_beside(trainer, model, folder)


@contextmanager
def _told_to_write(model: Any) -> Iterator[None]:
    """Let ``save_pretrained`` write wherever it is told to: transformers writes in the first of all processes alone."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del model.should_save_on_this_rank


def _write_beside(trainer: Any, model: Any, folder: Path) -> None:
    """Put a card beside the model of the run; beside an adapter also generation settings and its base's record."""
    is_adapter = is_adapter_folder(folder)
    if is_adapter:
        trainer.identity.base.save(folder)
        settings = getattr(model, "generation_config", None)
        if settings is not None:  # PEFT does not write them: they have the end of turn, which the base's may lack
            settings.save_pretrained(folder)
    if is_adapter or folder.resolve() == Path(trainer.args.output_dir).resolve():
        trainer.create_model_card(folder=folder)
