"""Prompts with instructions that a program can check, made of templates; none of them is one of IFEval's.

    python -m benchmarks.evidence.asked --output prompts.jsonl [--count 600] [--seed 1]

A prompt is a task about a topic, and one to three instructions of the kinds of IFEval (arXiv 2311.07911), worded anew.
Rows have IFEval's columns, so `oddsmith data make PROMPTS --judge rule` checks the answers:

    {"prompt": str, "instruction_id_list": [str], "kwargs": [{...}]}

Left out are kinds that ask for hundreds of words, for twelve placeholders or for languages this model does not write:
its answers would all fail, and a pair needs one that does not.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TOPICS = (
    "bicycles", "rainy days", "the moon", "public libraries", "learning to swim", "bees", "old maps", "sleep",
    "tomatoes", "lighthouses", "a first day at work", "chess", "winter", "train journeys", "houseplants", "bread",
    "the sea", "penguins", "recycling", "museums", "running", "a lost umbrella", "photography", "tea", "volcanoes",
    "moving to a new town", "board games", "night markets", "owls", "a broken phone", "mountains", "school trips",
    "drawing", "honey", "deserts", "neighbours", "music lessons", "saving money", "street art", "apples", "dogs",
    "camping", "time zones", "a family dinner", "learning a language", "clouds", "wooden toys", "local newspapers",
    "rivers", "robots", "balloons", "gardens", "whales", "birthday cakes", "kites", "a power cut", "soup", "bridges",
    "letters by post", "early mornings", "cats", "football", "islands", "autumn leaves", "cooking for friends",
    "second-hand clothes", "stars", "ants", "a good teacher", "walking to school", "snow", "clocks", "fishing",
    "the colour blue", "a quiet room", "sandwiches", "horses", "postcards", "thunder", "friendship",
)  # fmt: skip
TASKS = (
    "Write a short paragraph about {}.",
    "Write a short poem about {}.",
    "Tell me something interesting about {}.",
    "Explain to a child why people care about {}.",
    "Write a short note to a friend about {}.",
    "Give me some advice about {}.",
    "Describe {} to somebody who has never heard of it.",
    "Write an advertisement about {}.",
    "Write a diary entry about {}.",
    "Write a short story about {}.",
    "What should I know about {}?",
    "Make a short speech about {}.",
    "Write a riddle about {}.",
    "Write a message to my class about {}.",
    "List a few facts about {}.",
)
WORDS = (
    "morning", "quiet", "simple", "travel", "window", "always", "together", "future", "gentle", "learn", "small",
    "story", "water", "bright", "careful", "reason", "evening", "favourite", "change", "help", "light", "old",
)  # fmt: skip
COMMON = ("the", "very", "good", "people", "many", "world", "great", "important", "often", "life", "can", "new")
ENDINGS = (
    "That is all for today.", "I hope this helps.", "What do you think?", "Have a lovely day.", "Now you know.",
    "Thank you for reading.", "See you soon!", "Tell me more.",
)  # fmt: skip
MARKERS = ("P.S.", "P.P.S")


class Instruction(NamedTuple):
    """A wording, the id of its check, and what the check needs."""

    text: str
    check: str
    kwargs: dict[str, Any]


Make = Callable[[random.Random], Instruction]


def _of(check: str, *texts: str) -> Make:
    """Make an instruction without any number or word."""
    return lambda draw: Instruction(draw.choice(texts), check, {})


def _keywords(draw: random.Random) -> Instruction:
    words = draw.sample(WORDS, draw.choice((1, 2, 2, 3)))
    named = " and ".join(f'"{word}"' for word in words)
    text = draw.choice(("Use the words {} somewhere.", "{} must appear in your answer.", "Be sure to mention {}."))
    return Instruction(text.format(named), "keywords:existence", {"keywords": words})


def _forbidden(draw: random.Random) -> Instruction:
    words = draw.sample(COMMON, draw.choice((1, 2, 2, 3)))
    named = " or ".join(f'"{word}"' for word in words)
    text = draw.choice(("Never use the words {}.", "Your answer must not contain {}.", "Avoid the words {}."))
    return Instruction(text.format(named), "keywords:forbidden_words", {"forbidden_words": words})


def _often(draw: random.Random) -> Instruction:
    word, times = draw.choice(WORDS), draw.choice((2, 2, 3))
    text = draw.choice(('Use the word "{}" at least {} times.', 'The word "{}" has to come up {} times or more.'))
    kwargs = {"relation": "at least", "keyword": word, "frequency": times}
    return Instruction(text.format(word, times), "keywords:frequency", kwargs)


def _letters(draw: random.Random) -> Instruction:
    letter, times = draw.choice("bcfgkpvwy"), draw.choice((3, 4, 6))
    relation = draw.choice(("less than", "at least"))
    texts = {
        "less than": "The letter {} should appear fewer than {} times.",
        "at least": "The letter {} should appear at least {} times.",
    }
    kwargs = {"let_relation": relation, "letter": letter, "let_frequency": times}
    return Instruction(texts[relation].format(letter, times), "keywords:letter_frequency", kwargs)


def _sentences(draw: random.Random) -> Instruction:
    relation, count = draw.choice((("less than", 3), ("less than", 4), ("less than", 6), ("at least", 4)))
    texts = {
        "less than": ("Use fewer than {} sentences.", "Answer in less than {} sentences."),
        "at least": ("Use at least {} sentences.", "It should have {} or more sentences."),
    }
    kwargs = {"relation": relation, "num_sentences": count}
    return Instruction(draw.choice(texts[relation]).format(count), "length_constraints:number_sentences", kwargs)


def _words(draw: random.Random) -> Instruction:
    relation, count = draw.choice((("less than", 30), ("less than", 50), ("less than", 80), ("at least", 60)))
    texts = {
        "less than": ("Keep it under {} words.", "Use less than {} words.", "Stay below {} words."),
        "at least": ("Use at least {} words.", "Write {} words or more."),
    }
    kwargs = {"relation": relation, "num_words": count}
    return Instruction(draw.choice(texts[relation]).format(count), "length_constraints:number_words", kwargs)


def _paragraphs(draw: random.Random) -> Instruction:
    count = draw.choice((2, 2, 3))
    text = draw.choice(
        ("Write {} paragraphs, and put *** between them.", "There should be {} paragraphs, separated by ***.")
    )
    return Instruction(text.format(count), "length_constraints:number_paragraphs", {"num_paragraphs": count})


def _first_word(draw: random.Random) -> Instruction:
    count, word = draw.choice((2, 3)), draw.choice(WORDS)
    text = f"Write {count} paragraphs with an empty line between them. Paragraph 1 must start with the word {word}."
    kwargs = {"num_paragraphs": count, "nth_paragraph": 1, "first_word": word}
    return Instruction(text, "length_constraints:nth_paragraph_first_word", kwargs)


def _placeholders(draw: random.Random) -> Instruction:
    count = draw.choice((1, 2, 3))
    text = draw.choice(
        (
            "Leave at least {} placeholders in square brackets, such as [name].",
            "Include {} or more blanks to be filled in, written like [date].",
        )
    )
    kwargs = {"num_placeholders": count}
    return Instruction(text.format(count), "detectable_content:number_placeholders", kwargs)


def _postscript(draw: random.Random) -> Instruction:
    marker = draw.choice(MARKERS)
    text = draw.choice(("Add a postscript that begins with {}", "Close with a postscript, starting with {}"))
    return Instruction(text.format(marker), "detectable_content:postscript", {"postscript_marker": marker})


def _bullets(draw: random.Random) -> Instruction:
    count = draw.choice((2, 3, 4))
    text = draw.choice(
        (
            'Give exactly {} bullet points, each on a line that begins with "* ".',
            'There must be exactly {} bullets in markdown, like this: "* a point".',
        )
    )
    kwargs = {"num_bullets": count}
    return Instruction(text.format(count), "detectable_format:number_bullet_lists", kwargs)


def _highlights(draw: random.Random) -> Instruction:
    count = draw.choice((1, 2, 3))
    text = draw.choice(
        (
            "Highlight at least {} parts with markdown, as in *a highlighted part*.",
            "At least {} phrases have to stand between asterisks, like *this one*.",
        )
    )
    kwargs = {"num_highlights": count}
    return Instruction(text.format(count), "detectable_format:number_highlighted_sections", kwargs)


def _sections(draw: random.Random) -> Instruction:
    count, name = draw.choice((2, 3)), draw.choice(("SECTION", "Part", "PARAGRAPH"))
    text = f"Divide it into {count} parts, and begin each with {name} and its number, such as {name} 1."
    kwargs = {"section_spliter": name, "num_sections": count}
    return Instruction(text, "detectable_format:multiple_sections", kwargs)


def _ending(draw: random.Random) -> Instruction:
    phrase = draw.choice(ENDINGS)
    text = draw.choice(
        ('The very last sentence must be "{}" with nothing after it.', 'Finish with exactly these words: "{}"')
    )
    return Instruction(text.format(phrase), "startend:end_checker", {"end_phrase": phrase})


def _capital_words(draw: random.Random) -> Instruction:
    relation, count = draw.choice((("at least", 2), ("at least", 3), ("less than", 3)))
    texts = {
        "at least": "Stress at least {} words by writing them in CAPITAL LETTERS.",
        "less than": "Fewer than {} words may be written in all capital letters.",
    }
    kwargs = {"capital_relation": relation, "capital_frequency": count}
    return Instruction(texts[relation].format(count), "change_case:capital_word_frequency", kwargs)


def _language(draw: random.Random) -> Instruction:
    code, name = draw.choice((("es", "Spanish"), ("fr", "French"), ("de", "German"), ("it", "Italian")))
    text = draw.choice(("Answer in {} only.", "The whole answer has to be in {}.", "Use no language but {}."))
    return Instruction(text.format(name), "language:response_language", {"language": code})


# Kinds of one row cannot be asked for together: one of them makes the other impossible, or says it again.
GROUPS: tuple[tuple[Make, ...], ...] = (
    (
        _of("change_case:english_lowercase", "Write everything in lowercase letters.", "Do not use any capital letter.",
            "Only small letters, please."),
        _of("change_case:english_capital", "Write all of it in capital letters.", "Use UPPERCASE LETTERS ONLY."),
        _capital_words,
        _language,
    ),
    (
        _of("punctuation:no_comma", "Use no commas.", "Do without any comma.", "There must not be a single comma."),
        _of("punctuation:no_comma", "Leave out all commas.", "Your whole reply should be free of commas."),
    ),
    (_keywords, _often),
    (_forbidden, _letters),
    (_sentences, _words, _words),
    (
        _paragraphs, _first_word, _bullets, _sections,
        _of("detectable_format:json_format", "Give the whole answer as JSON.", "Output nothing but valid JSON."),
        _of("combination:two_responses", "Give two different answers, with ****** between them.",
            "Write two versions and separate them by six asterisks: ******."),
    ),
    (
        _ending, _postscript,
        _of("startend:quotation", "Put the whole answer in double quotation marks.",
            'Begin and end your answer with a double quote (").'),
    ),
    (
        _of("detectable_format:title", "Give it a title in double angular brackets, such as <<a title>>.",
            "It needs a title, written like this: <<title>>."),
        _highlights, _placeholders,
    ),
)  # fmt: skip


def rows(count: int, seed: int, topics: tuple[str, ...] = TOPICS) -> Iterator[dict[str, Any]]:
    """Yield so many different rows; the same for the same seed."""
    draw, seen = random.Random(seed), set()
    while len(seen) < count:
        groups = draw.sample(GROUPS, draw.choices((1, 2, 3), (5, 4, 2))[0])
        asked = [draw.choice(group)(draw) for group in groups]
        prompt = " ".join((draw.choice(TASKS).format(draw.choice(topics)), *(one.text for one in asked)))
        if prompt not in seen:
            seen.add(prompt)
            yield {
                "prompt": prompt,
                "instruction_id_list": [one.check for one in asked],
                "kwargs": [one.kwargs for one in asked],
            }


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    lines = (json.dumps(row) + "\n" for row in rows(given.count, given.seed))
    given.output.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
