"""Run ``transformers serve`` for one model: ``python -m oddsmith.inference.serve.transformers_server MODEL ...``.

Its own command would look for updates on the hub first, load whatever model a request names, and answer the pages of
any site.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from jinja2 import TemplateError
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers.cli.transformers import app
from uvicorn import Config

from ...data.templates.environment import guard_chat_templates
from ...system.signals import end_with_parent
from ...system.web_connections import bounded_config
from .access import Access, refused

# The others load models from forms, unload the one that is served, or list all that were ever downloaded.
ROUTES = ("/health", "/load_model", "/v1/chat/completions", "/v1/completions", "/v1/responses")
# What transformers' handlers raise for a request whose values have other types than they expect.
UNUSABLE = (TypeError, ValueError, LookupError, AttributeError, TemplateError)


def serve_only(model: str) -> None:
    """Make ``transformers serve``, which is started next in this process, serve one model, behind :class:`Access`."""
    uvicorn.Config = partial(_guarded, model)  # type: ignore[misc, assignment]


def _guarded(model: str, application: FastAPI, *, host: str, port: int, **settings: Any) -> Config:
    """Return the settings of uvicorn for transformers' application, in place of its own."""
    routes = [one for one in application.router.routes if isinstance(one, Route) and one.path in ROUTES]
    listed = {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": ""}]}
    application.router.routes = [*routes, Route("/v1/models", lambda request: JSONResponse(listed))]
    for kind in UNUSABLE:
        application.add_exception_handler(kind, _unusable)
    return bounded_config(Access(application, host, model), host=host, port=port)


async def _unusable(request: Request, error: Exception) -> Response:
    return refused(400, f"the request cannot be answered ({type(error).__name__}: {error})")


if __name__ == "__main__":
    end_with_parent()
    guard_chat_templates()
    serve_only(sys.argv[1])
    app(["serve", *sys.argv[1:]])
