"""Turn rows of all known formats into ``PreferencePair``s.

Every message about the content of a row is raised here, as a ``RowError`` or, for unknown columns, a ``DataError``:

    pairs         the formats: missing columns, no prompt, no preference, malformed tools
    messages      messages of a conversation: unknown roles, missing content
    conversations where the prompt ends; turns that contradict each other
    layouts       the rows of platforms, annotation tools and comparisons, restated as pairs:
      platforms, annotated, judged      their readers; malformed answers, candidates, scores
      families      response_a and response_b, score_1 to score_4; raises nothing
      scores        scores of both answers; raises nothing
      verdicts      unknown winners; rows that prefer neither answer (``UndecidedRow``)
    columns       columns that are not read
    offer         unknown columns, and which of them may be meant
    tool_calls    tools, and calls of them
    transcripts   dialogues written as plain text; raises nothing
    written       messages and other values written as text, as JSON or as Python prints them
    values        single values: null, not text, not JSON
"""

from .messages import Message
from .pairs import NOWHERE, READ_COLUMNS, PreferencePair, Row, format_of, restated, to_pair, unread_columns

__all__ = [
    "NOWHERE",
    "READ_COLUMNS",
    "Message",
    "PreferencePair",
    "Row",
    "format_of",
    "restated",
    "to_pair",
    "unread_columns",
]
