"""An OpenAI-compatible server for a model, by a program that exists: ``transformers serve``, or llama.cpp's server.

    GGUF file          llama.cpp's own server, in the wheel xllamacpp       its template, streaming, a page to chat on
    folder, hub id     transformers serve
    adapter            merged into a temporary folder first (as it was trained), then transformers serve

cyllama, which runs GGUF files everywhere else here, has a server too; it ignores the chat template of the file.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError
from urllib.request import urlopen

from huggingface_hub.constants import HF_HUB_CACHE

from ...errors import ConfigError, MissingExtraError, ServerError
from ...export.gguf.llama_cpp import available_processors
from ...export.merge import merge_adapter
from ...export.named_model import find_model
from ...model.loading.gguf_header import check_gguf
from ...model.loading.untrusted_files import refuse_code_in_folder
from ...system.precision import best_precision

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
POLL_SECONDS = 0.2
# A server that was asked to end and has not by then is ended.
GRACE_SECONDS = 10
LOG_LINES = 20

NEEDED_BY_TRANSFORMERS = ("fastapi", "uvicorn", "openai")
# -P: a folder of the user's that is called like a package is not taken for it.
TRANSFORMERS = (sys.executable, "-P", "-m", "oddsmith.inference.serve.transformers_server")
LLAMA_CPP = (sys.executable, "-P", "-m", "oddsmith.inference.serve.llama_server")


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Args:
        url: What a client takes for its ``base_url``.
        model: What requests call the model.
        process: The program.
        log: What it says.
    """

    url: str
    model: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def wait(self) -> None:
        """Wait until the program ends, which it never does by itself.

        Raises:
            ServerError: It did.
        """
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
    """A server for a model, for as long as the block lasts.

    Args:
        name: A run, a model folder, an adapter, a hub id, ``builtin:...`` or a GGUF file.
        host: Address to listen on.
        port: Port to listen on.
        on_stage: Called with ``("merge", name)`` where an adapter is merged first, and ``("start", name)``.

    Yields:
        Server: Once it answers.

    Raises:
        ModelError: Nothing is there, or a damaged GGUF file.
        ConfigError: The port is taken, or there is no such address here.
        MissingExtraError: What the server needs is not installed.
        ServerError: The server does not start.
    """
    named = find_model(name)
    require_free(host, port)
    with ExitStack() as stack:
        if named.kind == "gguf":
            _require(("xllamacpp",), "serving a GGUF file")
            check_gguf(Path(named.place))
            model = Path(named.place).stem
            command, folder = [*LLAMA_CPP, str(Path(named.place).absolute()), host, str(port), model], None
        else:
            _require(NEEDED_BY_TRANSFORMERS, "serving a model folder")
            place = named.place
            refuse_code_in_folder(name, place, trust_remote_code=False)
            if named.kind == "adapter":
                on_stage("merge", name)
                above = stack.enter_context(tempfile.TemporaryDirectory(prefix="oddsmith-serve-"))
                place = str(Path(above) / (Path(name).expanduser().absolute().name or "model"))
                merge_adapter(name, Path(place), merge_into="dequantized")
            # From the folder above, so that the model is called by its folder's name and not by a path of this machine.
            folder = Path(place).absolute().parent if Path(place).is_dir() else None
            model = Path(place).absolute().name if folder else place
            with suppress(OSError):  # else its list of models, which looks into the hub's cache, is an error 500
                Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
            dtype = "auto" if best_precision().name == "bf16" else "float32"
            command = [*TRANSFORMERS, model, "--host", host, "--port", str(port), "--dtype", dtype]
        on_stage("start", name)
        log = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(_running(command, folder, log))
        reachable = f"http://{_reachable(host)}:{port}"
        _wait_until_ready(process, f"{reachable}/health", log)
        yield Server(f"{reachable}/v1", model, process, log)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_free(host: str, port: int) -> None:
    """Refuse an address that nothing can be served on.

    Args:
        host: The address.
        port: The port.

    Raises:
        ConfigError: It is taken, it is not one of this machine's, or it is none.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"port is {port}; expected a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"host {host!r}: no such address ({error.strerror}); expected one such as 127.0.0.1"
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        # As servers do on Unix, where a port may be waiting for stray packets after its last server has ended.
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"port {port} of {host} cannot be used: {reason.lower()}; choose another with --port"
            ) from error


def last_words(log: IO[bytes]) -> str:
    """The last line that a server said; that of its error, where a traceback or a stack of frames ends in one."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-LOG_LINES:] if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1]


@contextmanager
def _running(command: Sequence[str], folder: Path | None, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, ended with the block."""
    # Unless somebody decided otherwise: in a server every core works for one answer at a time.
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


def _reachable(host: str) -> str:
    """An address under which this machine reaches a server that listens on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _require(modules: Sequence[str], what: str) -> None:
    if any(importlib.util.find_spec(module) is None for module in modules):
        raise MissingExtraError(what, "serve")
