"""Rows as platforms, annotation tools and sets of comparisons write them; each means that the sky is blue."""

import json
from typing import Any

QUESTION = "What color is the sky?"
BLUE, GREEN, PURPLE = "It is blue.", "It is green.", "Purple?"


def user(text: str = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _gemini(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


def _task(*results: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A task of Label Studio."""
    annotation = {"id": 7, "completed_by": 1, "was_cancelled": False, "result": list(results)}
    data = {"prompt": QUESTION, "answer1": GREEN, "answer2": BLUE}
    return {"id": 1, "project": 3, "data": data, "annotations": [annotation], "predictions": [], **changed}


def _result(kind: str, value: dict[str, Any], name: str = "pw") -> dict[str, Any]:
    return {"id": "a", "type": kind, "from_name": name, "to_name": "answer1,answer2", "value": value}


AB = {"prompt": QUESTION, "response_a": GREEN, "response_b": BLUE}
NUMBERED = {"prompt": QUESTION, "response_1": GREEN, "response_2": BLUE}
_FIELDS = {"prompt": QUESTION, "response-1": GREEN, "response-2": BLUE}
_JSON_MIN = {
    "id": 1, "prompt": QUESTION, "answer1": GREEN, "answer2": BLUE, "annotator": 1, "annotation_id": 7,
    "created_at": "2026-01-01T00:00:00Z", "lead_time": 4.2,
}  # fmt: skip
_ITEMS = [{"id": "x", "title": "1", "body": GREEN}, {"id": "y", "title": "2", "body": BLUE}]
_LISTS = {"instruction": QUESTION, "generations": [GREEN, PURPLE, BLUE], "generation_models": ["a", "b", "c"]}

# Name of the format -> rows of it.
# Prompts of which the text of the question is only a part.
PROMPTS = {"summaries": f"POST: {QUESTION}\n\nTL;DR:"}

LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "OpenAI": {
        "OpenAI": {
            "input": {"messages": [user()], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [assistant(BLUE)], "non_preferred_output": [assistant(GREEN)],
        },
        "Together": {
            "input": {"messages": [user()]}, "preferred_output": [assistant(BLUE)],
            "non_preferred_output": [assistant(GREEN)],
        },
        "answers as text": {"input": QUESTION, "preferred_output": BLUE, "non_preferred_output": GREEN},
        "in a CSV": {
            "input": json.dumps({"messages": [user()]}), "preferred_output": json.dumps([assistant(BLUE)]),
            "non_preferred_output": json.dumps([assistant(GREEN)]),
        },
    },
    "ms-swift": {
        "messages": {"messages": [user(), assistant(BLUE)], "rejected_response": GREEN},
        "rejected messages": {
            "messages": [user(), assistant(BLUE)], "rejected_messages": [user(), assistant(GREEN)],
            "rejected_response": None,
        },
        "query": {"query": QUESTION, "response": BLUE, "rejected_response": GREEN, "history": []},
        "Alpaca": {"instruction": QUESTION, "input": "", "output": BLUE, "rejected_response": GREEN},
    },
    "Amazon Nova": {
        "Nova": {
            "schemaVersion": "bedrock-conversation-2024",
            "messages": [
                {"role": "user", "content": [{"text": QUESTION}]},
                {"role": "assistant", "candidates": [
                    {"content": [{"text": GREEN}], "preferenceLabel": "non-preferred"},
                    {"content": [{"text": BLUE}], "preferenceLabel": "preferred"},
                ]},
            ],
        },
    },
    "Gemini": {
        "Gemini": {
            "contents": [_gemini("user", QUESTION)],
            "completions": [
                {"score": 0, "completion": _gemini("model", GREEN)},
                {"score": 1, "completion": _gemini("model", BLUE)},
            ],
        },
    },
    "UltraFeedback": {
        "completions": {
            "instruction": QUESTION,
            "completions": [{"response": GREEN, "overall_score": 1.0}, {"response": BLUE, "overall_score": 9.5}],
        },
        "texts beside scores": {"prompt": QUESTION, "completions": [BLUE, GREEN], "scores": [0.9, 0.1]},
        "binarised": {"prompt": QUESTION, "completions": [GREEN, BLUE], "labels": [False, True]},
    },
    "Argilla": {
        "2, ranking": {
            "id": "1", "status": "completed", "fields": _FIELDS, "metadata": {}, "suggestions": {}, "vectors": {},
            "responses": {"ranking": [{"value": ["response-2", "response-1"], "user_id": "u"}]},
        },
        "2, flat": {
            "id": "1", "status": "completed", "_server_id": "s", **_FIELDS,
            "preference.responses": ["response-2"], "preference.responses.users": ["u"],
            "preference.responses.status": ["submitted"],
        },
        "2, ratings": {
            "fields": _FIELDS,
            "responses": {"rating-1": [{"value": 2, "user_id": "u"}], "rating-2": [{"value": 5, "user_id": "u"}]},
        },
        "2, a suggestion": {
            "id": "1", "status": "pending", **_FIELDS, "preference.suggestion": "response-2",
            "preference.suggestion.score": 0.9, "preference.suggestion.agent": "model",
        },
        "1, ranking": {
            **_FIELDS, "external_id": None, "metadata": "{}",
            "ranking": [{
                "user_id": "u", "status": "submitted",
                "value": [{"rank": 2, "value": "response-1"}, {"rank": 1, "value": "response-2"}],
            }],
            "ranking-suggestion": None, "ranking-suggestion-metadata": None,
        },
        "1, records": {
            "fields": _FIELDS, "suggestions": [],
            "responses": [{"user_id": "u", "status": "submitted", "values": {"preference": {"value": "response-2"}}}],
        },
    },
    "Label Studio": {
        "pairwise": _task(_result("pairwise", {"selected": "right"})),
        "choices": _task(_result("choices", {"choices": ["answer2"]}, "choice")),
        "ratings": _task(_result("rating", {"rating": 1}, "rating1"), _result("rating", {"rating": 4}, "rating2")),
        "ranker": _task(
            _result("ranker", {"ranker": {"rank": ["y", "x"]}}), data={"prompt": QUESTION, "items": _ITEMS}
        ),
        "buckets": _task(
            _result("ranker", {"ranker": {"worst": ["x"], "best": ["y"]}}), data={"prompt": QUESTION, "items": _ITEMS}
        ),
        "other names": _task(
            _result("pairwise", {"selected": "left"}), data={"prompt": QUESTION, "text1": BLUE, "text2": GREEN}
        ),
        "JSON-MIN": _JSON_MIN | {"pw": {"selected": "right"}},
        "JSON-MIN, a list": _JSON_MIN | {"pw": [{"selected": "right"}]},
    },
    "better and worse answer": {
        "Stack Exchange": {"qid": 1, "question": QUESTION, "date": "2020", "response_j": BLUE, "response_k": GREEN},
    },
    "summaries": {
        "summarize_from_feedback": {
            "info": {"id": "t3", "post": QUESTION, "title": None, "subreddit": None, "site": None, "article": None},
            "summaries": [
                {"text": f" {GREEN}", "policy": "sup"}, {"text": f" {BLUE}", "policy": "ref", "note": "Good."}
            ],
            "choice": 1, "worker": "w", "batch": "b", "split": "train", "extra": {"confidence": 8},
        },
    },
    "answers with a winner or scores": {
        "arena": {
            "question_id": "q", "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "arena_user_1", "turn": 1,
            "conversation_a": [user(), assistant(BLUE)], "conversation_b": [user(), assistant(GREEN)],
        },
        "arena, Kaggle": {
            "id": 1, "model_a": "m", "model_b": "n", "prompt": json.dumps([QUESTION]),
            "response_a": json.dumps([GREEN]), "response_b": json.dumps([BLUE]),
            "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0,
        },
        "winner": AB | {"winner": "model_b"},
        "a letter": AB | {"winner": "B"},
        "the name of the model": AB | {"model_a": "gpt", "model_b": "claude", "winner": "claude"},
        "a comparison": AB | {"verdict": "B>>A"},
        "of a judge": AB | {"verdict": "[[B]]"},
        "in words": AB | {"preference": "Response B is better"},
        "left and right": AB | {"choice": "right"},
        "a number": NUMBERED | {"winner": 2},
        "a number as text": NUMBERED | {"winner": "2"},
        "PKU-SafeRLHF": {
            "prompt": QUESTION, "response_0": GREEN, "response_1": BLUE, "better_response_id": 1,
            "safer_response_id": 0, "is_response_0_safe": True, "is_response_1_safe": True,
        },
        "SHP": {
            "post_id": "p", "history": QUESTION, "human_ref_A": BLUE, "human_ref_B": GREEN, "labels": 1, "score_A": 9,
            "score_B": 2, "score_ratio": 4.5,
        },
        "HelpSteer2": NUMBERED | {"preference_strength": 2, "preference_statement": "@Response 2 is better"},
        "HelpSteer3": {
            "domain": "general", "context": [user()], "response1": BLUE, "response2": GREEN, "overall_preference": -3,
            "individual_preference": [{"score": -3}],
        },
        "a preference below 0": {
            "prompt": QUESTION, "response_1": BLUE, "response_2": GREEN, "preference": -2
        },
        "AlpacaFarm": {
            "instruction": QUESTION, "input": "", "output_1": BLUE, "output_2": GREEN, "preference": 1,
        },
        "scores": NUMBERED | {"score_1": 1.5, "score_2": "4"},
        "ratings of three": {
            "question": QUESTION, "answer_a": GREEN, "answer_b": PURPLE, "answer_c": BLUE, "rating_a": 1, "rating_b": 2,
            "rating_c": 5,
        },
        "ranks": NUMBERED | {"rank_1": 2, "rank_2": 1},
        "WebGPT": {
            "question": {"dataset": "eli5", "id": "1", "full_text": QUESTION}, "answer_0": GREEN, "answer_1": BLUE,
            "tokens_0": {"prefix": [1], "completion": [2]}, "tokens_1": {"prefix": [1], "completion": [2]},
            "score_0": -0.5, "score_1": 0.5,
        },
        "winner before scores": AB | {"winner": "b", "score_a": 1, "score_b": 2},
    },
    "list of answers with scores": {
        "distilabel": _LISTS | {"ratings": [1.0, None, 5.0]},
        "written as text": {"prompt": QUESTION, "responses": json.dumps([GREEN, BLUE]), "scores": "[1, 2]"},
        "stack-exchange-preferences": {
            "qid": 1, "question": QUESTION,
            "answers": [
                {"answer_id": 1, "pm_score": 0, "selected": False, "text": GREEN},
                {"answer_id": 2, "pm_score": 3, "selected": True, "text": BLUE},
            ],
        },
        "Nectar": {
            "prompt": f"\n\nHuman: {QUESTION}\n\nAssistant: ",
            "answers": [{"answer": GREEN, "model": "a", "rank": 7.0}, {"answer": BLUE, "model": "b", "rank": 1.0}],
        },
        "messages": {
            "prompt": [user()], "responses": [[assistant(GREEN)], [assistant(BLUE)]], "rewards": [-0.1, 0.3],
        },
    },
}  # fmt: skip
