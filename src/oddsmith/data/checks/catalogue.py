"""List the checks of a dataset: name, shares of faulty rows from which on a check warns and fails, meaning and fix.

Where no source is named, the shares are our judgement: a fault that only removes rows from the training fails from
``COSTLY`` on, a fault that teaches the wrong thing from ``HARMFUL`` on, and a property that may be intended only warns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SHOWN_ROWS = 8  # row numbers that are named before the rest is counted

Verdict = Literal["pass", "warn", "fail"]
SEVERITY: tuple[Verdict, ...] = ("pass", "warn", "fail")

ANY = 0.0  # one row is enough
NEVER = 2.0  # a share that no count reaches
COSTLY = 0.05  # one row in twenty was collected and labelled, and is not trained on
HARMFUL = 0.01  # wrong examples in one row of a hundred are enough to show in what a model does
NOTABLE = 0.05  # smaller shares may be chance or intended
LARGE_CUT = 0.10  # a tenth of the answers lose their end

MODEL, EVALUATION, BENCHMARK = "--model", "--eval-dataset-name", "--benchmark"
OUTLINE = "--model with a configuration that needs no code of its own"  # to know its embeddings and positions


@dataclass(frozen=True)
class Check:
    """A check that every row passes or not."""

    name: str  # short name, in the table and in JSON
    warn_share: float  # share of the rows from which on it warns; ``ANY``: one row is enough
    fail_share: float  # share of the rows from which on it fails; ``NEVER``: it only warns
    meaning: str  # how the fault affects the training
    fix: str  # what to do about it
    drops: bool = False  # whether a cleaned set leaves such rows out
    needs: str = ""  # the flag of ``oddsmith data check`` without which the check cannot be made; empty for none

    def verdict(self, count: int, total: int) -> Verdict:
        """Return the verdict on ``count`` faulty rows of ``total``; ``"pass"`` whenever there is none."""
        share = count / total if count else -1.0
        return "fail" if share >= self.fail_share else "warn" if share >= self.warn_share else "pass"

    def finding(self, rows: Sequence[int], total: int, found: str = "") -> Finding:
        """Return the outcome for the numbers of the faulty rows, in ascending order, out of ``total`` rows."""
        return Finding(
            check=self.name,
            verdict=self.verdict(len(rows), total),
            count=len(rows),
            share=len(rows) / max(1, total),
            rows=tuple(rows[:SHOWN_ROWS]),
            found=found,
            meaning=self.meaning,
            fix=self.fix,
        )


Hit = tuple[Check, str]  # a check that a row does not pass, and the faulty part of the row (may be empty)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str  # name of the check
    verdict: Verdict
    count: int  # number of faulty rows
    share: float  # of all rows
    rows: tuple[int, ...]  # the first few of them, counted from 0
    found: str  # what was found, in numbers; may be empty
    meaning: str  # how the fault affects the training
    fix: str  # what to do about it

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**vars(self), "rows": list(self.rows)}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the most severe verdict; ``"pass"`` of none."""
    return max(verdicts, key=SEVERITY.index, default="pass")


# The checks, in the order of the table.

