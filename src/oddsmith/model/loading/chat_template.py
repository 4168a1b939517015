"""Give a tokenizer a chat template: a built-in one, that of a file, or another model's, with the tokens that it writes.

    text of the template -> render a short conversation -> markers in it that are no tokens yet -> added tokens
                                                        -> the token that ends an answer        -> EOS

The embeddings of new tokens are made when there is a model (``vocabulary.py``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from ...data.tokens.rendering import PROBE, Renderer, tokenizer_name
from ...errors import ConfigError, ModelError
from ...system.outside import read_text
from ...system.words import enumerated
from ..limits import embedding_rows
from ..vocabulary import grow_embeddings, start_at_mean, train_rows, trains_rows, untrained
from .models import load_tokenizer

logger = logging.getLogger(__name__)

# Source: OpenAI's chat markup language, as Qwen's models write it. What a tokenizer puts in front of text is put in
# front of a conversation, too: models that began with it in their pretraining are lost without.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BUILTIN = {"chatml": CHATML}
FILE_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt")

# What is a token in the templates of all known models: <|im_end|>, <end_of_turn>, DeepSeek's <｜User｜>.
TOKEN = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>|<[a-z]+(?:_[a-z]+)+>")
# What is one in the templates of some, and text in those of others: [INST], <user>, </s>.
MARKER = re.compile(r"\[/?[A-Z][A-Z_]{2,20}\]|</?[A-Za-z_]{1,20}>")
_NEW = "oddsmith_new_tokens"  # attribute of a tokenizer: the tokens that were added to it
_STARTED = "oddsmith_started_tokens"  # attribute of a model: the ids whose rows were given their start


class Template(NamedTuple):
    """A chat template, and the tokens that belong to it, where these are known."""

    text: str
    tokens: tuple[str, ...] | None = None  # None: what looks like one in its text


def set_chat_template(tokenizer: PreTrainedTokenizerBase, wanted: str, *, is_main: bool = True) -> None:
    """Give a tokenizer a chat template, in place; one that has it already stays as it is.

    Markers that it writes become special tokens where the tokenizer has none such. The token that ends an answer
    becomes EOS, unless the template itself writes ``eos_token``.

    Args:
        tokenizer: The tokenizer.
        wanted: ``"chatml"``, a file, a model that has a chat template, or the text of one (``{% ... %}``).
        is_main: Whether this process tells what was changed.

    Raises:
        ConfigError: ``wanted`` is none of these.
        ModelError: The template renders no conversation.
    """
    template = _template(wanted, tokenizer)
    own, eos = tokenizer.chat_template, tokenizer.eos_token
    tokenizer.chat_template = template.text
    scaffold = _scaffold(tokenizer)
    tokens = template.tokens if template.tokens is not None else tuple(dict.fromkeys(TOKEN.findall(scaffold)))
    added = tokenizer.get_added_vocab()
    missing = [token for token in tokens if token in scaffold and token not in added]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True)
    setattr(tokenizer, _NEW, (*new_tokens(tokenizer), *missing))
    end = Renderer(tokenizer).end_of_turn
    if end is not None and end != eos:
        tokenizer.eos_token = end
        if _scaffold(tokenizer) != scaffold:  # the template writes it: the model knows its EOS as the end of a text
            tokenizer.eos_token = eos
    if is_main and (own != template.text or missing):
        for line in _changes(tokenizer, wanted, scaffold, missing, end, was_eos=eos, had_template=bool(own)):
            logger.warning("%s", line)


def fit_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, peft_config: Any, *, is_set: bool, is_main: bool = True
) -> Any:
    """Give the tokens that a chat template writes rows in a model's embeddings, where they have none yet.

    Args:
        model: The model, changed in place.
        tokenizer: Its tokenizer.
        peft_config: Settings of the adapter that is to be trained, if one is.
        is_set: Whether the settings of the run name the template: else no weight is changed.
        is_main: Whether this process tells what was changed.

    Returns:
        The settings of the adapter, which also trains the rows that no training has seen.

    Raises:
        ModelError: The model lacks rows and has an adapter, which cannot train them.
    """
    id_of = tokenizer.convert_tokens_to_ids
    written = [id_of(token) for token in template_tokens(tokenizer)]
    unknown = [id_of(token) for token in new_tokens(tokenizer)] if is_set else written
    rows, tokens = embedding_rows(model), set[int]()
    if unknown and (is_set or peft_config is not None) and (known := _own_tokens(model)) is not None:
        tokens.update({token for token in unknown if token < rows} - known - getattr(model, _STARTED, set()))
    if is_set and any(token >= rows for token in unknown):
        if hasattr(model, "peft_config"):
            raise _untrained_rows(new_tokens(tokenizer))
        grow_embeddings(model, len(tokenizer))
        tokens.update(range(rows, len(tokenizer)))
        if is_main:
            logger.warning(
                "The model's embeddings have %s rows now, instead of %s.", f"{len(tokenizer):,}", f"{rows:,}"
            )
    zero, near_mean = untrained(model, written)
    if is_set:  # of a model that is given with its template, the row of the token to pad with may be zero
        tokens.update(zero)
        unused = sorted(token for token in tokens if token < rows)
        if unused and not hasattr(model, "peft_config"):
            start_at_mean(model, unused, peft_config)
        elif unused and not trains_rows(model, unused):  # the adapter is saved without them
            raise _untrained_rows(tokenizer.convert_ids_to_tokens(unused))
        setattr(model, _STARTED, getattr(model, _STARTED, set()) | tokens)
    tokens.update(near_mean)
    if peft_config is None or not tokens:
        return peft_config
    if is_main:
        named = enumerated(map(repr, tokenizer.convert_ids_to_tokens(sorted(tokens))))
        logger.warning("No training has seen the rows of %s in the embeddings: the adapter trains them, too.", named)
    return train_rows(model, peft_config, sorted(tokens))


def _untrained_rows(tokens: Sequence[str]) -> ModelError:
    return ModelError(
        f"chat_template needs rows for the tokens {enumerated(list(map(repr, tokens)))}, and the model has an adapter"
        " already, which does not train them; give the base and peft_config instead"
    )


def _own_tokens(model: PreTrainedModel) -> set[int] | None:
    """Return the ids of the added tokens with which a model was saved; None where it has no tokenizer of its own."""
    try:
        return set(load_tokenizer(model.config._name_or_path).added_tokens_decoder)
    except (ModelError, AttributeError):
        return None


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the tokens that ``set_chat_template`` has added to a tokenizer."""
    return getattr(tokenizer, _NEW, ())


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the added tokens that a tokenizer's chat template writes around the turns of a conversation."""
    if not tokenizer.chat_template:
        return []
    try:
        scaffold = _scaffold(tokenizer)
    except ModelError:
        return []
    return [token for token in tokenizer.get_added_vocab() if token.strip() and token in scaffold]


