"""What is a secret by its look or its name, and what is not."""

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
