"""Run an OpenAI-compatible server for a model: ``transformers serve``, or llama.cpp's server.

    GGUF file          llama.cpp's own server, in the wheel xllamacpp       its template, streaming, a page to chat on
    folder, hub id     transformers serve
    adapter            merged into a temporary folder first (as it was trained), then transformers serve

cyllama, which runs GGUF files elsewhere in Oddsmith, has a server too, but it ignores the chat template of the file.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ...errors import ConfigError, ServerError
from ...export.gguf.llama_cpp import available_processors, load_failure
from ...export.gguf.trial import require_survivable
from ...export.merge import merge_adapter
from ...export.named_model import find_model
from ...model.computing import require_finite_files
from ...model.loading.gguf_header import check_gguf
from ...model.loading.untrusted_files import refuse_code_in_folder
from ...system.own_processes import run_module
from ...system.precision import dtype_to_answer
from .needed import require_server_for

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
POLL_SECONDS = 0.2
GRACE_SECONDS = 10  # after which a server that was asked to end is killed
LOG_LINES = 20

TRANSFORMERS = run_module("oddsmith.inference.serve.transformers_server")
LLAMA_CPP = run_module("oddsmith.inference.serve.llama_server")


@dataclass(frozen=True)
class Server:
    """A running server: the ``base_url`` for clients, the model's name in requests, the process and its output."""

    url: str
    model: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def wait(self) -> None:
        """Wait until the program ends, which is an error: raise ``ServerError``."""
        self.process.wait()
        raise ServerError(f"the server ended by itself (exit code {self.process.returncode}): {last_words(self.log)}")


@contextmanager
def serving(
    name: str,
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    on_stage: Callable[[str, Any], None] = lambda stage, detail: None,
) -> Iterator[Server]:
    """Run a server for a model until the end of the block.

    Args:
        name: A run, a model folder, an adapter, a hub id, ``builtin:...`` or a GGUF file.
        host: Address to listen on.
        port: Port to listen on.
        on_stage: Called with ``("merge", name)`` where an adapter is merged first, and ``("start", name)``.

    Yields:
        Server: As soon as it answers.

    Raises:
        ModelError: Nothing is there, or a damaged GGUF file.
        ConfigError: The port is taken, or there is no such address here.
        MissingExtraError: What the server needs is not installed.
        ServerError: The server does not start.
    """
    named = find_model(name)
    require_server_for(named.place)
    require_free(host, port)
    with ExitStack() as stack:
        if named.kind == "gguf":
            check_gguf(Path(named.place))
            require_survivable(Path(named.place))
            model = Path(named.place).stem
            place = str(Path(named.place).absolute())
            inside = stack.enter_context(tempfile.TemporaryDirectory(prefix="oddsmith-serve-"))
            command, folder = [*LLAMA_CPP, place, host, str(port), model, f"{inside}/llama.sock"], None
        else:
            place = named.place
            refuse_code_in_folder(name, place, trust_remote_code=False)
            if named.kind == "adapter":
                on_stage("merge", name)
                above = stack.enter_context(tempfile.TemporaryDirectory(prefix="oddsmith-serve-"))
                place = str(Path(above) / (Path(name).expanduser().absolute().name or "model"))
                merge_adapter(name, Path(place), merge_into="dequantized")
            elif Path(place).is_dir():
                require_finite_files(name, Path(place))
            # Started in the folder above, so that the model's name is that of its folder and no path of this machine.
            folder = Path(place).absolute().parent if Path(place).is_dir() else None
            model = Path(place).absolute().name if folder else place
            command = [*TRANSFORMERS, model, "--host", host, "--port", str(port), "--dtype", dtype_to_answer()]
        on_stage("start", name)
        log = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(_running(command, folder, log))
        reachable = f"http://{_reachable(host)}:{port}"
        _wait_until_ready(process, f"{reachable}/health", log)
        _require_guard(f"{reachable}/health")
        yield Server(f"{reachable}/v1", model, process, log)


def require_free(host: str, port: int) -> None:
    """Raise ``ConfigError`` if host and port cannot be served on: taken, of another machine, or invalid."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"port is {port}; expected a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"host {host!r}: no such address ({error.strerror}); expected one such as 127.0.0.1"
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        # As servers do, because a port stays reserved for a while after its last server has ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"port {port} of {host} cannot be used: {reason.lower()}; choose another with --port"
            ) from error


def last_words(log: IO[bytes]) -> str:
    """Return why llama.cpp could not load a file, else the last line that names an error, else the last line."""
    log.seek(0)
    text = log.read().decode(errors="replace")
    if failure := load_failure(text, "xllamacpp"):
        return failure
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines[-LOG_LINES:] if "error" in line.lower()]
    return (errors or lines or ["no output"])[-1]


@contextmanager
def _running(command: Sequence[str], folder: Path | None, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the background until the end of the block."""
    # All cores work for one answer at a time, unless the user has set another number.
    environment = {"OMP_NUM_THREADS": str(available_processors())} | dict(os.environ)
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    while process.poll() is None:
        try:
            with urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (URLError, OSError):  # not yet; llama.cpp says 503 while it loads
            time.sleep(POLL_SECONDS)
    raise ServerError(f"the server did not start (exit code {process.returncode}): {last_words(log)}")


def _require_guard(url: str) -> None:
    """Raise ``ServerError`` if the server answers under a name that is not its own: another version may build it so."""
    try:
        with urlopen(Request(url, headers={"host": "rebound.invalid"}), timeout=5):
            pass
    except HTTPError as error:
        if error.code == 403:
            return
    raise ServerError("the server would answer the web pages of any site; install the versions of oddsmith[serve]")


def _reachable(host: str) -> str:
    """Return an address under which this machine reaches a server that listens on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
