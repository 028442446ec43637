"""The paths of the server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from speechquant.core.transcripts.records import Transcript
from speechquant.serve import answers
from speechquant.serve.errors import ApiError
from speechquant.serve.fields import TRANSLATE, Asked, asked_in, model_of
from speechquant.serve.forms import file_in, form_of, texts_in
from speechquant.serve.gate import Gate
from speechquant.serve.hearing import ClientGoneError, HeardClip, Waiting, begun, unless_gone
from speechquant.serve.meters import Meters
from speechquant.serve.models import ServedModel
from speechquant.serve.options import ServeOptions
from speechquant.serve.page import PAGE, PAGE_HEADERS

log = logging.getLogger(__name__)

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CLIENT_CLOSED = 499


def app_of(models: Mapping[str, ServedModel], options: ServeOptions, meters: Meters) -> Gate:
    """Return the server as an ASGI application."""
    # Its pages of documentation load scripts from elsewhere.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gate = Gate(app, options, meters)
    desk = _Desk(models, options, Waiting(options.limits))

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        return await desk.answer(request, None)

    @app.post("/v1/audio/translations")
    async def translations(request: Request) -> Response:
        return await desk.answer(request, TRANSLATE)

    @app.get("/v1/models")
    async def listed() -> Any:
        return {"object": "list", "data": [model.facts for model in models.values()]}

    @app.get("/v1/models/{name:path}")
    async def named(name: str) -> Any:
        return model_of(name, models).facts

    @app.get("/health")
    async def health() -> Response:
        state = "draining" if gate.is_draining else "ok"
        facts = {"status": state, "version": version("speechquant"), "models": list(models)}
        return JSONResponse(facts, 503 if gate.is_draining else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(meters.text(), media_type=_METRICS_TYPE)

    @app.get("/")
    async def page() -> Response:
        return Response(PAGE, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    _answer_errors(app)
    return gate


def _answer_errors(app: FastAPI) -> None:
    """Give every error OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return _refusal(error)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        return JSONResponse(ApiError(error.status_code, message).body, error.status_code)

    @app.exception_handler(ClientGoneError)
    async def gone(_: Request, error: ClientGoneError) -> Response:
        return Response(status_code=_CLIENT_CLOSED)


def _refusal(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, dict(error.headers))


@dataclass(frozen=True)
class _Desk:
    """What answers requests for transcripts."""

    models: Mapping[str, ServedModel]
    options: ServeOptions
    waiting: Waiting

    async def answer(self, request: Request, task: str | None) -> Response:
        """Return the answer to a form; raises ApiError and ClientGoneError."""
        try:
            return await self._answer(request, task)
        except (ApiError, ClientGoneError):
            raise
        except ClientDisconnect as error:
            raise ClientGoneError from error
        except Exception as error:
            log.exception("a request failed")
            raise ApiError(500, "The server failed on this request.") from error

    async def _answer(self, request: Request, task: str | None) -> Response:
        form = await form_of(request)
        try:
            asked = asked_in(texts_in(form), self.models, task)
            upload = file_in(form)
            beginning = begun(asked, upload.file, self.options.limits, self.waiting)
            clip = await unless_gone(beginning, lambda: _left(request))
        finally:
            await form.close()
        if asked.streams:
            return _EventStream(asked, clip)
        try:
            transcript = await unless_gone(clip.transcript(), lambda: _left(request))
        finally:
            clip.close()
        answer = answers.answer_of(asked, transcript, clip.seconds)
        return Response(answer.body, media_type=answer.media_type)


async def _left(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(asked: Asked, clip: HeardClip) -> AsyncIterator[str]:
    """Yield server-sent events; ends early where the client goes away."""
    deltas, heard = answers.DeltaEvents(asked, clip.seconds), Transcript("")
    try:
        async for heard in clip.transcripts():
            if event := deltas.event(heard):
                yield event
        yield answers.done_event(asked, heard, clip.seconds)
    except ApiError as error:
        yield answers.error_event(error.body)


class _EventStream(StreamingResponse):
    """Server-sent events of a clip, whose place is free afterwards, also where none was sent."""

    def __init__(self, asked: Asked, clip: HeardClip) -> None:
        super().__init__(_events(asked, clip), media_type=answers.EVENTS_TYPE)
        self._clip = clip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._clip.close()
