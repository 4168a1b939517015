"""The servers of the monitor and of ``oddsmith serve``, in threads of this process, with their real connections."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from oddsmith.system.web_connections import bounded_config
from tests.command import save_model
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

TINY = {"seed": 198, "hidden_size": 64, "vocab_size": 258}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def in_thread(app: Any) -> Iterator[int]:
    """Serve an application as the commands do until the end of the block, which gets the port."""
    port = free_port()
    server = uvicorn.Server(bounded_config(app, host="127.0.0.1", port=port, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(port)
    yield port
    server.should_exit = True
    thread.join(20)


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(port)


@contextmanager
def transformers_server(folder: Path) -> Iterator[tuple[int, str, Callable[[], list[str]]]]:
    """Serve a tiny model with ``transformers serve``; yield port, name, and what lists the models in memory."""
    from transformers.cli.serve import Serve

    from oddsmith.inference.serve.transformers_server import serve_only

    model, port = str(save_model(folder / "model", **TINY)), free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Config", uvicorn.Config)  # put back afterwards
        serve_only(model)
        server = Serve(force_model=model, host="127.0.0.1", port=port, non_blocking=True)
    wait_for(port)
    yield port, model, lambda: list(server._model_manager.loaded_models)
    server.kill_server()


@contextmanager
def llama_server(folder: Path, file: Path | None = None) -> Iterator[tuple[int, str]]:
    """Serve a GGUF file, without one a tiny one, with llama.cpp's server; yield port and name."""
    from oddsmith.inference.serve.access import Access
    from oddsmith.inference.serve.llama_server import Forward, start

    file = file or write_gguf(folder / "tiny.gguf", tiny_model(**TINY), tiny_tokenizer(), merges=["Ā ā"])
    socket_file = str(folder / "llama.sock")
    llama = start(str(file), "tiny", socket_file)
    with in_thread(Access(Forward(socket_file), "127.0.0.1", "tiny")) as port:
        yield port, "tiny"
    del llama
