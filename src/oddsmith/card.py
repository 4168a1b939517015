"""The model card ``README.md`` that a trained model carries: what it is, from what, and how to cite the method."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import transformers
from huggingface_hub import ModelCard, ModelCardData

from . import __version__
from .config import ORPOConfig

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SETTINGS = ("beta", "learning_rate", "max_length", "nll_on", "num_train_epochs", "max_steps", "seed")

CITATION = """\
@article{hong2024orpo,
    title        = {{ORPO: Monolithic Preference Optimization without Reference Model}},
    author       = {Jiwoo Hong and Noah Lee and James Thorne},
    year         = 2024,
    eprint       = {arXiv:2403.07691}
}"""

_TEMPLATE = """\
# {name}

{opening} aligned with [ORPO](https://arxiv.org/abs/2403.07691) (odds ratio preference optimization) by
[Oddsmith](https://pypi.org/project/oddsmith/) {version}.

## Use it

```python
from transformers import pipeline

chat = pipeline("text-generation", model="{name}")
print(chat([{{"role": "user", "content": "What is a good first step?"}}], max_new_tokens=128)[0]["generated_text"])
```

## How it was trained

{settings}

Made with Oddsmith {version}, transformers {transformers_version}.

## Citation

```bibtex
{citation}
```
"""


def model_card(
    name: str,
    *,
    base_model: str | None,
    dataset_name: str | None,
    tags: Iterable[str],
    args: ORPOConfig,
) -> ModelCard:
    """A card with valid hub metadata.

    Args:
        name: What the model is called.
        base_model: Name of the model it came from; said only if it is a hub id, for a path is nobody's business.
        dataset_name: Hub id of the pairs.
        tags: Hub tags.
        args: Settings; those a reader needs to repeat the run are listed.

    Returns:
        The card; ``.save(path)`` writes it.
    """
    if base_model and (Path(base_model).exists() or not _HUB_ID.fullmatch(base_model)):
        base_model = None
    data = ModelCardData(
        base_model=base_model,
        datasets=[dataset_name] if dataset_name else None,
        library_name="transformers",
        model_name=name,
        tags=sorted(tags),
    )
    opening = "This model was"
    if base_model:
        opening = f"This model is a fine-tuned version of [{base_model}](https://huggingface.co/{base_model}). It was"
    body = _TEMPLATE.format(
        name=name,
        opening=opening,
        version=__version__,
        settings="\n".join(f"- `{name}`: {getattr(args, name)}" for name in _SETTINGS),
        transformers_version=transformers.__version__,
        citation=CITATION,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
