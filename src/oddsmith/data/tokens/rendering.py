"""Render a preference pair as text with the chat template, and find the token that ends an assistant's turn.

A conversation is rendered twice a side; prompt and response are never rendered apart and joined:

    prompt   template(prompt, add_generation_prompt=True)   "<user>Hi<end><assistant>"
    text     template(prompt + response)                    "<user>Hi<end><assistant>Hello<end>\\n"

What both share is the prompt; the rest is the response, with whatever the template adds to it (an empty think block,
text after the end of turn). What it leaves out of the row is found by left_out.py; which turns of a response are the
assistant's own, by turns.py.

Continuations: where the prompt ends with an assistant turn and the response begins with one, the response continues
that turn. Both contents are joined without a separator (``"It is" + " blue."``), the prompt is rendered with
``continue_final_message=True`` and the text with the joined turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ...errors import ModelError, RowError
from ..formats import Message, PreferencePair
from ..formats.values import common_prefix_length
from ..templates.environment import guard_chat_templates
from ..templates.limits import LimitReached
from .call_arguments import CallArguments
from .content_parts import as_template_reads
from .left_out import LeftOut, left_out, may_lack_something
from .marks import Marked, without_marks
from .template_variables import require_free_variables
from .tokenized import Form
from .turns import Gap, TurnFinder

# A content of the conversations that show how a template writes turns; no template has reason to change it.
PROBE = "oddsmith-probe"
PROBES: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": PROBE}),
    (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": PROBE},
    ),
)


class Rendering(NamedTuple):
    """One side of a pair as text: ``prompt`` alone, ready for the response, and ``text``, prompt and response."""

    prompt: str
    text: str
    gaps: tuple[Gap, ...] = ()  # characters of the response that are not the assistant's own

    def beginnings(self) -> list[str]:
        """Return the beginnings of the text that have to be tokenized: the prompt, up to each gap and after it, all."""
        return [self.prompt, self.text, *(self.text[:place] for gap in self.gaps for place in gap)]


class RenderedPair(NamedTuple):
    """Both sides of a pair as text, and what the chat template leaves out of them."""

    chosen: Rendering
    rejected: Rendering
    is_conversational: bool
    form: Form | None = None
    left_out: tuple[LeftOut, LeftOut] = (LeftOut(), LeftOut())  # of chosen and rejected

    @property
    def texts(self) -> tuple[str, str, str]:
        """Return the prompt, which is what both sides share with it, and both responses."""
        shared = min(common_prefix_length(side.prompt, side.text) for side in (self.chosen, self.rejected))
        if self.chosen.prompt != self.rejected.prompt:
            shared = min(shared, common_prefix_length(self.chosen.text, self.rejected.text))
        return self.chosen.text[:shared], self.chosen.text[shared:], self.rejected.text[shared:]


class Renderer:
    """Render preference pairs with a tokenizer's chat template; prompt and response of plain text are joined.

    The tokenizer may get another template later.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        guard_chat_templates()
        self.tokenizer = tokenizer
        self._arguments = CallArguments(tokenizer)
        self._end_of_turn_by_template: dict[tuple[str, str | None], str | None] = {}
        self._handover_by_template: dict[str, str] = {}

    def render(self, pair: PreferencePair) -> RenderedPair:
        """Return prompt and whole text of each side of a pair.

        A conversation that the template refuses, or text that is not valid Unicode, is a ``RowError``. A tokenizer
        without a chat template, or with one that exceeds the limits of templates/, is a ``ModelError``.
        """
        if isinstance(pair.prompt, str):
            prompt = pair.prompt
            chosen, rejected = (Rendering(prompt, prompt + cast(str, side)) for side in (pair.chosen, pair.rejected))
            rendered = RenderedPair(chosen, rejected, False, self.form_of_text(prompt, cast(str, pair.chosen)))
        else:
            rendered = self._render_conversation(pair, pair.prompt)
        for name in ("chosen", "rejected"):
            _require_unicode(getattr(rendered, name), name)
        return rendered

    @property
    def end_of_turn(self) -> str | None:
        """Return the token with which the template ends an assistant's turn; None where it only writes plain text.

        It is the first added token after the answer of a short conversation, rendered once for each template. Without
        a template, or with one that cannot render that conversation, a ``ModelError`` is raised.
        """
        self._require_template()
        template = str(self.tokenizer.chat_template), self.tokenizer.eos_token
        if template not in self._end_of_turn_by_template:
            self._end_of_turn_by_template[template] = self._probe_end_of_turn()
        return self._end_of_turn_by_template[template]

    def probes(self) -> Iterator[str]:
        """Yield renderings of short conversations, each also open for its answer; those that are refused are left out.

        Without a template a ``ModelError`` is raised.
        """
        self._require_template()
        for probe in PROBES:
            for rendered in (self._tried(probe), self._tried(probe[:-1], add_generation_prompt=True)):
                if rendered is not None:
                    yield rendered

    def form_of_text(self, prompt: str, answer: str) -> Form | None:
        """Return whether a text was rendered before, or its answer alone; None where there is no chat template."""
        if not self.tokenizer.chat_template:
            return None
        handover = self._handover(str(self.tokenizer.chat_template))
        if not handover or handover not in prompt + answer:
            return Form.TEXT
        if handover in prompt or handover not in answer:  # at the end of the prompt, or where both meet
            return Form.RENDERED_TEXT
        return Form.RENDERED_ANSWERS

    def _handover(self, template: str) -> str:
        """Return what the template writes between a question and its answer, without blanks around it.

        It is found by rendering a question, once for each template, and "" where the template cannot render it.
        """
        if template not in self._handover_by_template:
            try:
                text = self._apply([{"role": "user", "content": PROBE}], add_generation_prompt=True)
            except (RowError, ModelError):
                text = ""
            self._handover_by_template[template] = text.rpartition(PROBE)[2].strip()
        return self._handover_by_template[template]

    def _render_conversation(self, pair: PreferencePair, prompt: list[Message]) -> RenderedPair:
        self._require_template()
        require_free_variables(pair.template_kwargs, self.tokenizer)
        options = {"tools": pair.tools or None, **pair.template_kwargs}
        openings: dict[str, str] = {}  # the prompt's text by the role of the next turn, usually the same for both sides
        renderings, lost = [], []
        for side in ("chosen", "rejected"):
            response = cast(list[Message], getattr(pair, side))
            role = response[0]["role"]
            if prompt and prompt[-1]["role"] == role == "assistant":  # the response continues that turn
                whole = [*prompt[:-1], _joined(prompt[-1], response[0]), *response[1:]]
                opening = {"continue_final_message": True}
            else:
                whole = [*prompt, *response]
                opening = {"add_generation_prompt": role == "assistant"}
            if role not in openings:
                openings[role] = self._apply(prompt, **opening, **options) if prompt else ""
            rendering = Rendering(openings[role], self._apply(whole, **options))
            _require_same_prompt(prompt, rendering)
            start = len(whole) - len(response)
            lost.append(self._left_out(whole, options, rendering.text, side, start))
            if len(response) > 1:
                rendering = self._with_gaps(rendering, whole, options, start)
            renderings.append(rendering)
        return RenderedPair(renderings[0], renderings[1], True, Form.CONVERSATION, (lost[0], lost[1]))

    def _left_out(
        self, messages: list[Message], options: Mapping[str, Any], text: str, side: str, response_start: int
    ) -> LeftOut:
        """Return what the rendering of a side lacks."""
        tools = options["tools"] if side == "chosen" else None  # both sides have the same
        if not may_lack_something(messages, tools, text):
            return LeftOut()
        marked = Marked(messages, tools)
        rendered = self._tried(marked.messages, **{**options, "tools": marked.tools or options["tools"]})
        return left_out(marked, rendered, text, side=side, response_start=response_start)

    def _with_gaps(
        self, rendering: Rendering, messages: list[Message], options: Mapping[str, Any], response_start: int
    ) -> Rendering:
        """Add to the rendering of a response of several messages what of it is not the assistant's own.

        What stands before the first turn of the assistant becomes part of the prompt.
        """
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        for only_contents in (False, True):  # a template may decide by the name of a tool, for example
            marked = Marked(messages, only_contents=only_contents)
            rendered = self._tried(marked.messages, **options)
            if rendered is None or without_marks(rendered) != rendering.text:
                continue
            finder = TurnFinder(
                marked, rendered, partial(self._tried, **options), end_of_turn=self.end_of_turn, other_ends=tokens
            )
            gaps = finder.gaps(response_start)
            if gaps is not None:
                if gaps and not gaps[0][0]:
                    rendering = rendering._replace(prompt=rendering.text[: gaps.pop(0)[1]])
                return rendering._replace(gaps=tuple(gaps))
        raise RowError(
            "turns not found in the rendering",
            "the chat template writes an answer of several turns so that the assistant's own cannot be told from the"
            " others; expected one turn, or another template",
        )

    def _tried(self, messages: Sequence[Message], **options: Any) -> str | None:
        """Render messages; None where the template refuses them."""
        try:
            return self._apply(messages, **options)
        except RowError:
            return None

    def _apply(self, messages: Sequence[Message], **options: Any) -> str:
        """Render messages; a refusal of the template becomes a ``RowError`` with the template's message."""
        try:
            messages = as_template_reads(self.tokenizer, self._arguments.as_expected(messages))
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except LimitReached as error:  # the template is at fault, not the row: do not try the next one
            raise ModelError(
                f"chat template of {tokenizer_name(self.tokenizer)}: {error}; such a template is damaged or hostile,"
                " set another (tokenizer.chat_template)"
            ) from error
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join([message["role"] for message in messages[:6]] + ["..."] * (len(messages) > 6))
            raise RowError(
                "refused by the chat template",
                f'the template says "{error}" to a conversation of {roles}; expected one that it can render',
            ) from error

    def _probe_end_of_turn(self) -> str | None:
        refusal = ""
        for probe in PROBES:
            try:
                text = self._apply(probe)
            except RowError as error:
                refusal = refusal or error.detail
                continue
            _, answer, after = text.rpartition(PROBE)
            if answer:
                return first_token_in(after, self.tokenizer)
        raise ModelError(
            f"chat template of {tokenizer_name(self.tokenizer)}: it renders no plain question and answer"
            f" ({refusal or 'the answer is missing from its text'}); set a template meant for chats"
        )

    def _require_template(self) -> None:
        try:
            self.tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError(
                f"tokenizer {tokenizer_name(self.tokenizer)} has no chat template, but the rows are conversations;"
                " use an instruction-tuned model, set a template (chat_template: chatml, a .jinja file or a chat model;"
                " in Python also tokenizer.chat_template), or give prompt and answers as plain text"
            ) from error


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name or folder that a tokenizer was loaded from, else its class."""
    return repr(tokenizer.name_or_path) if tokenizer.name_or_path else type(tokenizer).__name__


def first_token_in(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the added token that begins first in ``text``, the longest of several at one place; skip blank ones."""
    found = [
        (text.find(token), -len(token), token)
        for token in {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        if token.strip() and token in text
    ]
    return min(found)[2] if found else None


def _joined(opening: Message, continuation: Message) -> dict[str, Any]:
    """Join an assistant turn: ``opening`` (end of the prompt) and ``continuation`` (start of the response)."""
    if opening.get("tool_calls"):
        raise RowError(
            "answer after a call",
            "the prompt ends with an assistant turn that calls a tool, and the response begins with another assistant"
            " turn; expected the tool's turn between them",
        )
    return {**opening, **continuation, "content": opening["content"] + continuation["content"]}


def _require_same_prompt(prompt: Sequence[Message], rendering: Rendering) -> None:
    """Refuse a prompt that is rendered differently once a response follows: parts of it would become targets."""
    if not prompt or rendering.text.startswith(rendering.prompt):
        return
    question = prompt[-1]["content"].strip()
    shared = rendering.text[: common_prefix_length(rendering.prompt, rendering.text)]
    if question in rendering.prompt and question not in shared:
        raise RowError(
            "prompt rendered in two ways",
            "the chat template writes the prompt differently once the response follows"
            f" (they part after {shared[-40:]!r}); expected the same text",
        )


def _require_unicode(rendering: Rendering, side: str) -> None:
    for text in (rendering.prompt, rendering.text):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                "invalid Unicode",
                f"the text of {side} holds {text[error.start]!r} (half of a surrogate pair) after"
                f" {text[max(0, error.start - 20) : error.start]!r}; expected valid Unicode",
            ) from error
