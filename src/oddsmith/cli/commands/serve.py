"""``oddsmith serve``: serve a model to OpenAI-compatible clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..parsing.resolve import Option, resolve_word
from ..parsing.values import whole_number
from ..terminal.console import STARTING, quiet_libraries, say, working
from ..terminal.outcome import TRACEBACK, termination_as_interruption

USAGE = "oddsmith serve MODEL [--host 127.0.0.1] [--port 8080]"
INTRO = (
    "Serves a model to OpenAI-compatible clients until Ctrl-C: a run, a merged folder, an adapter or a hub id with"
    " `transformers serve`, a GGUF file with llama.cpp's server.",
)
OPTIONS = (
    Option("host", "value", "Address to listen on; any other can be reached by other machines. [127.0.0.1]", "ADDRESS"),
    Option("port", "value", "Port to listen on. [8080]", "N"),
    TRACEBACK,
)


def serve(arguments: Sequence[str]) -> int:
    """Run ``oddsmith serve`` until it is interrupted; return 0."""
    quiet_libraries()
    name, given = resolve_word(arguments, OPTIONS, "model", "oddsmith serve MODEL")
    port = whole_number(given, "port", 0)

    from ...inference.serve.needed import require_server_for
    from ...model.loading.first_look import look_at_model

    require_server_for(look_at_model(name))
    with working(STARTING):
        from ...inference.serve.server import DEFAULT_HOST, DEFAULT_PORT, serving
    from ...system.web_access import is_loopback

    host = given.get("host", DEFAULT_HOST)
    if not is_loopback(host):
        say(f"warning: {host} can be reached from other machines, and no password is asked for", "yellow")
    try:
        with (
            termination_as_interruption(),
            serving(name, host=host, port=port or DEFAULT_PORT, on_stage=_say_stage) as server,
        ):
            say(f"{server.model} is served at {server.url} (OpenAI-compatible); Ctrl-C ends it")
            server.wait()
    except KeyboardInterrupt:
        say("ended")
    return 0


def _say_stage(stage: str, detail: Any) -> None:
    say({"merge": f"merging {detail} into its base", "start": f"loading {detail}"}[stage])
