"""Answer questions by a server with OpenAI's chat interface: vLLM, SGLang, llama.cpp's, Ollama, ``oddsmith serve``.

The server draws. Most honour the ``seed`` of a request; with others an answer that is asked for again is another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import ServerError
from ..openai_client import ChatServer, Refusal
from ..records import Answer, Question
from .drawing import Drawing, Known, Unanswered, wanted

REFUSED = "server refuses the prompt"
REFUSALS_AT_MOST = 8  # of the first requests, when nothing was answered: then it is no matter of the prompt


class ServedAnswers:
    """Answers of a model on a server; see ``Answerer``.

    Args:
        name: The model's name in requests.
        server: The server.
        drawing: How answers are drawn.
    """

    def __init__(self, name: str, server: ChatServer, drawing: Drawing):
        self.name, self._server, self._drawing = name, server, drawing

    def answers(self, questions: Sequence[Question], known: Known) -> Iterator[Answer | Unanswered]:
        drawing = self._drawing
        asked = list(wanted(questions, drawing.samples, known))
        requests = (
            {
                "model": self.name,
                "messages": question.messages,
                "temperature": drawing.temperature,
                "top_p": drawing.top_p,
                "max_tokens": drawing.max_new_tokens,
                "seed": drawing.seed_of(question, sample),
            }
            for question, sample in asked
        )
        refused: list[Unanswered] = []  # held back until it is known that the server answers at all
        is_answering = False
        for number, reply in self._server.ask_all(requests):
            question, sample = asked[number]
            if isinstance(reply, Refusal):
                one = Unanswered(question.key, self.name, sample, REFUSED)
                refused.append(one)
                if not is_answering and len(refused) >= min(REFUSALS_AT_MOST, len(asked)):
                    raise ServerError(f"{self._server.name}: answers none of the first prompts: {reply.reason}")
            else:
                is_answering = True
                yield Answer(question.key, self.name, sample, reply.text.strip(), reply.tokens, reply.is_finished)
            if is_answering:
                yield from refused
                refused.clear()
