"""Write the Modelfile for Ollama: which GGUF file to load, the chat template, and the tokens that end an answer.

Ollama does not run the Jinja template inside the file. It compares it with a list of templates and, where none is close
enough, sends the bare question (github.com/ollama/ollama/issues/6371). So the template is derived here in Ollama's
template language, Go's, from how the Jinja template renders a few conversations; it is used if both render all of them
alike:

    opening  (system: before S after)  [ user_before U  user_after  (lead A answer_after) ] ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .vocabulary import end_of_turn

MARK = "# Written by Oddsmith"

Turns = Sequence[tuple[str, str]]  # role and content

# Placeholders for contents; letters only, so that no template trims or escapes them.
_SYSTEM, _ASK, _REPLY, _ASK_AGAIN = "ssSYSTEMss", "qqFIRSTqq", "aaREPLYaa", "qqSECONDqq"
_CONVERSATIONS: tuple[Turns, ...] = (
    (("user", _ASK),),
    (("user", "One"), ("assistant", "Two"), ("user", "Three")),
    (("user", "One"), ("assistant", "Two"), ("user", "Three"), ("assistant", "Four"), ("user", "Five")),
)
_WITH_SYSTEM: tuple[Turns, ...] = tuple((("system", "Be brief."), *turns) for turns in _CONVERSATIONS)


@dataclass(frozen=True)
class ChatPattern:
    """The text that a simple chat template writes around the contents."""

    opening: str  # at the start of a conversation without a system turn; without a begin token that is added anyway
    system: tuple[str, str] | None  # before and after a system turn; ``None`` where the template takes none
    user_before: str  # before a question
    user_after: str  # after a question, with the opening of the answer
    lead: str  # before the text of an earlier answer
    answer_after: str  # after an earlier answer

    def render(self, turns: Turns) -> str:
        """Render a conversation that ends with a question."""
        text = "" if turns[0][0] == "system" else self.opening
        for role, content in turns:
            if role == "system" and self.system:
                text += self.system[0] + content + self.system[1]
            elif role == "user":
                text += self.user_before + content + self.user_after
            else:
                text += self.lead + content + self.answer_after
        return text

    def go_template(self) -> str:
        """Return the pattern in Go's template language, for Ollama's list of messages."""
        opening, before, after, lead, end = (
            _literal(text) for text in (self.opening, self.user_before, self.user_after, self.lead, self.answer_after)
        )
        system = "{{ else }}"
        if self.system:
            system = f"{_literal(self.system[0])}{{{{ .Content }}}}{_literal(self.system[1])}{{{{ else }}}}"
        return (
            (f"{{{{ if not .System }}}}{opening}{{{{ end }}}}" if opening else "")
            + "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            + f'{{{{ if eq .Role "user" }}}}{before}{{{{ .Content }}}}{after}'
            + f'{{{{ else if eq .Role "system" }}}}{system}'
            + f"{lead}{{{{ .Content }}}}{{{{ if not $last }}}}{end}{{{{ end }}}}"
            + "{{ end }}{{ end }}"
        )


def write_modelfile(file: str, tokenizer: PreTrainedTokenizerBase, *, begins: bool, others: Sequence[str] = ()) -> str:
    """Return the text of a Modelfile for the GGUF file ``file`` in the same folder.

    ``begins``: whether llama.cpp puts the begin token in front of every text. ``others``: names of more GGUF files of
    the same model, which a comment lists.
    """
    lines = [f"{MARK}. In this folder: ollama create NAME -f Modelfile; then: ollama run NAME"]
    if others:
        lines.append(f"# Other files of this model: {', '.join(others)}; change FROM to take another.")
    lines.append(f"FROM ./{file}")
    stops: list[str | None] = []
    if tokenizer.chat_template is not None:
        pattern = chat_pattern(tokenizer, begins=begins)
        if pattern is None:
            lines.append("# The model's chat template cannot be translated for Ollama, which looks for a similar one.")
        else:
            lines.append(f'TEMPLATE """{pattern.go_template()}"""')
        stops.append(end_of_turn(tokenizer))
    stops.append(tokenizer.eos_token)
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops) if stop and '"' not in stop]
    return "\n".join(lines) + "\n"


def chat_pattern(tokenizer: PreTrainedTokenizerBase, *, begins: bool) -> ChatPattern | None:
    """Return a pattern that renders a few conversations exactly as a chat template does; ``None`` if there is none.

    ``begins``: whether llama.cpp puts the begin token in front of every text; the pattern leaves it out then.
    """

    def render(turns: Turns) -> str | None:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError):  # how templates refuse a conversation
            return None
        return text.removeprefix(tokenizer.bos_token) if begins and tokenizer.bos_token else text

    once = render(_CONVERSATIONS[0])
    twice = render((("user", _ASK), ("assistant", _REPLY), ("user", _ASK_AGAIN)))
    if once is None or twice is None:
        return None
    head, _, user_after = once.partition(_ASK)
    answer_before, _, rest = twice.partition(_ASK)[2].partition(_REPLY)
    between, _, _ = rest.partition(_ASK_AGAIN)
    if not answer_before.startswith(user_after):
        return None
    # ``between`` holds the end of one turn and the start of the next; the token that ends a turn belongs to the end.
    user_before = _common_ending(head, between.removeprefix(end_of_turn(tokenizer) or ""))
    with_system = render((("system", _SYSTEM), ("user", _ASK)))
    system = None
    if with_system is not None and _SYSTEM in with_system:
        before, _, after = with_system.partition(_ASK)[0].partition(_SYSTEM)
        user_before = _common_ending(user_before, after)
        system = (before, after.removesuffix(user_before))
    pattern = ChatPattern(
        opening=head.removesuffix(user_before),
        system=system,
        user_before=user_before,
        user_after=user_after,
        lead=answer_before.removeprefix(user_after),
        answer_after=between.removesuffix(user_before),
    )
    conversations = _CONVERSATIONS + (_WITH_SYSTEM if system else ())
    agrees = all(pattern.render(turns) == render(turns) for turns in conversations)
    return pattern if agrees and '"""' not in pattern.go_template() else None


def _common_ending(left: str, right: str) -> str:
    length = 0
    while length < min(len(left), len(right)) and left[-1 - length] == right[-1 - length]:
        length += 1
    return left[len(left) - length :]


def _literal(text: str) -> str:
    """Return the text with ``{{`` escaped for Go's templates."""
    return text.replace("{{", '{{ "{{" }}')
