"""Run llama.cpp's own server: ``python -m oddsmith.inference.serve.llama_server FILE HOST PORT NAME``."""

from __future__ import annotations

import sys
import threading

import xllamacpp

from ...system.signals import end_with_parent


def main(file: str, host: str, port: str, name: str) -> None:
    """Serve a GGUF file until this process is ended; ``name`` is the model's name in requests."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.model_alias = {name}
    parameters.hostnames = [host]
    parameters.port = int(port)
    parameters.offline = True
    parameters.cors_origins = "localhost"  # else any page in the user's browser could use the model
    parameters.endpoint_slots = False  # would show the requests of other clients
    server = xllamacpp.Server(parameters)  # serves from its own threads while there is a reference to it
    while server is not None:
        threading.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    main(*sys.argv[1:])
