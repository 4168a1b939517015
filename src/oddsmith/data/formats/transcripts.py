"""Split dialogues written as plain text: Anthropic's HH transcripts, and two texts that begin with the same prompt.

Where a row has no prompt column, the prompt is the beginning of both texts. Answers may begin alike too, so the shared
text is cut back to a turn boundary:

    chosen    "Q: Which is bigger?\\nA: The sun is."       shared "Q: Which is bigger?\\nA: The "
    rejected  "Q: Which is bigger?\\nA: The moon is."      prompt "Q: Which is bigger?\\nA:"

A boundary is the end of the last marker in the shared text that hands over to the answering side (``ANSWER_MARKER``);
without one, its last line break, because an answer never begins in the middle of a line. If the first lines of both
answers are the same, they become part of the prompt, because they express no preference. Where there is neither
marker nor line break, the prompt is the words that both texts begin with, and both go on with a word of their own:

    chosen    "The sky is blue."       shared "The sky is b"
    rejected  "The sky is black."      prompt "The sky is"      answers " blue.", " black."

Source: the last rule is that of TRL 1.16 (``extract_prompt``), which goes on to the last common character and may end
the prompt within a word.
"""

from __future__ import annotations

import re
import unicodedata

from .messages import Message
from .values import common_prefix_length

# "\n\nHuman: ...\n\nAssistant: ..."; the first one may stand at the very start.
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}

# A line break right after the marker belongs to it; a space is left to the answer, where tokenizers want it.
ANSWER_MARKER = re.compile(
    r"^[ \t]*(?:\#{1,6}[ \t]*)?(?:assistant|ai|answer|response)[ \t]*:(?:[ \t]*\n+)?"
    r"|<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<start_of_turn>model\n"
    r"|<\|assistant\|>\n?|\[/INST\]",
    re.IGNORECASE | re.MULTILINE,
)
# A turn of a dialogue that is written as text in another way.
ANY_TURN = re.compile(
    r"^[ \t]*(?:\#{1,6}[ \t]*)?(?:user|human|assistant|ai|system|gpt)[ \t]*:|<\|im_start\|>|<\|start_header_id\|>",
    re.IGNORECASE | re.MULTILINE,
)
# A lone "A:" also names the first of several options, so it counts only after a "Q:" and before no "B:".
LETTER_MARKER = re.compile(r"^(?:Q:|B:|A:(?:[ \t]*\n+)?)", re.MULTILINE)

# Scripts that put no space between words: ideographs, kana and their punctuation; Thai, Lao, Myanmar, Khmer.
UNSPACED = re.compile(
    r"[\u2e80-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)

# A shorter prompt that both answers begin with may be an echo ("Hi!" - "Hi! How are you?").
SHORTEST_REPEATED_PROMPT_CHARACTERS = 16


def is_hh_dialogue(text: str) -> bool:
    """Return whether the text is a transcript of Anthropic's HH data: a human's turn first, and an answer to it."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def is_hh_prompt(text: str) -> bool:
    """Return whether the text is an HH transcript that ends where the assistant's answer begins."""
    return is_hh_dialogue(text) and text.rstrip().endswith("\n\nAssistant:")


def parse_hh_dialogue(text: str) -> list[Message]:
    """Return the turns of an HH transcript as messages of user and assistant.

    Blanks around a turn are dropped. Two turns in a row with the same role (in about one transcript of 200) are joined
    as two paragraphs, because chat templates require alternating roles.

    Source: Bai et al., "Training a Helpful and Harmless Assistant", arXiv 2204.05862; the data of anthropics/hh-rlhf.
    """
    text = text.lstrip()
    starts = list(HH_TURN.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    messages: list[Message] = []
    for match, end in zip(starts, ends, strict=True):
        role, content = HH_ROLES[match[1]], text[match.end() : end].strip()
        if messages and messages[-1]["role"] == role:
            content = "\n\n".join(part for part in (messages.pop()["content"], content) if part)
        messages.append({"role": role, "content": content})
    return messages


def split_hh_dialogues(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two HH transcripts into prompt, chosen and rejected answer: at the last answer that begins in both."""
    shared = chosen[: common_prefix_length(chosen, rejected)]
    end = max((match.end() for match in HH_TURN.finditer(shared) if match[1] == "Assistant"), default=0)
    return chosen[:end], chosen[end:], rejected[end:]


def turn_boundary(shared: str) -> int | None:
    """Return where the prompt ends in the common beginning of two texts; None where there is no boundary."""
    return _last_marker(shared) or shared.rfind("\n") + 1 or None


def ends_with_marker(prompt: str) -> bool:
    """Return whether a prompt ends by handing over to the answering side, after text that may be a question.

    The other prompts end with a line break, or are no more than a marker: ``"Answer:"`` begins many an answer.
    """
    markers = list(ANSWER_MARKER.finditer(prompt))
    return _last_marker(prompt) == len(prompt) and not (markers and not prompt[: markers[0].start()].strip())


def _last_marker(text: str) -> int | None:
    """Return the end of the last marker that hands over to the answering side."""
    markers = [match.end() for match in ANSWER_MARKER.finditer(text)]
    return max([*markers, *_ends_of_questions(text)], default=None)


def _ends_of_questions(text: str) -> list[int]:
    """Return the ends of the markers "A:" that follow a "Q:", behind the last "B:"."""
    markers = list(LETTER_MARKER.finditer(text))
    last_option = max((match.start() for match in markers if match[0] == "B:"), default=-1)
    ends, is_asked = [], False
    for match in markers:
        if match[0] == "Q:":
            is_asked = True
        elif is_asked and match[0].startswith("A:") and match.start() > last_option:
            ends.append(match.end())
            is_asked = False
    return ends


def split_shared_prompt(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Split two texts into prompt, chosen and rejected answer; None where they share no turn boundary."""
    end = turn_boundary(chosen[: common_prefix_length(chosen, rejected)])
    return None if end is None else (chosen[:end], chosen[end:], rejected[end:])


def split_shared_words(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Split two texts after the words that both begin with; None where they share no word.

    The space stays with the answers, where tokenizers want it, and of two equal texts the last word is the answer. In
    a script without spaces every character counts as a word, with the marks that combine with it.
    """
    end = min(common_prefix_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while end > 0 and not (chosen[end] == rejected[end] == " " or _is_between_words(chosen, rejected, end)):
        end -= 1
    return (chosen[:end], chosen[end:], rejected[end:]) if chosen[: max(0, end)].strip() else None


def _is_between_words(chosen: str, rejected: str, end: int) -> bool:
    """Return whether the common beginning up to ``end`` ends in a script without spaces, and no mark follows."""
    marks = (unicodedata.category(text[end]).startswith("M") for text in (chosen, rejected))
    return UNSPACED.match(chosen[end - 1]) is not None and not any(marks)


def strip_repeated_prompt(prompt: str, chosen: str, rejected: str) -> tuple[str, str]:
    """Return both answers, without the prompt where both repeat it in front.

    A short prompt counts as repeated only where a line ends after it or an answer marker ends it.
    """
    if not prompt or not (chosen.startswith(prompt) and rejected.startswith(prompt)):
        return chosen, rejected
    answers = chosen[len(prompt) :], rejected[len(prompt) :]
    ends_a_turn = turn_boundary(prompt) == len(prompt) or all(answer[:1] in ("\n", "\r") for answer in answers)
    if ends_a_turn or len(prompt) >= SHORTEST_REPEATED_PROMPT_CHARACTERS:
        return answers
    return chosen, rejected
