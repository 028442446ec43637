"""What a request passes before it is read: the token, the limits, the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from speechquant.serve.errors import ApiError
from speechquant.serve.meters import Meters
from speechquant.serve.options import ServeOptions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_BEARER = "bearer"
# The page asks for the token itself; whoever looks whether the server lives need not know it.
_OPEN_PATHS = frozenset({"/", "/health"})
_AUDIO = "/v1/audio/"
# What is read of a body that is refused: a client that is cut off in it may never see why.
_DISCARDED_BYTES, _DISCARDED_SECONDS = 32_000_000, 2.0
_CLIENT_CLOSED = 499  # as nginx calls it; nobody sees it but the meters


class Gate:
    """Lets a request through to the app, or answers it."""

    def __init__(self, app: App, options: ServeOptions, meters: Meters) -> None:
        self._app, self._options, self._meters = app, options, meters
        self._token = None if options.token is None else options.token.encode()
        self._open = 0
        self.is_draining = False
        self.last_arrival = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether no request for a transcript is under way."""
        return self._open == 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.last_arrival = time.monotonic()
        is_audio = scope["path"].startswith(_AUDIO) and scope["method"] == "POST"
        try:
            self._check_token(scope)
            if is_audio:
                self._check_room(scope)
        except ApiError as error:
            if is_audio:
                self._meters.answered(error.status, 0.0)
            if int(_announced(scope) or 0) <= _DISCARDED_BYTES:
                await _discard(receive)
            await _answer(error)(scope, receive, send)
            return
        if is_audio:
            await self._counted(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _counted(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), _CLIENT_CLOSED

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._open += 1
        self._meters.opened(self._open)
        try:
            await self._app(scope, self._limited(receive), noting)
        except ClientDisconnect:
            status = _CLIENT_CLOSED
        finally:
            self._open -= 1
            self._meters.opened(self._open)
            self._meters.answered(status, time.monotonic() - started)

    def _check_token(self, scope: MutableMapping[str, Any]) -> None:
        if self._token is None or scope["path"] in _OPEN_PATHS:
            return
        scheme, _, given = _header(scope, b"authorization").partition(" ")
        # Compared as a whole, so that the time tells nothing of how much of it was right.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if scheme.lower() != _BEARER or not is_right:
            raise ApiError(
                401, "Incorrect API key provided; send the server's token.", code="invalid_api_key"
            )

    def _check_room(self, scope: MutableMapping[str, Any]) -> None:
        limits = self._options.limits
        if self.is_draining:
            raise ApiError(503, "The server is shutting down; ask another one.", code="draining")
        if int(_announced(scope) or 0) > limits.bytes:
            raise _too_large(limits.megabytes)
        if self._open >= limits.requests:
            raise ApiError(
                429,
                f"{self._open} requests are under way, as many as are taken; try again.",
                code="queue_full",
            )

    def _limited(self, receive: Receive) -> Receive:
        """Return what receives a body, unless it is too large or too slow."""
        limits = self._options.limits
        deadline = time.monotonic() + limits.body_seconds
        size, is_whole = 0, False

        async def limited() -> Message:
            nonlocal size, is_whole
            if is_whole:  # what comes next is the client's going away
                return await receive()
            wait = max(0.0, min(limits.idle_seconds, deadline - time.monotonic()))
            try:
                message = await asyncio.wait_for(receive(), wait)
            except asyncio.TimeoutError as error:
                raise ApiError(408, "The body came too slowly.", code="timeout") from error
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > limits.bytes:
                raise _too_large(limits.megabytes)
            return message

        return limited


def _header(scope: MutableMapping[str, Any], name: bytes) -> str:
    values: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if values else ""


def _announced(scope: MutableMapping[str, Any]) -> str:
    """Return the length of the body, "" where it is not told; h11 has checked that it is one."""
    return _header(scope, b"content-length")


def _too_large(megabytes: float) -> ApiError:
    return ApiError(
        413,
        f"The request is larger than {megabytes:g} MB, the most that is taken.",
        code="request_too_large",
    )


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, dict(error.headers))


async def _discard(receive: Receive) -> None:
    size = 0

    async def all_of_it() -> None:
        nonlocal size
        while size < _DISCARDED_BYTES:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                break

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(all_of_it(), _DISCARDED_SECONDS)
