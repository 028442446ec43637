"""What a client is told that cannot be served, in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_FIRST_SERVER_ERROR = 500
_RETRY_SECONDS = "1"
_TO_TRY_AGAIN = frozenset({429, 503})


class ApiError(Exception):
    """A request that is answered with `status`; `field` is the one that is wrong."""

    def __init__(
        self, status: int, message: str, *, field: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.field, self.code = status, field, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        is_ours = self.status >= _FIRST_SERVER_ERROR
        kind = "server_error" if is_ours else _KINDS.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.field, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> Mapping[str, str]:
        """What the answer says beside its body."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": _RETRY_SECONDS} if self.status in _TO_TRY_AGAIN else {}
