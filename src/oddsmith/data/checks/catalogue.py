"""Every check of a row: its name, from which share of the rows on it warns or fails, what it means, what to do.

Where no source is named the shares are a judgement: a fault that only takes rows out of the training fails from
``COSTLY`` on, a fault that teaches the wrong thing from ``HARMFUL`` on, and what may well be meant never fails.
"""

from __future__ import annotations

from .finding import ANY, NEVER, Check

COSTLY = 0.05  # one row in twenty is paid for (collected, labelled) and not learned from
HARMFUL = 0.01  # wrong examples in one row of a hundred are enough to be seen in what a model does
NOTABLE = 0.05  # below, what is found may be chance or intended
LARGE_CUT = 0.10  # a tenth of the answers without their end

NO_PAIR = Check(
    "format",
    ANY,
    ANY,
    "these rows are no preference pair (a column is missing or null, or no text or messages); training stops at them",
    "repair them, or leave them out: --fix, or bad_rows: drop in the training",
    drops=True,
)
EMPTY_ANSWER = Check(
    "empty answers",
    ANY,
    COSTLY,
    "an answer of nothing but blanks teaches nothing; training drops the row",
    "fill in the answer, or leave the row out (--fix)",
    drops=True,
)
EMPTY_PROMPT = Check(
    "empty prompts",
    ANY,
    NEVER,
    "the last question is blank, so the answers answer nothing",
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
    "all there is to learn from such a pair is where blanks and capitals go",
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
    "at least 80% of its word triples are those of an earlier prompt (by MinHash): less variety than rows",
    "keep one of each group, or hold out whole groups",
)
CONFLICTS = Check(
    "conflicting pairs",
    ANY,
    HARMFUL,
    "the same two answers to the same prompt are preferred one way round in one row and the other way in another;"
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
    "the chosen answer is in another language than the question (told by letters, for texts long enough to tell)",
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
CONTROL_TOKENS = Check(
    "control tokens of this tokenizer",
    ANY,
    HARMFUL,
    "content that this tokenizer reads as control tokens: a turn ends or begins in the middle of a text",
    "take them out of the text, or leave the rows out (--fix)",
    drops=True,
)
ROLES = Check(
    "roles that do not alternate",
    ANY,
    NEVER,
    "two turns in a row by the same speaker, an answer before a question, or a system message in the middle; strict"
    " chat templates refuse it",
    "join such turns, or check with --model whether the template takes them",
)
PERSONAL_DATA = Check(
    "personal data and keys",
    ANY,
    NEVER,
    "e-mail addresses or access keys, which a model may learn by heart and say to others",
    "mask them; withdraw a key that is real",
)
EVALUATION_OVERLAP = Check(
    "prompts of the evaluation set",
    ANY,
    HARMFUL,
    "the evaluation set holds the same prompt, or one at least 80% alike, so its figures will be too good",
    "leave these rows out of the training set (--fix)",
    drops=True,
)
BENCHMARK_OVERLAP = Check(
    "text of the benchmark",
    ANY,
    HARMFUL,
    "a run of 13 words of the benchmark stands in the prompt or the chosen answer, so its scores would say nothing",
    "leave these rows out (--fix)",
    drops=True,
)
TEMPLATE_REFUSED = Check(
    "refused by the chat template",
    ANY,
    ANY,
    "the template cannot render these conversations; training stops at them",
    "repair the roles, or leave the rows out (--fix, or bad_rows: drop)",
    drops=True,
)
LOST_IN_TEMPLATE = Check(
    "empty or identical after the template",
    ANY,
    COSTLY,
    "once rendered, a side has no token left or both are the same; training drops the row",
    "leave the row out (--fix)",
    drops=True,
)
IDENTICAL_AFTER_CUT = Check(
    "identical after truncation",
    ANY,
    COSTLY,
    "the answers differ only beyond max_length; training drops the row",
    "raise --max-length, or leave the row out (--fix)",
    drops=True,
)
PROMPT_TOO_LONG = Check(
    "prompt longer than the limit",
    ANY,
    COSTLY,
    "the prompt fills max_length, so no answer is left; training drops the row",
    "raise --max-length, or cut prompts with --max-prompt-length",
    drops=True,
)
ANSWER_CUT = Check(
    "answers cut",
    LARGE_CUT,
    NEVER,
    "an answer goes beyond max_length and loses its end: the model does not see how it stops",
    "raise --max-length",
)
PROMPT_CUT = Check(
    "prompts cut",
    LARGE_CUT,
    NEVER,
    "the beginning of the prompt is cut off, often the system message and the first question",
    "raise --max-length or --max-prompt-length",
)
TURN_ENDS = Check(
    "end of turn inside an answer",
    ANY,
    HARMFUL,
    "an answer holds the end-of-turn token before its end: the model learns to go on after it has stopped",
    "give each turn a message of its own and no control tokens; leave such rows out (--fix)",
    drops=True,
)
NO_TURN_END = Check(
    "template without an end of turn",
    ANY,
    NEVER,
    "the template writes no token where an answer ends; training adds EOS to the last one, earlier turns show none",
    "use the model's own chat template, or one that ends every turn",
)
DOUBLE_BOS = Check(
    "doubled BOS",
    ANY,
    HARMFUL,
    "the sequence begins with two BOS tokens, which the model never saw in its training",
    "take the BOS token out of the text; the template or the tokenizer adds it",
    drops=True,
)

# In the order of the table. Those of the second list need a tokenizer.
OF_ROWS = (
    NO_PAIR,
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    IDENTICAL,
    ALMOST_IDENTICAL,
    DUPLICATE_PAIRS,
    DUPLICATE_PROMPTS,
    SIMILAR_PROMPTS,
    CONFLICTS,
    REFUSALS_CHOSEN,
    REFUSALS_REJECTED,
    LANGUAGE,
    ECHO,
    REPETITION,
    SPECIAL_TEXT,
    ROLES,
    PERSONAL_DATA,
)
OF_TOKENS = (
    CONTROL_TOKENS,
    TEMPLATE_REFUSED,
    LOST_IN_TEMPLATE,
    IDENTICAL_AFTER_CUT,
    PROMPT_TOO_LONG,
    ANSWER_CUT,
    PROMPT_CUT,
    TURN_ENDS,
    NO_TURN_END,
    DOUBLE_BOS,
)
