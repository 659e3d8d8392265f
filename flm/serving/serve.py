"""`flm serve [MODEL]`: the HTTP server as a command."""

import os
from collections.abc import Sequence

import flm
from flm.serving.limits import Limits
from flm.serving.listening import bound, run
from flm.text_commands import Arguments

BOXED = "builtin:text"  # comes with the package
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parser() -> Arguments:
    """The parser of the command. Defaults of limits are those of `Limits`."""
    found = Arguments(prog="flm serve", description="An OpenAI-style HTTP server for one model.")
    found.add_argument(
        "model", nargs="?", default=BOXED, help=f"a run, checkpoint, folder, artifact or hub name; default: {BOXED}"
    )
    found.add_argument("--host", default="127.0.0.1", help="another one than loopback lets other machines in")
    found.add_argument("--port", type=int, default=8000)
    found.add_argument("--name", help="what answers call the model; default: MODEL")
    found.add_argument("--device", help="cpu, cuda, ...; default: cuda where it is")
    found.add_argument("--api-key", default=os.environ.get("FLM_API_KEY"), help="asked of every request; default: $FLM_API_KEY")
    found.add_argument(
        "--chat-template", help="a Jinja file, or a folder that has one; default: the model folder's own, if any"
    )
    found.add_argument("--max-length", type=int, help="positions of a text; default: the model's length")
    limits = Limits()
    found.add_argument("--max-batch", type=int, default=limits.batch, help="texts made at once")
    found.add_argument("--max-queue", type=int, default=limits.queue, help="requests that wait")
    found.add_argument("--max-seconds", type=float, default=limits.seconds, help="from arrival to the last token")
    found.add_argument("--trusted-module", action="append", default=[], help="module whose model classes may be built")
    return found


def serve(arguments: Sequence[str]) -> int:
    """an OpenAI-style HTTP server for one model"""
    try:
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError("this needs two packages more: pip install starlette uvicorn") from error

    from flm.serving.app import Server
    from flm.serving.chat import chat_template
    from flm.serving.engine import Engine

    given = parser().parse_args(arguments)
    for name in ("max_length", "max_batch", "max_queue", "max_seconds"):
        value = getattr(given, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, not {value}")
    listening = bound(given.host, given.port)
    lm = flm.load(given.model, given.device, trusted_modules=given.trusted_module)
    lm.check_length(given.max_length or lm.length)
    template = chat_template(lm, given.chat_template)
    engine = Engine(lm, Limits(given.max_length, given.max_batch, given.max_queue, given.max_seconds))
    if given.host not in LOOPBACK and given.api_key is None:
        print(f"warning: {given.host} is open to other machines and no --api-key is set", flush=True)
    print(f"{lm!r} on http://{given.host}:{listening.getsockname()[1]}/v1", flush=True)
    try:
        server = Server(engine, given.name or given.model, given.api_key, template)
        run(server.app, listening)
    finally:
        engine.close()
    return 0
