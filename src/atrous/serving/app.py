"""The HTTP service: segmentation for programs (`POST /predict` and others' protocols) and a page for people.

service = Service({"objects": ServedModel.of("objects", Predictor.load())}, Limits())
serve(create_app(service), listen("127.0.0.1", 8000), service.limits)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import atrous
from atrous.messages import did_you_mean
from atrous.prediction.demo import SCENES, bundled
from atrous.serving import huggingface, kserve, label_studio
from atrous.serving.answers import Options, json_response, render, wanted
from atrous.serving.errors import Problem, of_validation
from atrous.serving.gate import Gate, failure
from atrous.serving.inputs import image_and_options, json_object, media_type
from atrous.serving.served import ServedModel, find
from atrous.serving.service import Service
from atrous.serving.workers import ClientLeft

_PAGE = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in {
        400: "The body is not what its type says",
        404: "There is no such model",
        408: "The body comes too slowly",
        413: "Too many bytes, pixels or images",
        415: "No image of a known format",
        422: "A field is not valid, or the image is damaged",
        429: "The queue is full: retry after the seconds in Retry-After",
        503: "No worker was free in time, or the server is stopping",
        504: "The image takes too long",
    }.items()
}
_PROBLEM = {
    "type": "object",
    "required": ["error", "status"],
    "properties": {
        "error": {"type": "string", "description": "one sentence"},
        "status": {"type": "integer"},
        "field": {"type": "string", "description": "of the request that is to blame"},
        "found": {"type": "string"},
        "expected": {"type": "string"},
    },
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BASE64 = {"type": "string", "description": "base64, or a data: URI"}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result, as `answer` or `Accept` says",
        "content": {"application/json": {"schema": {"type": "object"}}, "image/png": _BINARY},
    }
}


async def _received(request: Request) -> AsyncIterator[bytes]:
    async with request.app.state.service.intake.body(request) as body:
        yield body


Body = Annotated[bytes, Depends(_received)]
"""The whole body of a request, within the limits."""


def create_app(service: Service, *, hosts: Collection[str] | None = None, origins: Collection[str] = ()) -> FastAPI:
    """Build the ASGI application.

    Args:
        service: models, workers, limits.
        hosts: names that a Host header may have; None for any.
        origins: of other sites whose pages may send requests.
    """
    app = FastAPI(
        title="atrous", version=atrous.__version__, docs_url=None, redoc_url=None,
        description="Semantic segmentation by DeepLabv3. Errors are JSON: what is wrong, in which field, what was "
        "found, what is expected.",
    )  # fmt: skip
    _add_errors(app)
    app.state.service = service
    _add_page(app)
    _add_health(app, service)
    _add_predict(app, service)
    _add_kserve(app, service)
    _add_label_studio(app, service)
    _describe_problem(app)
    _answer_head(app)
    app.add_middleware(Gate, metrics=service.metrics, hosts=hosts, origins=origins)
    return app


def _add_errors(app: FastAPI) -> None:
    async def of_problem(_: Request, error: Any) -> Response:
        response: Response = error.response()
        return response

    async def of_fields(_: Request, error: Any) -> Response:
        return of_validation(error.errors()).response()

    async def of_route(request: Request, error: Any) -> Response:
        known = sorted({route.path for route in app.routes if "{" not in getattr(route, "path", "{")})  # type: ignore[attr-defined]
        if error.status_code == 405:
            allowed = Headers(error.headers or {}).get("allow", "another method")
            return Problem(
                405, "this path takes another method", field="method", found=request.method, expected=allowed
            ).response()
        hint = did_you_mean(request.url.path, known, otherwise="")
        return Problem(
            404, f"there is no such path{hint}", field="path", expected="a path that /openapi.json lists"
        ).response()

    async def of_leaving(_: Request, __: Any) -> Response:
        return Response(status_code=499)  # nobody reads it; for the log

    async def of_anything(_: Request, error: Exception) -> Response:
        return failure(error).response()

    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        Problem: of_problem, RequestValidationError: of_fields, HTTPException: of_route,
        ClientDisconnect: of_leaving, ClientLeft: of_leaving, Exception: of_anything,
    }  # fmt: skip
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _describe_problem(app: FastAPI) -> None:
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _PROBLEM


def _answer_head(app: FastAPI) -> None:
    """HEAD wherever GET is, as HTTP wants it; after the description, which would have each operation twice."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def _add_page(app: FastAPI) -> None:
    def file(name: str) -> Response:
        content = (resources.files("atrous") / "serving" / "page" / name).read_bytes()
        return Response(content, media_type=_PAGE[name], headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in _PAGE:
            raise HTTPException(404)
        return file(name)

    @app.get("/examples", tags=["page"], summary="The photographs that the package carries")
    async def examples() -> list[dict[str, str]]:
        return [{"name": scene.photograph, "model": scene.model} for scene in SCENES]

    @app.get(
        "/examples/{name}", tags=["page"], summary="One of them", responses={200: {"content": {"image/jpeg": _BINARY}}}
    )
    async def example(name: str) -> Response:
        if name not in {scene.photograph for scene in SCENES}:
            raise HTTPException(404)
        return Response(bundled(name).read_bytes(), media_type="image/jpeg", headers={"cache-control": "max-age=3600"})


def _add_health(app: FastAPI, service: Service) -> None:
    def ready() -> Response:
        if service.draining:
            raise Problem(503, "the server is stopping", retry_after=5)
        return JSONResponse({"ready": True})

    @app.get("/health", tags=["health"], summary="Alive; Label Studio asks here, too")
    @app.get("/label-studio/{name}/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "atrous"}

    @app.get("/ready", tags=["health"], summary="Whether requests are taken: 200, or 503 while the server stops")
    async def is_ready() -> Response:
        return ready()

    @app.get("/v2/health/live", tags=["KServe v2"], summary="Alive")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["KServe v2"], summary="Whether requests are taken")
    async def v2_ready() -> Response:
        return ready()

    @app.get("/v2/models/{name}/ready", tags=["KServe v2"], summary="Whether a model takes requests")
    @app.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(name: str, version: str | None = None) -> Response:
        _find(service, name, version)
        return ready()

    @app.get("/metrics", tags=["health"], summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _find(service: Service, name: str, version: str | None = None) -> ServedModel:
    model = find(service.models, name)
    if version not in (None, model.version):
        raise Problem(404, "there is no such version", field="version", found=version, expected=model.version)
    return model


def _add_predict(app: FastAPI, service: Service) -> None:
    fields = {"type": "object", "required": ["image"], "properties": {"image": _BASE64}}
    form = {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "binary"}}}
    takes = _body({
        "image/*": _BINARY, "application/octet-stream": _BINARY, "multipart/form-data": {"schema": form},
        "application/json": {"schema": fields},
    })  # fmt: skip

    @app.post(
        "/predict", tags=["predict"], summary="Segment an image", responses={**_ERRORS, **_ANSWERS}, openapi_extra=takes
    )
    async def predict(request: Request, options: Annotated[Options, Query()], body: Body) -> Response:
        """The body is the content of an image file, or a form or JSON with one. Parameters go into the query, or into
        fields of the form or of the JSON. A body with `tasks` is Label Studio's, and is answered in its form.
        """
        if media_type(request.headers) == "application/json" and "tasks" in (document := json_object(body)):
            return await label_studio.predict(service, request, document, options.model)
        image, field, chosen = await image_and_options(body, request.headers, dict(request.query_params))
        model, answer = find(service.models, chosen.model), wanted(chosen, request.headers.get("accept", ""))
        chosen.chosen(model.predictor.labels)

        def finish(results: Any) -> Response:
            return render(results[0], answer, chosen, model.name)

        response: Response = await service.segment(
            request, model, [image], finish, chosen.output_stride, chosen.confidence, [field]
        )
        return response

    @app.get("/models", tags=["predict"], summary="The models, with their classes and colours")
    async def models() -> list[dict[str, Any]]:
        return [model.as_dict() for model in service.models.values()]

    @app.get("/models/{name}", tags=["predict"], summary="One of them", responses={404: _ERRORS[404]})
    async def model(name: str) -> dict[str, Any]:
        return find(service.models, name).as_dict()

    inputs = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": _BASE64, "parameters": {"type": "object"}},
    }

    takes = _body({"image/*": _BINARY, "application/json": {"schema": inputs}})
    text = "Segment an image, in Hugging Face's form"

    @app.post("/models/{name}", tags=["Hugging Face"], summary=text, responses=_ERRORS, openapi_extra=takes)
    @app.post("/", include_in_schema=False)
    async def hugging_face(request: Request, body: Body, name: str | None = None) -> Response:
        """Answers `[{"label", "score", "mask"}]`; a mask is base64 of a gray PNG, 255 where the class is."""
        image, field, threshold = huggingface.image_and_threshold(body, request.headers)

        def finish(results: Any) -> Response:
            return json_response(huggingface.segments(results[0], threshold))

        response: Response = await service.segment(
            request, find(service.models, name), [image], finish, confidence=True, fields=[field]
        )
        return response


