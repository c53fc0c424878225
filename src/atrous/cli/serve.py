"""`atrous serve`: models over HTTP, with a page in the browser."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrous.cli.arguments import add_command, add_device, add_json, add_longest_side, add_output_stride
from atrous.cli.commands import complain, print_json, say

if TYPE_CHECKING:
    from atrous.serving.limits import Limits
    from atrous.serving.served import ServedModel

_LAST_PORT = 65535


def add(commands: Any) -> None:
    """Add the command."""
    text = "serve models over HTTP, with a page in the browser"
    parser = add_command(commands, "serve", run_serve, text, "atrous serve objects-mobilenetv2 street=runs/mine")
    text = "a name (atrous models), a run folder, a weight file, an exported file, or NAME=any of them; several are "
    text += "served side by side (default: everyday objects)"
    parser.add_argument("models", metavar="MODEL", nargs="*", help=text)
    text = "address to listen on; 0.0.0.0 for other machines to reach it (default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any free one (default: %(default)s)")
    parser.add_argument("-j", "--workers", type=int, help="threads that segment (default: one a core)")
    add_output_stride(parser)
    add_longest_side(parser)
    text = "refuse images of more pixels, by their header (default: 64000000)"
    parser.add_argument("--max-pixels", type=int, metavar="N", help=text)
    text = "refuse requests of more megabytes (default: 32)"
    parser.add_argument("--max-body", type=float, metavar="MB", help=text)
    text = "requests that may wait for a worker; further ones get 429 (default: 64)"
    parser.add_argument("--queue", type=int, metavar="N", help=text)
    text = "from the last byte of a request to its answer (default: 60)"
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help=text)
    text = "for requests that have begun when SIGTERM comes (default: 20)"
    parser.add_argument("--grace", type=float, metavar="SECONDS", help=text)
    text = "names in the Host header (default: this machine's loopback names, or any with another --host)"
    parser.add_argument("--allow-host", nargs="+", metavar="NAME", help=text)
    text = "other sites whose pages may ask, as https://example.org (default: none)"
    parser.add_argument("--allow-origin", nargs="+", default=[], metavar="ORIGIN", help=text)
    text = "folder of Label Studio's uploads, for tasks whose image is no data: URI"
    parser.add_argument("--label-studio-files", type=Path, metavar="DIR", help=text)
    add_device(parser)
    add_json(parser)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    try:
        import fastapi
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        return complain(f"the server needs {error.name}: pip install 'atrous[serve]'", 2)
    del fastapi
    from atrous.serving.app import create_app
    from atrous.serving.connections import build_server, listen
    from atrous.serving.gate import LOOPBACK, is_loopback
    from atrous.serving.service import Service

    limits = _limits(args)
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}, expected at least 1")
    if not 0 <= args.port <= _LAST_PORT:
        raise ValueError(f"--port is {args.port}, expected 0 to {_LAST_PORT}")
    if args.label_studio_files is not None and not args.label_studio_files.is_dir():
        raise FileNotFoundError(f"there is no folder {args.label_studio_files}, expected Label Studio's uploads")
    listener = listen(args.host, args.port)
    with contextlib.closing(listener):
        models = _load(args, limits.pixels)
        service = Service(models, limits, args.workers, args.label_studio_files)
        hosts = set(args.allow_host or ()) | LOOPBACK if args.allow_host or is_loopback(args.host) else None
        address = _address(args.host, listener.getsockname()[1])

        def ready() -> None:
            if args.json:
                print_json({"address": address, "models": list(models)})
            else:
                say(f"serving {', '.join(models)} on {address}")

        def draining() -> None:
            service.draining = True
            complain("stopping, once the requests that have begun are answered", 0)

        _log_to_stderr()
        app = create_app(service, hosts=hosts, origins=args.allow_origin)
        build_server(app, limits, ready, draining).run([listener])
    if not service.close():  # a thread in the middle of a network cannot be stopped
        sys.stderr.flush()
        os._exit(0)
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from atrous.serving.limits import Limits

    given = {
        "pixels": args.max_pixels, "queue": args.queue, "deadline": args.deadline, "grace": args.grace,
        "body_bytes": None if args.max_body is None else round(args.max_body * 1e6),
    }  # fmt: skip
    return Limits(**{key: value for key, value in given.items() if value is not None})


def _load(args: argparse.Namespace, max_pixels: int) -> dict[str, ServedModel]:
    """The models by name, the first being the default."""
    from atrous.models.exported import ExportedDeepLabV3
    from atrous.models.weights import ModelCard, read_card, resolve
    from atrous.prediction.predictor import DEFAULT_MODEL, Predictor
    from atrous.serving.served import ServedModel

    models: dict[str, ServedModel] = {}
    for word in args.models or [DEFAULT_MODEL]:
        name, source = _name_and_source(word)
        if name in models:
            raise ValueError(f"two models are named {name}; name one otherwise: other={source}")
        predictor = Predictor.load(
            source, device=args.device, output_stride=args.output_stride, longest_side=args.longest_side,
            max_pixels=max_pixels,
        )  # fmt: skip
        words = {}
        with contextlib.suppress(ValueError):  # a form of a model without a card of ours
            exported = predictor.model if isinstance(predictor.model, ExportedDeepLabV3) else None
            card = read_card(resolve(source)) if exported is None else ModelCard.from_json(exported.runtime.card)
            words = {"description": card.description, "licence": card.licence}
        models[name] = ServedModel.of(name, predictor, **words)
    return models


def _name_and_source(word: str) -> tuple[str, str]:
    """The name that a model is served under, and what `Predictor.load` takes."""
    name, equals, source = word.partition("=")
    if equals and not Path(word).exists():
        if not name.isprintable() or "/" in name or not name:
            raise ValueError(f"{name!r} is no name for a model; expected letters, digits and dashes")
        return name, source
    path = Path(word)
    path = path.parent if path.name == "model.safetensors" else path
    path = path.parent if path.name == "best" else path
    return path.resolve().stem if path.exists() else word, word


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _log_to_stderr() -> None:
    import logging

    from atrous.serving.gate import LOG

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
