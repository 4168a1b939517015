"""llama.cpp's own server as a program: ``python -m oddsmith.serve.llama_server FILE HOST PORT NAME``.

Ends with its parent, however that ends.
"""

from __future__ import annotations

import os
import sys
import time

import xllamacpp

LOOK_SECONDS = 1.0


def main(file: str, host: str, port: str, name: str) -> None:
    """Serve until the parent is gone.

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
    parent = os.getppid()
    server = xllamacpp.Server(parameters)
    while server is not None and os.getppid() == parent:
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
