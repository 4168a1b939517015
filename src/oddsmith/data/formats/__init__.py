"""Turn rows of all known formats into ``PreferencePair``s.

Every message about the content of a row is raised here, as a ``RowError`` or, for unknown columns, a ``DataError``:

    pairs         the formats: missing columns, no prompt, no preference, malformed tools
    messages      messages of a conversation: unknown roles, missing content
    transcripts   dialogues written as plain text; raises nothing
    values        single values: null, not text, not JSON
"""

from .messages import Message
from .pairs import PreferencePair, Row, format_of, to_pair

__all__ = ["Message", "PreferencePair", "Row", "format_of", "to_pair"]
