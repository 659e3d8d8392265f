"""`flm demo --web`: a local page that shows one model, or two side by side, while they write texts and solve puzzles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from flm.checkpoints.recorded_corpus import recorded_corpus
from flm.language_model import LanguageModel
from flm.schema import signature_of
from flm.serving.answers import error_body
from flm.serving.app import Server
from flm.serving.engine import Engine

PAGE = Path(__file__).with_name("page")
HOLE = "."  # in the givens of a puzzle, as `flm.puzzles.rules.HOLE`
_POLICY = "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'"  # the browser loads nothing from elsewhere


def sampler_option_names(lm: LanguageModel) -> list[str]:
    """Names of the options of the model's sampler."""
    return list(signature_of(type(lm.algorithm.sampler(**lm.sampler_options()))).parameters)


def web_demo(engines: dict[str, Engine]) -> Starlette:
    """The page, and each engine's routes under /m/0, /m/1, ....

    Args:
        engines: by the name that the page shows.
    """
    servers = [Server(engine, name) for name, engine in engines.items()]
    boards = [board_of(server.lm) for server in servers]

    async def models(request: Request) -> Response:
        return JSONResponse({"models": [described(*pair) for pair in zip(servers, boards, strict=True)]})

    def asked(body: bytes) -> tuple[dict[str, Any], LanguageModel, Any]:
        """A request's fields, its model, and the model's board."""
        found = json.loads(body)
        index = found["model"]
        if not isinstance(index, int) or not 0 <= index < len(servers):
            raise ValueError(f"model: {index} is not in 0 ... {len(servers) - 1}")
        return found, servers[index].lm, boards[index]

    def guarded(answer: Callable[[dict[str, Any], LanguageModel, Any], dict[str, Any]]) -> Any:
        async def route(request: Request) -> Response:
            try:
                return JSONResponse(answer(*asked(await request.body())))
            except (ValueError, KeyError, TypeError) as error:
                return JSONResponse(error_body(400, " ".join(str(error).split())), 400)

        return route

    def solving(board: Any) -> Any:
        if board is None:
            raise ValueError("model: it solves no puzzles; choose one that was trained on boards, as builtin:puzzle")
        return board

    def count(found: dict[str, Any], lm: LanguageModel, board: Any) -> dict[str, Any]:
        """The number of tokens of a text."""
        if len(found["text"]) > 100_000:
            raise ValueError("text: at most 100,000 characters")
        return {"tokens": len(lm.tokenizer.encode(found["text"]))}

    def puzzle(found: dict[str, Any], lm: LanguageModel, board: Any) -> dict[str, Any]:
        """The cells of a held-out puzzle; "" if nothing is given."""
        puzzles = solving(board).puzzles("valid")
        givens = puzzles[found["seed"] % len(puzzles)].givens
        return {"cells": ["" if symbol == HOLE else symbol for symbol in givens]}

    def verdict(found: dict[str, Any], lm: LanguageModel, board: Any) -> dict[str, Any]:
        """Whether an answer keeps the rules and the clues."""
        return {"solved": solving(board).rules.check(found["givens"], found["answer"]).solved}

    async def page(request: Request) -> Response:
        return Response(
            (PAGE / "index.html").read_bytes(), media_type="text/html", headers={"Content-Security-Policy": _POLICY}
        )

    answers = {"count": count, "puzzle": puzzle, "check": verdict}
    return Starlette(
        routes=[
            Route("/", page),
            Route("/models", models),
            *(Route(f"/{name}", guarded(answer), methods=["POST"]) for name, answer in answers.items()),
            *(Mount(f"/m/{index}", server.app) for index, server in enumerate(servers)),
            Mount("/", StaticFiles(directory=PAGE)),
        ]
    )


def board_of(lm: LanguageModel) -> Any:
    """The corpus that the model was trained on, if its rows are boards with checkable answers; else None."""
    try:
        found = recorded_corpus(lm.config.get("data"))
    except (ValueError, OSError):
        return None
    board = getattr(found, "columns", None) is not None and getattr(found, "layout", None) == "holes"
    return found if board and lm.length % found.columns == 0 else None


def described(server: Server, board: Any) -> dict[str, Any]:
    """What the page shows of a model."""
    lm, grid = server.lm, None
    if board is not None:
        rows, columns = lm.length // board.columns, board.columns
        boxes = getattr(board.rules, "box_rows", rows), getattr(board.rules, "box_columns", columns)
        grid = {"rows": rows, "columns": columns, "boxRows": boxes[0], "boxColumns": boxes[1], "symbols": board.rules.symbols}
    return {
        "name": server.name,
        "algorithm": type(lm.algorithm).__name__,
        "length": lm.length,
        "steps": lm.steps,
        "options": sampler_option_names(lm),
        "grid": grid,
    }
