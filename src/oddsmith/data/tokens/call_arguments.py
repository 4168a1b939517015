"""Give a chat template the arguments of tool calls in the form that it expects: an object, or JSON text.

Pairs hold an object, as transformers recommends. Some templates (DeepSeek's) take the text of OpenAI's interface: they
join it to other text and refuse an object, or would write it as Python does:

    {{ call.arguments | tojson }}         {"city": "Rome"}     text would be encoded twice: "{\\"city\\": ...
    {{ call.arguments }}                  {'city': 'Rome'}     of an object; text is right
    {{ 'json: ' + call.arguments }}       TypeError            of an object; text is right

Which of them a template does is found by rendering a call both ways, once for each template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..formats import Message
from ..templates.limits import LimitReached

PROBE = {"oddsmith": "probe call"}
PROBE_TEXT = json.dumps(PROBE)
PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "A probe.", "parameters": {"type": "object", "properties": {}}},
}


class CallArguments:
    """Write the arguments of calls as the chat template of a tokenizer expects them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._takes_text_by_template: dict[str, bool] = {}

    def as_expected(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with the arguments of their calls as objects, or as text where the template takes text."""
        if not any(message.get("tool_calls") for message in messages) or not self._takes_text():
            return list(messages)
        return [
            {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in messages
        ]

    def _takes_text(self) -> bool:
        template = str(self.tokenizer.chat_template)
        if template not in self._takes_text_by_template:
            as_object, as_text = self._rendered(PROBE), self._rendered(PROBE_TEXT)
            self._takes_text_by_template[template] = PROBE_TEXT in as_text and PROBE_TEXT not in as_object
        return self._takes_text_by_template[template]

    def _rendered(self, arguments: Any) -> str:
        """Return a conversation with a call; empty where the template refuses it."""
        call = {"id": "probe0000", "type": "function", "function": {"name": "probe", "arguments": arguments}}
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        for tools in ([PROBE_TOOL], None):
            try:
                return str(self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False))
            except (TemplateError, TypeError, ValueError, LimitReached):
                continue
        return ""


def _with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
