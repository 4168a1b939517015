"""Pairs that are none."""

from typing import Any

from tests.bad_inputs.case import GOOD, BadInput, Content, lines, twice

QUESTION = [{"role": "user", "content": "Why?"}]
YES, NO = [{"role": "assistant", "content": "Because."}], [{"role": "assistant", "content": "No."}]
CHAT = {"prompt": QUESTION, "chosen": YES, "rejected": NO}


def _rows(*rows: Any) -> dict[str, Content]:
    return {"pairs.jsonl": lines(*rows)}


# fmt: off
ROWS = (
    BadInput("leaves out the rejected answers", "train c.yaml",
        "train: found the columns prompt, chosen; rejected is missing (standard or conversational format); say"
        " which other columns are meant, as in columns: rejected=NAME",
        _rows(*[{"prompt": "a", "chosen": "b"}] * 2)),
    BadInput("names the columns otherwise", "train c.yaml",
        "train: found the columns q, good, bad; expected prompt, chosen and rejected; did you mean prompt=q,"
        " chosen=good and rejected=bad? (setting columns, or dataset.rename_columns)",
        _rows(*[{"q": "a", "good": "b", "bad": "c"}] * 2), flags="--columns prompt=q,chosen=good,rejected=bad"),
    BadInput("writes names with capitals and blanks", "train c.yaml --beta 0.2",
        'train: found the columns The "$Q", Chosen, Rejected answer; expected prompt, chosen and rejected; did you mean'
        ' prompt=The "$Q", chosen=Chosen and rejected=Rejected answer? (setting columns, or dataset.rename_columns)',
        _rows(*[{'The "$Q"': "a", "Chosen": "b", "Rejected answer": "c"}] * 2),
        flags="""--columns 'prompt=The "$Q",chosen=Chosen,rejected=Rejected answer'"""),
    BadInput("names a column that is not there", "train c.yaml --columns prompt=qestion",
        "pairs.jsonl: there is no column 'qestion' for prompt; found the columns question, chosen, rejected; did you"
        " mean question?",
        _rows(*[{"question": "a", "chosen": "b", "rejected": "c"}] * 2)),
    BadInput("names a path that ends early in a row", "train c.yaml --columns chosen=best.0.text",
        "train, row 1: column not found: chosen=best.0.text leads nowhere: best.0 has the keys txt; bad_rows=drop"
        " leaves such rows out",
        _rows(*[{**GOOD, "best": [{key: "a"}]} for key in ("text", "txt")])),
    BadInput("gives a column to a name that nothing reads", "train c.yaml --columns promt=q",
        "columns names 'promt', which no format reads; did you mean prompt?"),
    BadInput("gives the column before its name", "train c.yaml --columns frage=prompt",
        "columns names 'frage', which no format reads; the name comes first: prompt=frage"),
    BadInput("gives one column to two names", "data check pairs.jsonl --columns chosen=a,rejected=a",
        "columns: chosen and rejected are both read from 'a'; give each its own column"),
    BadInput("gives two columns to one name", "train c.yaml --columns prompt=a,prompt=b",
        "columns gives prompt twice, 'a' and 'b'; keep one"),
    BadInput("puts blanks between columns", "data check pairs.jsonl --columns prompt=q chosen=good rejected=bad",
        "found 'chosen=good' after --columns prompt=q; join them with commas: prompt=q,chosen=good,..."),
    BadInput("lists columns without names", "train c.yaml --columns question,good,bad",
        "columns has 'question,good,bad'; expected NAME=COLUMN, as in prompt=question,chosen=good,rejected=bad"),
    BadInput("has a null among the answers", "train c.yaml",
        "train, row 1: null value: chosen is null; expected text or messages; bad_rows=drop leaves such rows out",
        _rows(GOOD, {**GOOD, "chosen": None}, GOOD)),
    BadInput("has a number for an answer", "train c.yaml",
        "train, row 1: response is not text: rejected is a number; expected text or messages; bad_rows=drop leaves such"
        " rows out",
        _rows(GOOD, {**GOOD, "rejected": 7})),
    BadInput("has lists of texts for answers", "train c.yaml",
        "train, row 1: malformed message: chosen[0] is text; expected an object with role and content; bad_rows=drop"
        " leaves such rows out",
        _rows(GOOD, {**GOOD, "chosen": ["a"]})),
    BadInput("has another column in one row", "train c.yaml",
        "train, row 1: missing column: found the columns prompt, answer; chosen and rejected are missing (standard or"
        " conversational format); say which other columns are meant, as in columns: chosen=NAME,rejected=NAME;"
        " bad_rows=drop leaves such rows out",
        _rows(GOOD, {"prompt": "a", "answer": "b"})),
    BadInput("invents a role", "train c.yaml",
        "train, row 0: unknown role: chosen[0] has the role 'oracle'; expected one of system, developer, user,"
        " assistant, tool, function; bad_rows=drop leaves such rows out",
        _rows({**CHAT, "chosen": [{"role": "oracle", "content": "a"}]}, CHAT)),
    BadInput("writes a role in capitals", "train c.yaml",
        "train, row 1: unknown role: chosen[0] has the role 'Assistant'; expected one of system, developer, user,"
        " assistant, tool, function; did you mean 'assistant'?; bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "chosen": [{"role": "Assistant", "content": "a"}]})),
    BadInput("ends with the user's turn", "train c.yaml",
        "train, row 1: last turn is not the assistant's: chosen ends with the turn of 'user'; expected an answer of"
        " 'assistant' at the end; bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "chosen": [*YES, *QUESTION]})),
    BadInput("forgets the content of a message", "train c.yaml",
        "train, row 1: null value: chosen[0].content is null; expected text; bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "chosen": [{"role": "assistant"}]})),
    BadInput("forgets the role of a message", "train c.yaml",
        "train, row 1: malformed message: chosen[0] has the keys content; expected role and content, or from and value;"
        " bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "chosen": [{"content": "a"}]})),
    BadInput("mixes text and messages", "train c.yaml",
        "train: found 2 rows of plain text and 1 of messages; set chat_template_on_text to true, which puts the text"
        " into the chat template, too, or to false, which trains on it as it is",
        _rows(GOOD, CHAT, GOOD)),
    BadInput("calls tools that the chat template does not know", "train c.yaml",
        "train: 0 usable pairs in 2 rows (dropped 2 chosen answer left out by the chat template: rows 0, 1); expected"
        " at least 2; set a chat template that renders them",
        _rows(*[{**CHAT, "chosen": [{"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]}]}] * 2)),
    BadInput("shows a picture", "train c.yaml",
        "train, row 1: image, sound or video: prompt[0].content[0] is of the type 'image'; expected text alone;"
        " bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "prompt": [{"role": "user", "content": [{"type": "image"}]}]})),
    BadInput("gives no prompt, and none can be told", "train c.yaml",
        "train, row 0: no prompt: chosen and rejected do not begin with the same words; give it in a"
        " column prompt (found the columns chosen, rejected); bad_rows=drop leaves such rows out",
        _rows(*[{"chosen": "a", "rejected": "b"}] * 2)),
    BadInput("gives the prompt in a column of another name", "train c.yaml",
        "train, row 0: no prompt: chosen and rejected share 'Sure!\\n', where both answers may begin, and text in the"
        " column task would not be read; rename the column of the prompt to prompt (of the system message to system),"
        " and remove others; bad_rows=drop leaves such rows out",
        _rows(*[{"task": "Sort a list", "chosen": "Sure!\na", "rejected": "Sure!\nb"}] * 2),
        flags="--columns prompt=task"),
    BadInput("gives the answers in columns of other names", "data check pairs.jsonl --fix clean.jsonl",
        "none of the 2 rows is a pair; row 0: missing column: found the columns instruction, chosen_response,"
        " rejected_response; expected prompt, chosen and rejected; did you mean prompt=instruction,"
        " chosen=chosen_response and rejected=rejected_response? (setting columns, or dataset.rename_columns)",
        _rows(*[{"instruction": "a", "chosen_response": "b", "rejected_response": "c"}] * 2),
        flags="--columns prompt=instruction,chosen=chosen_response,rejected=rejected_response"),
    BadInput("answers another question", "train c.yaml",
        "train, row 1: prompt and answers disagree: chosen begins with the user's turn 'How?' and goes on unlike the"
        " prompt; give each turn once: the question and what is before it in prompt, the answers alone in chosen and"
        " rejected; bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "chosen": [{"role": "user", "content": "How?"}, *YES]})),
    BadInput("has the cell of a table cut off", "train c.yaml",
        "train, row 1: malformed message: chosen begins like messages written as text, but is neither JSON"
        " (Unterminated string starting at: line 1 column 35 (char 34)) nor Python; give messages as a list, or text"
        ' that is meant literally as {"role": ..., "content": TEXT}; bad_rows=drop leaves such rows out',
        _rows(CHAT, {**CHAT, "chosen": '[{"role": "assistant", "content": "Beca'})),
    BadInput("writes one answer as messages in text", "train c.yaml",
        "train, row 1: malformed message: chosen is a message or a list of messages written as text, and rejected is"
        ' ordinary text; write both in the same way (text that is meant literally as {"role": ..., "content": TEXT});'
        " bad_rows=drop leaves such rows out",
        _rows(GOOD, {**GOOD, "chosen": '{"role": "assistant", "content": "Because."}'})),
    BadInput("writes the arguments of a call as no JSON", "train c.yaml",
        "train, row 1: malformed tool call: chosen[0].tool_calls[0].function.arguments is no JSON: Expecting value:"
        " line 1 column 1 (char 0); bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "chosen": [{"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "run", "arguments": "x = 1"}}]}]})),
    BadInput("gives conversations that begin differently", "train c.yaml",
        "train, row 0: no prompt: chosen and rejected do not begin with the same user turn; give it in a column prompt"
        " (found the columns chosen, rejected); bad_rows=drop leaves such rows out",
        _rows(*[{"chosen": [*QUESTION, *YES], "rejected": NO}] * 2)),
    BadInput("gives one answer where two are expected", "train c.yaml",
        "train, row 0: no preference: output is a list of 1; expected the chosen and the rejected answer in a list;"
        " bad_rows=drop leaves such rows out",
        _rows(*[{"instruction": "a", "output": ["b"]}] * 2)),
    BadInput("rates all completions alike", "train c.yaml",
        "train: 0 usable pairs in 2 rows (dropped 2 tie: rows 0, 1); expected at least 2",
        _rows(*[{"prompt": "a", "completions": [{"text": "b", "score": 1}, {"text": "c", "score": 1}]}] * 2)),
    BadInput("says of two answers not which is better", "train c.yaml",
        "train: found the columns prompt, response_a, response_b, of which response_a and response_b are answers, and"
        " none that says which is better; expected chosen and rejected, a column winner (a or b), or score_a and"
        " score_b",
        _rows(*[{"prompt": "a", "response_a": "b", "response_b": "c"}] * 2)),
    BadInput("names a winner that is none of the answers", "train c.yaml",
        "train, row 1: unknown winner: winner is 'gpt'; expected a, b or tie; bad_rows=drop leaves such rows out",
        _rows(*[{"prompt": "a", "response_a": "b", "response_b": "c", "winner": name} for name in ("a", "gpt")])),
    BadInput("gives a number that may be an answer or a scale", "train c.yaml",
        "train, row 0: unknown winner: preference is 1, which may mean answer 1, or that the second one is better by 1;"
        " say which, as in columns: winner=preference (1 or 2: the better answer) or columns:"
        " overall_preference=preference (-3 to 3: below 0 the first is better); bad_rows=drop leaves such rows out",
        _rows(*[{"prompt": "a", "response_1": "b", "response_2": "c", "preference": 1}] * 2)),
    BadInput("exports records that nobody has judged", "train c.yaml",
        "train: 0 usable pairs in 2 rows (dropped 2 no judgement: rows 0, 1); expected at least 2",
        _rows(*[{"data": {"prompt": "a", "answer1": "b", "answer2": "c"}, "annotations": []}] * 2)),
    BadInput("gives fewer ratings than answers", "train c.yaml",
        "train, row 1: malformed scores: ratings is a list of 1; expected a list of 2, one number for each of"
        " generations; bad_rows=drop leaves such rows out",
        _rows(*[{"instruction": "a", "generations": ["b", "c"], "ratings": [3, 1][:n]} for n in (2, 1)])),
    BadInput("gives tools that are no list", "train c.yaml",
        "train, row 1: malformed tools: tools is an object; expected a list of JSON schemas; bad_rows=drop leaves such"
        " rows out",
        _rows(CHAT, {**CHAT, "tools": {"name": "search"}})),
    BadInput("gives tools that are no JSON", "train c.yaml",
        "train, row 1: malformed tools: tools is no JSON at character 0: ...; bad_rows=drop leaves such rows out",
        _rows(CHAT, {**CHAT, "tools": "search()"})),
    BadInput("writes half of a character", "train c.yaml",
        "train, row 0: invalid Unicode: the text of chosen holds '\\ud83d' (half of a surrogate pair) after 'Why?';"
        " expected valid Unicode; bad_rows=drop leaves such rows out",
        twice(chosen="\ud83d")),
    BadInput("gives the same answer twice in every row", "train c.yaml",
        "train: 0 usable pairs in 2 rows (dropped 2 identical answers: rows 0, 1); expected at least 2",
        twice(rejected=GOOD["chosen"])),
    BadInput("leaves every chosen answer empty", "train c.yaml",
        "train: 0 usable pairs in 2 rows (dropped 2 empty chosen answer: rows 0, 1); expected at least 2",
        twice(chosen="  ")),
    BadInput("gives prompts longer than the model may read", "train c.yaml --max-length 8",
        "train: 0 usable pairs in 2 rows (dropped 2 prompt fills max_length: rows 0, 1); expected at least 2; for the 2"
        " too long: max_length ... keeps all of them whole (...), max_prompt_length ... all, none with whole"
        " answers, prompts cut from the left",
        twice(prompt="Why? " * 9)),
    BadInput("gives one pair", "train c.yaml", "train: 1 usable pair in 1 row; expected at least 2", _rows(GOOD)),
)
# fmt: on
