"""llama.cpp's own server as a program: ``python -m oddsmith.inference.serve.llama_server FILE HOST PORT NAME``."""

from __future__ import annotations

import sys
import threading

import xllamacpp

from ...system.parent_process import end_with_parent


def main(file: str, host: str, port: str, name: str) -> None:
    """Serve until this process is ended.

    Args:
        file: The GGUF file.
        host: Address to listen on.
        port: Port to listen on.
        name: What requests call the model.
    """
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.model_alias = {name}
    parameters.hostnames = [host]
    parameters.port = int(port)
    parameters.offline = True
    parameters.cors_origins = "localhost"  # else any page in the user's browser may ask the model
    parameters.endpoint_slots = False  # would show everybody what others ask
    server = xllamacpp.Server(parameters)  # serves from threads of its own, for as long as it is referred to
    while server is not None:
        threading.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    main(*sys.argv[1:])