def _add_kserve(app: FastAPI, service: Service) -> None:
    @app.get("/v2", tags=["KServe v2"], summary="Name, version and extensions of the server")
    async def server() -> dict[str, Any]:
        return kserve.server_metadata()

    @app.get(
        "/v2/models/{name}", tags=["KServe v2"], summary="Inputs and outputs of a model", responses={404: _ERRORS[404]}
    )
    @app.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return kserve.metadata(_find(service, name, version))

    takes = _body({"application/json": {"schema": {"type": "object"}}, "application/octet-stream": _BINARY})

    @app.post(
        "/v2/models/{name}/infer", tags=["KServe v2"], summary="Segment images", responses=_ERRORS, openapi_extra=takes
    )
    @app.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, body: Body, name: str, version: str | None = None) -> Response:
        """One input `image`: BYTES, the contents of image files (in JSON as base64, or by the binary extension), or
        UINT8 of H,W,3 or N,H,W,3. Outputs: `mask` (UINT8 N,H,W), `mask_png` (BYTES N), `areas` (FP32 N,K).
        """
        model = _find(service, name, version)
        asked = kserve.parse(body, request.headers, service.limits)

        def finish(results: Any) -> Response:
            return kserve.answer(results, asked, model)

        fields = [f"inputs.0.data.{place}" for place in range(len(asked.images))]
        response: Response = await service.segment(request, model, asked.images, finish, fields=fields)
        return response


def _add_label_studio(app: FastAPI, service: Service) -> None:
    takes = _body({"application/json": {"schema": {"type": "object"}}})

    @app.post("/setup", tags=["Label Studio"], summary="Check a project's labelling interface", openapi_extra=takes)
    @app.post("/label-studio/{name}/setup", include_in_schema=False)
    async def setup(body: Body, name: str | None = None) -> dict[str, str]:
        return label_studio.setup(find(service.models, name), json_object(body))

    @app.post(
        "/label-studio/{name}/predict", tags=["Label Studio"], summary="Predict tasks with a model", openapi_extra=takes
    )
    async def predict(request: Request, body: Body, name: str) -> Response:
        return await label_studio.predict(service, request, json_object(body), name)
