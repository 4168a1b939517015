"""Measure the distance between two forms of one model, on a few texts that come with Oddsmith.

    KL(reference || other) = sum over the vocabulary of p (log p - log q), in float64; mean and maximum over tokens

T tokens of a text, V entries of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..model.computing import clear_computing
from ..model.logprobs.token_budget import free_bytes

# About 60 tokens each: a conversation, prose, advice, code, figures, other languages.
TEXTS = (
    "User: My tomatoes have yellow leaves at the bottom. What should I do?\nAssistant: Yellow lower leaves often mean"
    " too much water. Let the soil dry a little between waterings, and remove the leaves that touch the ground.",
    "The lighthouse keeper climbed the last of the stairs, set down his lamp, and looked out over the water. Far away,"
    " where the sea met the clouds, a single sail was turning slowly towards the harbour.",
    "To make bread you need flour, water, salt and yeast. Mix them, wait until the dough has doubled, shape it, let it"
    " rise once more, and bake it at 230 degrees for about forty minutes.",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n\nprint(mean([1.5, 2.5, 4.0]))  # 2.67\n",
    "In 1969 the first people walked on the Moon, 384,400 km from Earth. Light needs 1.28 seconds for that way; the"
    " crew of Apollo 11 needed three days, three hours and 49 minutes.",
    "Guten Morgen! Der Zug nach Leipzig fährt heute von Gleis 7 ab. ¿Dónde está la estación, por favor? Elle arrive à"
    " midi. 今天天气很好，我们去公园散步吧。",
)
# Share of the free memory that weights may take; logits and what a layer needs come on top of them.
USABLE_MEMORY = 0.9


@dataclass(frozen=True)
class Divergence:
    """The distance of one model from another, over all tokens of the texts."""

    tokens: int
    kl: float  # mean KL divergence per token, in nats
    kl_max: float  # of a single token
    same_top: float  # share of the tokens after which both models find the same token most likely
    perplexity: float  # of the texts under the reference: exp of their mean negative log-likelihood
    perplexity_other: float  # under the other model


def text_ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of the texts, with the special tokens that the tokenizer begins texts with."""
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def fits_in_memory(weights_bytes: int) -> bool:
    """Return whether so many bytes of weights fit into the free memory of the CPU, and a forward pass with them."""
    return weights_bytes < USABLE_MEMORY * free_bytes(torch.device("cpu"))


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the logits of a model in evaluation mode on each text: float32 ``[T, V]``, on the CPU.

    An encoder-decoder model reads the text in both of its halves.
    """
    logits = []
    name = str(model.config._name_or_path)
    for text in ids:
        row = torch.tensor([list(text)], device=model.device)
        inputs = {"input_ids": row, **({"decoder_input_ids": row} if model.config.is_encoder_decoder else {})}
        with clear_computing(name):
            logits.append(model(**inputs).logits[0].float().cpu())
    return logits


def divergence(
    reference: Sequence[torch.Tensor],
    other: Sequence[torch.Tensor] | Callable[[Sequence[int]], torch.Tensor],
    ids: Sequence[Sequence[int]],
) -> Divergence:
    """Compare the logits of two models on the same texts.

    Args:
        reference: Logits ``[T, V]`` of each text.
        other: The same of the other model, or a function that computes them from a text's ids. Where one model has
            more entries in its vocabulary, those that both have are compared: the rest is padding.
        ids: Token ids of the texts.

    Returns:
        The comparison. Figures are NaN where a logit is NaN or infinite.
    """
    kl_T, same_T, nll_T, nll_other_T = [], [], [], []
    for i, text in enumerate(ids):
        other_TV = other(text) if callable(other) else other[i]
        entries = min(reference[i].shape[-1], other_TV.shape[-1])
        logp_TV, logq_TV = (logits[:, :entries].double().log_softmax(-1) for logits in (reference[i], other_TV))
        # An impossible token (log p = -inf) adds nothing; rounding can take a KL of 0 below 0.
        gap_TV = (logp_TV - logq_TV).masked_fill(logp_TV == -math.inf, 0.0)
        kl_T.append((logp_TV.exp() * gap_TV).sum(-1).clamp_min(0))
        same_T.append((logp_TV.argmax(-1) == logq_TV.argmax(-1)).double())
        following = torch.tensor(text[1:])[:, None]
        nll_T.append(-logp_TV[:-1].gather(1, following))
        nll_other_T.append(-logq_TV[:-1].gather(1, following))
    kl, same = torch.cat(kl_T), torch.cat(same_T)
    return Divergence(
        tokens=len(kl),
        kl=kl.mean().item(),
        kl_max=kl.max().item(),
        same_top=same.mean().item(),
        perplexity=torch.cat(nll_T).mean().exp().item(),
        perplexity_other=torch.cat(nll_other_T).mean().exp().item(),
    )
