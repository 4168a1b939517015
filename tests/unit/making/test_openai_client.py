"""The client of servers of OpenAI's interface, against a small real server."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from oddsmith.errors import ConfigError, ServerError
from oddsmith.making import openai_client
from oddsmith.making.openai_client import ChatServer, Refusal, Reply
from tests.chat_server import Answer, chat_server
from tests.servers import free_port


def ask(url, *texts, **options):
    server = ChatServer(url, **{"first_wait_s": 0.01, **options})
    found = dict(server.ask_all({"model": "m", "messages": [{"role": "user", "content": text}]} for text in texts))
    return [found[number] for number in range(len(texts))]


def said(body):
    return body["messages"][-1]["content"]


def once(first, text="fine"):
    """Answer the first request so, all others with a text."""
    asked = iter([first])
    return lambda body: next(asked, Answer(text))


def test_answers_come_with_what_is_known_of_them():
    def answer(body):
        return Answer(
            body={
                "choices": [{"message": {"content": said(body)[::-1]}, "finish_reason": said(body)}],
                "usage": {"completion_tokens": 3},
            }
        )

    with chat_server(answer) as served:
        assert ask(served.url, "stop", "length") == [Reply("pots", 3), Reply("htgnel", 3, False)]
        assert ChatServer(served.url).models() == ["m"]


def test_few_requests_are_open_at_once_and_all_are_answered():
    def answer(body):
        time.sleep(0.02)
        return Answer(said(body))

    texts = [str(number) for number in range(20)]
    with chat_server(answer) as served:
        assert [reply.text for reply in ask(served.url, *texts, concurrency=3)] == texts
        assert served.most_open == 3


@pytest.mark.parametrize(
    "first",
    [
        Answer(status=429),
        Answer(status=408),
        Answer(status=500, body=b"<html>oops"),
        Answer(status=503, body={"error": {"message": "loading"}}),
        Answer(body=b"rubbish \xff\x1b[2J"),
        Answer(body=b"[]"),
        Answer(body={"choices": []}),
        Answer(None),
        Answer(body=b"{" + b'"a":[' * 9000),
    ],
    ids=lambda first: f"{first.status} {first.body[:12]}",
)
def test_what_may_pass_is_asked_again(first):
    with chat_server(once(first)) as served:
        assert ask(served.url, "Hi") == [Reply("fine")]
        assert len(served.bodies) == 2


def test_all_requests_wait_as_long_as_the_server_says():
    times = []

    def answer(body):
        times.append(time.monotonic())
        return Answer(status=429, headers={"Retry-After": "0.4"}) if len(times) == 1 else Answer("fine")

    with chat_server(answer) as served:
        assert ask(served.url, *"abc", concurrency=1) == [Reply("fine")] * 3
    assert times[1] - times[0] > 0.35


def test_a_server_may_say_until_when_to_wait():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < openai_client._retry_after_s(soon) <= 100
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)
    waits = [openai_client._retry_after_s(value) for value in (past, "", "soon", "-3", "nan", "7", "1e300")]
    assert waits == [0, 0, 0, 0, 0, 7, 1e9]


def test_a_server_that_wants_an_hour_is_left_alone():
    with (
        chat_server(lambda body: Answer(status=429, headers={"Retry-After": "3600"})) as served,
        pytest.raises(ServerError, match="answers 429 .*asks to wait 3,600 s"),
    ):
        ask(served.url, "Hi")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refuses the key; it is taken from the environment variable OPENAI_API_KEY"),
        (403, "refuses access"),
        (404, "knows no such model or address: it answers 404 (no model n)"),
        (307, "answers 307, which is no answer; is that its address?"),
    ],
)
def test_a_server_that_is_of_no_use_is_said_to_be_at_once(status, message):
    with chat_server(lambda body: Answer(status=status, body={"error": {"message": "no model n"}})) as served:
        with pytest.raises(ServerError) as found:
            ask(served.url, "a", "b", concurrency=1)
        assert len(served.bodies) == 1
    assert message in str(found.value)


def test_one_request_may_be_refused_and_the_others_answered():
    def answer(body):
        if said(body) == "long":
            return Answer(status=400, body={"error": {"message": "too\nlong"}})
        return Answer(status=500) if said(body) == "poison" else Answer("fine")

    with chat_server(answer) as served:
        found = ask(served.url, "a", "long", "b", "poison", "c", concurrency=1)
    assert found[1] == Refusal("the server answers 400 (too long)")
    assert isinstance(found[3], Refusal)
    assert "6 times in a row" in found[3].reason
    assert [found[0], found[2], found[4]] == [Reply("fine")] * 3


def test_a_server_that_fails_each_time_is_given_up():
    with chat_server(lambda body: Answer(status=500)) as served:
        with pytest.raises(ServerError, match="answers 500 .*6 times in a row"):
            ask(served.url, *"abcdefgh", concurrency=2)
        assert len(served.bodies) <= 6 * 5


def test_nobody_listens():
    port = free_port()
    with pytest.raises(ServerError, match=rf"http://127.0.0.1:{port}/v1: cannot be reached .*6 times in a row"):
        ask(f"http://127.0.0.1:{port}/v1", "Hi")
    with pytest.raises(ServerError, match="cannot be reached .*is it running"):
        ChatServer(f"http://127.0.0.1:{port}").models()


def test_a_slow_server_is_not_waited_for_without_end():
    asked = []

    def answer(body):
        asked.append(body)
        if len(asked) == 1:
            time.sleep(0.6)
        return Answer("fine")

    with chat_server(answer) as served:
        assert ask(served.url, "Hi", timeout_s=0.2) == [Reply("fine")]


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for_without_end():
    with chat_server(once(Answer("x" * 100, pause_s=0.05))) as served:
        started = time.monotonic()
        assert ask(served.url, "Hi", timeout_s=0.2) == [Reply("fine")]
        assert time.monotonic() - started < 6


def test_a_reply_without_end_is_none(monkeypatch):
    monkeypatch.setattr(openai_client, "MAX_REPLY_BYTES", 1000)
    with chat_server(once(Answer("x" * 5000))) as served:
        assert ask(served.url, "Hi") == [Reply("fine")]


def test_whoever_leaves_ends_the_open_requests():
    going = threading.Event()

    def answer(body):
        if said(body) != "0":
            going.wait(10)
        return Answer("fine")

    with chat_server(answer) as served:
        started = time.monotonic()
        for _ in ChatServer(served.url, concurrency=4).ask_all(
            {"messages": [{"role": "user", "content": str(number)}]} for number in range(100)
        ):
            break
        assert time.monotonic() - started < 5
        assert len(served.bodies) <= 5
        going.set()


def test_the_key_goes_into_its_header_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-indeed-0123")
    echo = {"error": {"message": "bad key sk-very-secret-indeed-0123"}}
    with chat_server(lambda body: Answer(status=401, body=echo)) as served:
        with pytest.raises(ServerError) as found:
            ask(served.url, "Hi")
        assert served.headers[0]["Authorization"] == "Bearer sk-very-secret-indeed-0123"
        assert "secret" not in str(served.bodies)
    assert "secret" not in str(found.value)
    monkeypatch.setenv("OPENAI_API_KEY", "a\nb")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters that no key has"):
        ChatServer(served.url)


def test_text_that_no_file_can_hold_is_made_writable():
    with chat_server(lambda body: Answer(body=b'{"choices":[{"message":{"content":"a\\ud800b"}}]}')) as served:
        assert ask(served.url, "lone \ud800") == [Reply("a?b")]
        assert said(served.bodies[0]) == "lone ?"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://a.b/v1/chat/completions", "https://a.b/v1"),
        ("http://user:password@a.b/v2", "http://***@a.b/v2"),
    ],
)
def test_addresses_are_read_as_they_are_copied(given, url):
    assert ChatServer(given).name == url


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a.b", "http://", "http://[", "http://a.b/v1?key=1", "a b"]
)
def test_what_is_no_address_is_said_to_be(url):
    with pytest.raises(ConfigError, match="is no address; expected one such as http://127.0.0.1:8000/v1"):
        ChatServer(url)