NO_PAIR = Check(
    "format",
    ANY,
    ANY,
    "these rows are not preference pairs (a column is missing, null, or neither text nor messages); training stops",
    "repair them, or leave them out: --fix, or bad_rows: drop in the training",
    drops=True,
)
UNDECIDED = Check(
    "rows without a preference",
    ANY,
    NEVER,
    "a tie, no judgement, or one answer only: there is nothing to prefer, and training leaves the row out",
    "nothing, where ties are normal (comparisons, annotations); else look at the reasons",
    drops=True,
)
EMPTY_ANSWER = Check(
    "empty answers",
    ANY,
    COSTLY,
    "a blank answer teaches nothing; training drops the row",
    "fill in the answer, or leave the row out (--fix)",
    drops=True,
)
EMPTY_PROMPT = Check(
    "empty prompts",
    ANY,
    NEVER,
    "the last question is blank, so there is nothing to answer",
    "fill in the prompt",
)
IDENTICAL = Check(
    "identical answers",
    ANY,
    COSTLY,
    "chosen and rejected are the same text, so there is nothing to prefer; training drops the row",
    "leave the row out (--fix)",
    drops=True,
)
ALMOST_IDENTICAL = Check(
    "answers that differ in blanks or case",
    ANY,
    NEVER,
    "such a pair teaches only where blanks and capitals go",
    "leave the row out, unless that is what you want to teach",
)
DUPLICATE_PAIRS = Check(
    "repeated pairs",
    ANY,
    NEVER,
    "the same prompt with the same two answers again: it counts twice in training",
    "keep the first of each (--fix)",
    drops=True,
)
DUPLICATE_PROMPTS = Check(
    "repeated prompts",
    NOTABLE,
    NEVER,
    "the same prompt as an earlier row, with other answers; fine if it is meant, but a random held-out set then shares"
    " prompts with the training set",
    "hold out whole prompts rather than rows",
)
SIMILAR_PROMPTS = Check(
    "near-duplicate prompts",
    NOTABLE,
    NEVER,
    "at least 80% of its word triples are those of an earlier prompt (by MinHash), so there is less variety than the"
    " number of rows suggests",
    "keep one of each group, or hold out whole groups",
)
CONFLICTS = Check(
    "conflicting pairs",
    ANY,
    HARMFUL,
    "the same two answers to the same prompt are ranked one way in one row and the other way in another;"
    " their gradients cancel",
    "decide for one, or leave both out (--fix)",
    drops=True,
)
REFUSALS_CHOSEN = Check(
    "refusals chosen",
    NOTABLE,
    NEVER,
    "chosen answers that decline (\"I'm sorry, but I can't\") teach the model to decline",
    "look at some; leave out those where an answer would have been right",
)
REFUSALS_REJECTED = Check(
    "refusals rejected",
    NOTABLE,
    NEVER,
    "rejected answers that decline teach the model not to decline, also where it should",
    "look at some; keep pairs in which declining is right",
)
LANGUAGE = Check(
    "language mismatch",
    NOTABLE,
    NEVER,
    "the chosen answer is in another language than the question (recognised by letters, in texts that are long enough)",
    "look at some; translations are fine, mixed-up rows are not",
)
ECHO = Check(
    "prompt repeated in an answer",
    HARMFUL,
    NEVER,
    "an answer begins with the question itself, so the model learns to repeat questions, or that one side does",
    "cut the question off the answer",
)
REPETITION = Check(
    "repeated text",
    HARMFUL,
    NEVER,
    "more than a tenth of an answer repeats a run of ten words; if it is chosen, the model learns to loop",
    "leave out the rows where the chosen answer loops",
)
SPECIAL_TEXT = Check(
    "control tokens as text",
    ANY,
    NEVER,
    "text such as <|im_end|> or [INST] in the content: a template was applied already, or a model leaked it; where the"
    " tokenizer knows the token, a turn ends or begins in the middle",
    "give plain messages and let the chat template add the tokens; check with --model",
)
ROLES = Check(
    "roles that do not alternate",
    ANY,
    NEVER,
    "two turns in a row with the same role, an answer before a question, or a system message in the middle; strict"
    " chat templates refuse it",
    "join such turns, or check with --model whether the template accepts them",
)
PERSONAL_DATA = Check(
    "personal data and keys",
    ANY,
    NEVER,
    "e-mail addresses or access keys, which a model may memorise and repeat to others",
    "mask them; withdraw a key that is real",
)
UNREAD_COLUMN = Check(
    "columns that are not read",
    ANY,
    NEVER,
    "the column is named like a part of the prompt, and what it holds is not in the prompt that is trained on",
    "put its text into the prompt (a system message into a column system), or remove it if it is meant to be left out",
)
MEDIA = Check(
    "images, sound or video",
    ANY,
    NEVER,
    "only the text is read: the model learns to answer about what it cannot see",
    "leave these rows out, or train a model that sees with a trainer for such models",
)
SCORES = Check(
    "scores against the choice",
    ANY,
    HARMFUL,
    "the chosen answer has the lower score: the sides are swapped, or the choice was made otherwise",
    "swap the sides, or leave the rows out (oddsmith data check --fix)",
    drops=True,
)
HTML = Check(
    "HTML in answers",
    HARMFUL,
    NEVER,
    "tags such as <p> or <br>, or entities such as &amp;, outside of code: the model learns to write them",
    "turn them into plain text or Markdown, unless the answers are shown as HTML",
)
CARRIAGE_RETURNS = Check(
    "carriage returns",
    ANY,
    NEVER,
    "line breaks of Windows (\\r\\n), which most models saw rarely: the model learns to write them",
    "replace \\r\\n by \\n",
)
SHARED_WORDS = Check(
    "prompts taken from the answers",
    ANY,
    NEVER,
    "there is no prompt, so the words that both answers begin with are taken for it, as TRL does",
    "if that is not meant, give the prompt in a column prompt",
)
EVALUATION_OVERLAP = Check(
    "prompts of the evaluation set",
    ANY,
    HARMFUL,
    "the evaluation set holds the same prompt, or one at least 80% alike, so its figures will be too good",
    "leave these rows out of the training set (--fix)",
    drops=True,
    needs=EVALUATION,
)
BENCHMARK_OVERLAP = Check(
    "text of the benchmark",
    ANY,
    HARMFUL,
    "a run of 13 words of the benchmark occurs in the prompt or the chosen answer, so its scores would mean nothing",
    "leave these rows out (--fix)",
    drops=True,
    needs=BENCHMARK,
)
CONTROL_TOKENS = Check(
    "control tokens of this tokenizer",
    ANY,
    HARMFUL,
    "content that this tokenizer reads as control tokens: a turn ends or begins in the middle of a text",
    "take them out of the text, or leave the rows out (--fix)",
    drops=True,
    needs=MODEL,
)
TEMPLATE_REFUSED = Check(
    "refused by the chat template",
    ANY,
    ANY,
    "the template cannot render these conversations; training stops at them",
    "repair the roles, or leave the rows out (--fix, or bad_rows: drop)",
    drops=True,
    needs=MODEL,
)
LOST_IN_TEMPLATE = Check(
    "empty or identical after the template",
    ANY,
    COSTLY,
    "the chat template leaves out an answer, or all in which both differ (a call of a tool, thoughts); training drops"
    " the row, as it would teach to say nothing",
    "set a chat template that renders it, or leave the row out (--fix)",
    drops=True,
    needs=MODEL,
)
PLAIN_TEXT = Check(
    "plain text without the chat template",
    ANY,
    NEVER,
    "this model has a chat template, and such rows are trained on without it: fine for a base model, but a chat model"
    " gets questions in its template later",
    "chat_template_on_text: true puts the text into the template (here --chat-template-on-text)",
    needs=MODEL,
)
TRANSCRIPTS = Check(
    "Anthropic HH text in the chat template",
    ANY,
    NEVER,
    'the turns of such text ("\\n\\nHuman: ...") are rendered anew by this model\'s chat template, where other trainers'
    " take the text as it is: right for a chat model",
    "nothing, if that is meant; chat_template_on_text: false trains on the text (here --chat-template-on-text false)",
    needs=MODEL,
)
MIXED_FORMS = Check(
    "plain text beside conversations",
    ANY,
    ANY,
    "some rows are in the chat template and some are not; training asks for a decision",
    "chat_template_on_text: true puts the text into the template, too, false trains on it as it is",
    needs=MODEL,
)
LEFT_OUT = Check(
    "left out by the chat template",
    ANY,
    NEVER,
    "the template does not render these parts of a row, so the model sees neither them nor, later, their like",
    "set a chat template that renders them (tokenizer.chat_template), unless the model is used without them, too",
    needs=MODEL,
)
IDENTICAL_AFTER_CUT = Check(
    "identical after truncation",
    ANY,
    COSTLY,
    "the answers differ only beyond max_length; training drops the row",
    "raise --max-length, or leave the row out (--fix)",
    drops=True,
    needs=MODEL,
)
PROMPT_TOO_LONG = Check(
    "prompt longer than the limit",
    ANY,
    COSTLY,
    "the prompt fills max_length, so no answer is left; training drops the row",
    "raise --max-length, or cut prompts with --max-prompt-length",
    drops=True,
    needs=MODEL,
)
ANSWER_CUT = Check(
    "answers cut",
    LARGE_CUT,
    NEVER,
    "an answer goes beyond max_length and loses its end: the model does not see how it stops",
    "raise --max-length",
    needs=MODEL,
)
PROMPT_CUT = Check(
    "prompts cut",
    LARGE_CUT,
    NEVER,
    "the beginning of the prompt is cut off, often the system message and the first question",
    "raise --max-length or --max-prompt-length",
    needs=MODEL,
)
TURN_ENDS = Check(
    "end of turn inside an answer",
    ANY,
    HARMFUL,
    "an answer contains the end-of-turn token before its end: the model learns to continue after that token",
    "write each turn as a separate message without control tokens, or leave such rows out (--fix)",
    drops=True,
    needs=MODEL,
)
NO_TURN_END = Check(
    "template without an end of turn",
    ANY,
    NEVER,
    "the template writes no token where an answer ends; training adds EOS to the last one, earlier turns show none",
    "use the model's own chat template, or one that ends every turn with a token (chat_template: chatml adds its own)",
    needs=MODEL,
)
DOUBLE_BOS = Check(
    "doubled BOS",
    ANY,
    HARMFUL,
    "the sequence begins with two BOS tokens, which the model never saw in its training",
    "take the BOS token out of the text; the template or the tokenizer adds it",
    drops=True,
    needs=MODEL,
)

NO_EMBEDDING = Check(
    "tokens without embedding",
    ANY,
    ANY,
    "the tokenizer makes ids beyond the model's embeddings; training stops before its first step",
    "use the model's own tokenizer, or resize the embeddings of the model; or leave the rows out (--fix)",
    drops=True,
    needs=OUTLINE,
)
TOO_LONG = Check(
    "more tokens than positions",
    ANY,
    ANY,
    "the model has too few positions for such sequences; training stops before its first step",
    "cut them with --max-length (and --max-prompt-length), here and in the training; or leave the rows out (--fix)",
    drops=True,
    needs=OUTLINE,
)

CHECKS: tuple[Check, ...] = tuple(value for value in globals().values() if isinstance(value, Check))
# What training tells of, too.
TOLD_IN_TRAINING = (SHARED_WORDS, UNREAD_COLUMN, MEDIA, SCORES, HTML, CARRIAGE_RETURNS)
