"""Turn preference pairs into the tokens that the model is trained on.

    ids             <s> [user] Hi [assistant] Hel lo </turn> \\n
    prompt_tokens   -------------------------                      common token prefix of the prompt and the whole
    targets                                   --------------       from there to ``end``, one past the end-of-turn token
    no target                                                --    rendered, so it stays; never learned

    ids             ... [assistant] Let me look. </turn> \\n [tool] Wet. </turn> \\n [assistant] It rains. </turn>
    gaps                                                 ---------------------------------------              no targets

- Of a response of several turns only the assistant's own are targets (turns.py): results of tools, turns of the user
  and the assistant's later headers are gaps.
- A conversation's ids are the ids of its whole rendering (rendering.py), also where pieces.py cuts it: no BOS comes
  before the template's. Targets end at the last end-of-turn token of the response; a response without one gets EOS as
  its last target.
- Plain strings get TRL's tokens, unless ``chat_template_on_text`` makes conversations of them; so do HH transcripts
  where there is no chat template, or ``chat_template_on_text`` is False. These tokens are: BOS unless the text begins
  with it, prompt + response tokenized as one text, EOS unless the response ends with it. If blank text follows an EOS,
  none is added and the targets end at that EOS.
- Targets are defined by position, never by token id, so a pad token that is also EOS hides no target.
- Each side has its own prompt length: in ``"...:\\n" + "\\nYes"`` both newlines may be one token, the response's.
- Encoder-decoder models read the prompt in the encoder (``prompt_ids``, with the tokenizer's special tokens) and learn
  the response in the decoder (``chosen_ids``, ``rejected_ids``: all of it targets, special tokens included). Text after
  a conversation's end of turn is left out. A response longer than ``max_completion_length`` is cut and gets no EOS
  (TRL ends it with EOS, which teaches to stop in mid-sentence).

Source: prefix, BOS and EOS for strings as in TRL 1.16, ``trl/experimental/orpo``, ``ORPOTrainer.tokenize_row``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import LARGE_INTEGER

from ...config import ORPOConfig
from ...errors import ModelError, RowError
from ..formats import Message, PreferencePair
from ..formats.messages import SYSTEM_ROLES, is_blank
from ..formats.values import common_prefix_length
from .pieces import ids_of_pieces, ids_of_texts
from .rendering import RenderedPair, Renderer, Rendering, tokenizer_name
from .tokenized import (
    TEXT_COLUMNS,
    Dropped,
    DropReason,
    Form,
    Lengths,
    TokenizedPair,
    Tokens,
    cut_pair,
    same_targets,
    tokenized_pair,
)
from .words import KnownWords

DEFAULT_COMPLETION_LENGTH = 128  # tokens, for encoder-decoder models, as in TRL


class PairTokenizer:
    """Turn preference pairs into tokens, drop pairs that cannot be learned from, cut pairs that are too long.

    ``tokenized.cut_pair`` cuts the prompt from the left, where ``max_prompt_length`` allows it, then the response from
    the right. Text after the end of turn that does not fit is lost without counting as a cut.

    Args:
        tokenizer: The tokenizer, with its chat template where there are conversations.
        max_length: Most tokens of prompt + response; None: no limit. Encoder-decoder: most tokens of the prompt.
        max_prompt_length: Length to which the prompt of a pair that is too long is cut; None never cuts a prompt.
        is_encoder_decoder: Whether the model reads the prompt in an encoder.
        max_completion_length: Most tokens of a response of an encoder-decoder model (None: 128); else without effect.
        chat_template_on_text: Whether plain text is rendered by the chat template, unless it was before. It is not by
            default (None), and ``prepare`` refuses datasets that hold both text and conversations.
        system_prompt: System message for conversations that have none; ``prepare`` refuses text that is not rendered.
        min_score_margin: Pairs whose scores differ by less are dropped; None: none are.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        max_prompt_length: int | None = None,
        is_encoder_decoder: bool = False,
        max_completion_length: int | None = None,
        chat_template_on_text: bool | None = None,
        system_prompt: str | None = None,
        min_score_margin: float | None = None,
    ):
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer)
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.is_encoder_decoder = is_encoder_decoder
        self.max_completion_length = max_completion_length or DEFAULT_COMPLETION_LENGTH
        self.chat_template_on_text = chat_template_on_text
        self.system_prompt = system_prompt
        self.min_score_margin = min_score_margin

    @property
    def most_tokens(self) -> int | None:
        """Return how many tokens the model can read, as far as its tokenizer says."""
        return self.tokenizer.model_max_length if self.tokenizer.model_max_length < LARGE_INTEGER else None

    @classmethod
    def from_settings(
        cls, tokenizer: PreTrainedTokenizerBase, args: ORPOConfig, *, is_encoder_decoder: bool
    ) -> PairTokenizer:
        """Make the tokenizer of pairs from the settings of a run."""
        return cls(
            tokenizer,
            max_length=args.max_length,
            max_prompt_length=args.max_prompt_length,
            is_encoder_decoder=is_encoder_decoder,
            max_completion_length=args.max_completion_length,
            chat_template_on_text=args.chat_template_on_text,
            system_prompt=args.system_prompt,
            min_score_margin=args.min_score_margin,
        )

    def tokenize(self, pairs: Sequence[PreferencePair]) -> list[TokenizedPair | Dropped]:
        """Return the tokens of each pair of a batch, or why it is dropped.

        A pair that the template refuses is a ``RowError``, a missing chat template or EOS token a ``ModelError``.
        """
        return self.encode([self.render(pair) for pair in pairs])

    def render(self, pair: PreferencePair) -> RenderedPair | Dropped:
        """Return the text of a pair, or why it is dropped: the half of ``tokenize`` that can raise a ``RowError``."""
        margin, minimum = pair.score_margin, self.min_score_margin
        if margin is not None and minimum is not None and margin < minimum:
            return Dropped(DropReason.CLOSE_SCORES)
        if is_blank(pair.chosen):
            return Dropped(DropReason.EMPTY_CHOSEN)
        if is_blank(pair.rejected):
            return Dropped(DropReason.EMPTY_REJECTED)
        if pair.chosen == pair.rejected:
            return Dropped(DropReason.IDENTICAL)
        is_text = isinstance(pair.prompt, str) or pair.transcript is not None
        if self.chat_template_on_text and is_text and not self.tokenizer.chat_template:
            raise ModelError(
                f"chat_template_on_text is on, but tokenizer {tokenizer_name(self.tokenizer)} has no chat template;"
                " leave it out, or set tokenizer.chat_template"
            )
        if pair.transcript is not None:
            return self._render_transcript(pair, *pair.transcript)
        if not (self.chat_template_on_text and isinstance(pair.prompt, str)):
            return self._render(pair)
        if self.renderer.form_of_text(pair.prompt, str(pair.chosen)) is not Form.TEXT:  # rendered before
            return self._render(pair)
        rendered = self._render(_as_conversation(pair))
        return rendered if isinstance(rendered, Dropped) else rendered._replace(form=Form.TEMPLATED_TEXT)

    def _render_transcript(
        self, pair: PreferencePair, prompt: str, chosen: str, rejected: str
    ) -> RenderedPair | Dropped:
        """Render an HH transcript anew, where there is a chat template; else, or where text stays, keep its text."""
        if self.tokenizer.chat_template and self.chat_template_on_text is not False:
            rendered, form = self._render(pair), Form.TRANSCRIPT
        else:
            form = Form.TEXT if self.tokenizer.chat_template else Form.TRANSCRIPT_TEXT
            rendered = self._render(PreferencePair(prompt, chosen, rejected))
        return rendered if isinstance(rendered, Dropped) else rendered._replace(form=form)

    def _render(self, pair: PreferencePair) -> RenderedPair | Dropped:
        if self.is_encoder_decoder and pair.is_conversational and max(len(pair.chosen), len(pair.rejected)) > 1:
            raise RowError(
                "several turns in an answer",
                "an answer has several messages, and the decoder learns all that it is given; expected one message",
            )
        with_system = self._with_system_prompt(pair)
        try:
            rendered = self.renderer.render(with_system)
        except RowError as error:
            if with_system is pair:
                raise
            raise RowError(error.reason, f"{error.detail} (its system message is that of system_prompt)") from error
        lost_sides = zip(rendered.left_out, (DropReason.LEFT_OUT_CHOSEN, DropReason.LEFT_OUT_REJECTED), strict=True)
        reasons = [reason for lost, reason in lost_sides if lost.is_turn_empty]
        if rendered.chosen.text == rendered.rejected.text:
            reasons.append(DropReason.IDENTICAL_RENDERED)
        if not reasons:
            return rendered
        _ = self.renderer.end_of_turn  # an error for a template that renders no answer at all
        return Dropped(reasons[0])

    def _with_system_prompt(self, pair: PreferencePair) -> PreferencePair:
        """Return a conversation with the system message of the settings, unless it has one of its own."""
        if self.system_prompt is None or isinstance(pair.prompt, str):
            return pair
        if any(message["role"] in SYSTEM_ROLES for message in pair.prompt):
            return pair
        return replace(pair, prompt=[{"role": "system", "content": self.system_prompt}, *pair.prompt])

    def encode(
        self, rendered: Sequence[RenderedPair | Dropped], known_words: KnownWords | None = None
    ) -> list[TokenizedPair | Dropped]:
        """Tokenize rendered pairs in one call of the tokenizer; pairs that are dropped already pass through.

        ``known_words`` are kept from call to call, as long as the tokenizer stays as it is.
        """
        pairs = [pair for pair in rendered if not isinstance(pair, Dropped)]
        if self.is_encoder_decoder:
            encoded = iter(self._encode_encoder_decoder(pairs))
        else:
            encoded = iter(self._encode_decoder_only(pairs, known_words))
        return [pair if isinstance(pair, Dropped) else _with_account(next(encoded), pair) for pair in rendered]

    def _encode_decoder_only(
        self, pairs: Sequence[RenderedPair], known_words: KnownWords | None
    ) -> list[TokenizedPair | Dropped]:
        texts = (text for pair in pairs for side in (pair.chosen, pair.rejected) for text in side.beginnings())
        ids_of = ids_of_pieces(self.tokenizer, texts, known_words)
        return [self._fit(*(self._side(pair, side, ids_of) for side in (pair.chosen, pair.rejected))) for pair in pairs]

    def _side(self, pair: RenderedPair, side: Rendering, ids_of: dict[str, list[int]]) -> Tokens:
        ids = list(ids_of[side.text])
        prompt_tokens = common_prefix_length(ids_of[side.prompt], ids)
        if not pair.is_conversational:
            bos = self.tokenizer.bos_token_id
            if bos is not None and ids[:1] != [bos]:
                ids.insert(0, bos)
                prompt_tokens += 1
            end = self._end_in_token(ids, prompt_tokens, {self._eos()})
        else:
            end = self._end_of_turn(ids, prompt_tokens)
        if end is None:
            ids.append(self._eos())
            end = len(ids)
        gaps: list[int] = []
        for gap in side.gaps:
            first, after = (common_prefix_length(ids_of[side.text[:place]], ids) for place in gap)
            gaps += [first, after] if first < after else []
        return Tokens(ids, prompt_tokens, end, tuple(gaps))

    def _end_of_turn(self, ids: Sequence[int], prompt_tokens: int) -> int | None:
        """Return one past the last end-of-turn token of the response, else one past an added token at its end."""
        token = self.renderer.end_of_turn
        if token is None:
            return None
        end_of_turn = self.tokenizer.convert_tokens_to_ids(token)
        for position in range(len(ids) - 1, prompt_tokens - 1, -1):
            if ids[position] == end_of_turn:
                return position + 1
        # Some turns end in another token: a call of a tool under Llama 3.1 ends in <|eom_id|>.
        return self._end_in_token(ids, prompt_tokens, set(self.tokenizer.get_added_vocab().values()))

    def _end_in_token(self, ids: Sequence[int], prompt_tokens: int, tokens: Collection[int]) -> int | None:
        """Return one past the last token if it is one of ``tokens``, blank text after it aside; None otherwise."""
        for position in range(len(ids) - 1, prompt_tokens - 1, -1):
            if ids[position] in tokens:
                return position + 1
            if self.tokenizer.decode([ids[position]]).strip():
                return None
        return None

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"tokenizer {tokenizer_name(self.tokenizer)} has no EOS token, so an answer would have no end to learn;"
                " set tokenizer.eos_token"
            )
        return self.tokenizer.eos_token_id

    def _fit(self, chosen: Tokens, rejected: Tokens) -> TokenizedPair | Dropped:
        """Return the pair within ``max_length``, or the reason to drop it."""
        if min(chosen.target_tokens, rejected.target_tokens) < 1:
            return Dropped(DropReason.NO_RESPONSE)
        if same_targets(chosen, rejected):
            return Dropped(DropReason.IDENTICAL)
        cut = cut_pair(
            chosen,
            rejected,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            bos_token_id=self.tokenizer.bos_token_id,
        )
        if min(side.target_tokens for side in cut) < 1:
            return Dropped(DropReason.PROMPT_TOO_LONG, Lengths.of(chosen, rejected))
        if same_targets(*cut):
            return Dropped(DropReason.IDENTICAL_AFTER_CUT, Lengths.of(chosen, rejected))
        return tokenized_pair((chosen, rejected), cut, prompt_cut=cut[0].prompt_tokens < chosen.prompt_tokens)

    def fit_again(self, row: Mapping[str, Any]) -> TokenizedPair | Dropped:
        """Return the pair of a row of tokens (``TokenizedPair.to_row``) that was not cut, within ``max_length``."""
        parts = ("input_ids", "prompt_tokens", "end", "gaps")
        sides = ([row[f"{side}_{part}"] for part in parts] for side in ("chosen", "rejected"))
        chosen, rejected = (Tokens(ids, prompt_tokens, end, tuple(gaps)) for ids, prompt_tokens, end, gaps in sides)
        if self.is_encoder_decoder:
            outcome = self._fit_encoder_decoder(list(row["prompt_input_ids"]), chosen.ids, rejected.ids)
        else:
            outcome = self._fit(chosen, rejected)
        return outcome if isinstance(outcome, Dropped) else replace(outcome, texts=tuple(row[n] for n in TEXT_COLUMNS))

    def _encode_encoder_decoder(self, pairs: Sequence[RenderedPair]) -> list[TokenizedPair | Dropped]:
        texts = [self._encoder_decoder_texts(pair) for pair in pairs]
        ids_of = ids_of_texts(self.tokenizer, (text for triple in texts for text in triple), add_special_tokens=True)
        return [self._fit_encoder_decoder(*(list(ids_of[text]) for text in triple)) for triple in texts]

    def _encoder_decoder_texts(self, pair: RenderedPair) -> tuple[str, str, str]:
        """Return prompt, chosen and rejected response; the responses end with the end of turn, if there is one."""
        prompt, *responses = pair.texts
        token = self.renderer.end_of_turn if pair.is_conversational else None
        if token is not None:
            responses = [r[: r.rindex(token) + len(token)] if token in r else r for r in responses]
        return prompt, responses[0], responses[1]

    def _fit_encoder_decoder(self, prompt: list[int], *labels: list[int]) -> TokenizedPair | Dropped:
        eos = self.tokenizer.eos_token_id
        for ids in labels:
            if ids[-2:] == [eos, eos]:  # the text ended with EOS, and the tokenizer added another
                ids.pop()
        if not all(labels):
            return Dropped(DropReason.NO_RESPONSE)
        chosen, rejected = (Tokens(ids, 0, len(ids)) for ids in labels)
        if chosen == rejected:
            return Dropped(DropReason.IDENTICAL)
        cut = chosen.without_right(self.max_completion_length), rejected.without_right(self.max_completion_length)
        if same_targets(*cut):
            return Dropped(DropReason.IDENTICAL_AFTER_CUT)
        whole_prompt = prompt
        if self.max_length is not None and len(prompt) > self.max_length:
            if self.max_prompt_length is None:
                return Dropped(DropReason.PROMPT_TOO_LONG, Lengths(len(prompt) - 1, 0, len(prompt)))
            kept = int(prompt[0] == self.tokenizer.bos_token_id)
            prompt = prompt[:kept] + prompt[len(prompt) - self.max_prompt_length + kept :]
        prompt_cut = len(prompt) < len(whole_prompt)
        return tokenized_pair((chosen, rejected), cut, prompt_cut=prompt_cut, prompt_ids=prompt)


def _as_conversation(pair: PreferencePair) -> PreferencePair:
    """Return a pair of texts as a question and its answers, without the blanks with which texts are joined."""

    def message(role: str, content: Any) -> list[Message]:
        return [{"role": role, "content": content.strip()}]

    chosen, rejected = message("assistant", pair.chosen), message("assistant", pair.rejected)
    return replace(pair, prompt=message("user", pair.prompt), chosen=chosen, rejected=rejected)


def _with_account(outcome: TokenizedPair | Dropped, pair: RenderedPair) -> TokenizedPair | Dropped:
    """Add to the tokens of a pair its texts, what it is made of, and what the chat template leaves out."""
    if isinstance(outcome, Dropped):
        return outcome
    parts = pair.left_out[0].parts | pair.left_out[1].parts
    return replace(outcome, texts=pair.texts, form=pair.form, left_out=tuple(sorted(parts)))
