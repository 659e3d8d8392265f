"""`flm demo --web`: one local page that shows generation as it happens, one model or two side by side."""

import inspect
import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from flm.language_model import LanguageModel
from flm.serving.answers import error_body
from flm.serving.app import Server
from flm.serving.engine import Engine

PAGE = Path(__file__).with_name("page")
_POLICY = "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'"  # nothing from elsewhere


def sampler_option_names(lm: LanguageModel) -> list[str]:
    """Options of the model's sampler by name."""
    sampler = type(lm.algorithm.sampler(**lm.sampler_options()))
    return [name for name in inspect.signature(sampler).parameters if name != "self"]


def web_demo(engines: dict[str, Engine]) -> Starlette:
    """The page, and each engine's routes under m/0, m/1, ...; by name."""
    servers = [Server(engine, name) for name, engine in engines.items()]

    async def models(request: Request) -> Response:
        return JSONResponse({"models": [described(server) for server in servers]})

    async def count(request: Request) -> Response:
        """How many tokens a text is to the first model."""
        text = json.loads(await request.body()).get("text", "")
        if not isinstance(text, str) or len(text) > 100_000:
            return JSONResponse(error_body(400, "text: a text of at most 100,000 characters is needed"), 400)
        return JSONResponse({"tokens": len(servers[0].lm.tokenizer.encode(text))})

    async def page(request: Request) -> Response:
        return Response(
            (PAGE / "index.html").read_bytes(), media_type="text/html", headers={"Content-Security-Policy": _POLICY}
        )

    return Starlette(
        routes=[
            Route("/", page),
            Route("/models", models),
            Route("/count", count, methods=["POST"]),
            *(Mount(f"/m/{index}", server.app) for index, server in enumerate(servers)),
            Mount("/", StaticFiles(directory=PAGE)),
        ]
    )


def described(server: Server) -> dict[str, Any]:
    """What the page shows of a model."""
    lm = server.lm
    return {
        "name": server.name,
        "algorithm": type(lm.algorithm).__name__,
        "length": lm.length,
        "steps": lm.steps,
        "options": sampler_option_names(lm),
    }
