"""What is a secret by its look or its name, and what is not."""

import time

import pytest

from oddsmith.errors import DataError
from oddsmith.system.secrets import masked, without_secrets

TOKEN = "hf_AAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"found {TOKEN}, expected", "found ***, expected"),
        ("https://user:secret@host/a", "https://***@host/a"),
        ("https:/user:secret@host/a", "https:/***@host/a"),
        ("https://token@host/a", "https://***@host/a"),
        ('{"token": "abc", "a": 1}', '{"token": "***", "a": 1}'),
        ("{'hub_token': 'abc'}", "{'hub_token': '***'}"),
        ("https://user:se/cr@t@host/a", "https://***@host/a"),
        ("https://user:1234/5@host/a", "https://***@host/a"),
        ("s3:/key:se/cret@bucket/a b", "s3:/***@bucket/a b"),
        ("https://mirror.org/a,https://user:secret@host/a", "https://mirror.org/a,https://***@host/a"),
        ("see x-https://user:secret@host'", "see x-https://***@host'"),
        ("https://host/a.jsonl?token=abc&rows=3", "https://host/a.jsonl?token=***&rows=3"),
        ("https://a.blob/c?sv=2024&sig=a%2Fb%3D: 403", "https://a.blob/c?sv=2024&sig=*** 403"),
        ("s3?X-Amz-Credential=AK/1/s3&X-Amz-Signature=0af", "s3?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("?X-Amz-Security-Token=abc&X-Goog-Signature=def", "?X-Amz-Security-Token=***&X-Goog-Signature=***"),
        ("https://host/?AWSAccessKeyId=AB&Signature=c%2B", "https://host/?AWSAccessKeyId=***&Signature=***"),
        ("/v1?api_key=abc#access_token=def", "/v1?api_key=***#access_token=***"),
        ("/v1?to%6Ben=abc&page=2&q=token", "/v1?to%6Ben=***&page=2&q=token"),
        ("--hub-token=abc HF_TOKEN=def password=g,h", "--hub-token=*** HF_TOKEN=*** password=***,h"),
        ("Authorization: Bearer abcdef.ghi-jkl", "Authorization: Bearer ***"),
        ("key sk-abcdefghijklmnopqrst1234", "key ***"),
        ('{"AWS_SECRET_ACCESS_KEY": "abc"}', '{"AWS_SECRET_ACCESS_KEY": "***"}'),
        ("pad_token=<pad> key=lambda sort(key=len)", "pad_token=<pad> key=lambda sort(key=len)"),
        ("https://example.org:8000/v1/@user", "https://example.org:8000/v1/@user"),
        ("https://medium.com/@user/a", "https://medium.com/@user/a"),
        ("eos_token <|im_end|> is missing", "eos_token <|im_end|> is missing"),
        ("user@example.org: no such file a/b@c", "user@example.org: no such file a/b@c"),
        ("https://huggingface.co/a/b: 404", "https://huggingface.co/a/b: 404"),
        ("hf_hub_download failed", "hf_hub_download failed"),
    ],
)
def test_texts(text, shown):
    assert masked(text) == shown


def test_the_values_of_secret_environment_variables(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "the")
    monkeypatch.setenv("HARMLESS", "anything else")
    assert masked("the 0123456789abcdef of anything else") == "the *** of anything else"


def test_settings_by_name_and_by_look():
    assert without_secrets("hub_token", "x") == (None, True)
    assert without_secrets("model_init_kwargs", {"token": "x", "a": [1]}) == ({"token": None, "a": [1]}, True)
    assert without_secrets("run_name", f"a {TOKEN}") == ("a ***", True)
    assert without_secrets("max_length", 3) == (3, False)


def test_errors_hide_what_they_quote():
    assert str(DataError(f"https://user:secret@host: found {TOKEN}")) == "https://***@host: found ***"


@pytest.mark.parametrize(
    "piece",
    ["a.", "a", "a:/", "https://", "https://a:", "https://a@", "a@", "?token=", "a=b&", "'token': ", '"a', "hf_", "sk-",
     "%", "-", "Bearer ", "a-token", "\\'", "{", " "],
)  # fmt: skip
def test_the_time_grows_with_the_length_alone(piece):
    def seconds(characters: int) -> float:
        text = piece * (characters // len(piece))
        began_at = time.process_time()
        masked(text)
        return time.process_time() - began_at

    assert min(seconds(200_000) for _ in range(2)) < 2.0  # by squares it would be minutes