def cut_markers(tokenizer: PreTrainedTokenizerBase, scaffold: str) -> list[str]:
    """Return what looks like a token in a rendering, but is several tokens."""
    added = tokenizer.get_added_vocab()
    found = dict.fromkeys([*TOKEN.findall(scaffold), *MARKER.findall(scaffold)])
    return [marker for marker in found if marker not in added]


def _template(wanted: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    if wanted in BUILTIN:
        text = BUILTIN[wanted]
        bos = tokenizer.bos_token_id
        begins = bos is not None and tokenizer("a").input_ids[:1] == [bos]
        return Template("{{ bos_token }}" + text if begins else text)
    if "{%" in wanted or "{{" in wanted:
        return Template(wanted)
    file = Path(wanted).expanduser()
    if file.suffix in FILE_SUFFIXES:
        try:
            return Template(read_text(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template is {wanted!r}, a file that cannot be read as text: {error}") from error
    try:
        source = load_tokenizer(wanted)
    except ModelError as error:
        raise ConfigError(
            f"chat_template is {wanted!r}; expected {' or '.join(BUILTIN)}, a file (.jinja), or a model that has a chat"
            f" template ({error})"
        ) from error
    if not source.chat_template:
        raise ConfigError(f"chat_template is {wanted!r}, a model that has no chat template itself; name another")
    return Template(source.get_chat_template(), tuple(template_tokens(source)))


def _scaffold(tokenizer: PreTrainedTokenizerBase) -> str:
    """Render short conversations, with and without an open turn; a ``ModelError`` where all are refused."""
    return "\n".join(Renderer(tokenizer).probes()).replace(PROBE, " ")


def _changes(
    tokenizer: PreTrainedTokenizerBase,
    wanted: str,
    scaffold: str,
    missing: Sequence[str],
    end: str | None,
    *,
    was_eos: str | None,
    had_template: bool,
) -> list[str]:
    """Say in sentences what a chat template has changed, and what it lacks."""
    name = "chat_template" if "{" in wanted else f"chat_template {wanted}"
    lines = [f"{name}: it takes the place of the tokenizer's own"] if had_template else []
    if missing:
        lines.append(f"{name}: {enumerated(list(map(repr, missing)))} became tokens")
    if end is None:
        lines.append(f"{name}: no token ends its answers; {tokenizer.eos_token!r} is added to the last one")
    elif tokenizer.eos_token != was_eos:
        lines.append(f"{name}: answers end with {end!r}, which is EOS now (was {was_eos!r})")
    if markers := cut_markers(tokenizer, scaffold):
        lines.append(
            f"{name}: it writes {enumerated(list(map(repr, markers)))}, which {tokenizer_name(tokenizer)} cuts into"
            " several tokens: text to the model, like any other"
        )
    bos = tokenizer.bos_token
    if bos and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] and not scaffold.startswith(bos):
        lines.append(f"{name}: it does not begin with {bos!r}, as other text of this model does ({{{{ bos_token }}}})")
    return lines
