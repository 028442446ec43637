"""The form of a request: its texts, and the file in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from speechquant.serve.errors import ApiError

_MULTIPART = b"multipart/form-data"
_UTF8 = b"utf-8"
_FILE = "file"
_MOST_FIELDS, _MOST_FIELD_BYTES = 20, 16_384
# What may come behind the end of a form, which is nothing but a line break of most clients.
_TAIL_BYTES = 1024


async def form_of(request: Request) -> FormData:
    """Return the form in a request, which is to be closed; raises ApiError."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.strip().lower() != _MULTIPART:
        raise ApiError(415, f"Send {_MULTIPART.decode()}, with the audio in the field {_FILE}.")
    # The parser would decode fields by any codec of Python's that a client names.
    if options.get(b"charset", _UTF8).lower() != _UTF8:
        raise ApiError(415, "Send the fields of the form in UTF-8.")
    end = b"--" + options.get(b"boundary", b"") + b"--"
    try:
        async with aclosing(_whole(request, end)) as stream:
            return await MultiPartParser(
                request.headers,
                stream,
                max_files=1,
                max_fields=_MOST_FIELDS,
                max_part_size=_MOST_FIELD_BYTES,
            ).parse()
    except MultiPartException as error:
        raise ApiError(400, error.message) from error
    except ValueError as error:  # names that are none, and parts that are no parts
        raise ApiError(400, "The form cannot be read.") from error


async def _whole(request: Request, end: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body; raises MultiPartException where a form does not end in it.

    The parser leaves a file out whose part has no end, and does not close it.
    """
    tail = b""
    async for piece in request.stream():
        tail = (tail + piece)[-_TAIL_BYTES - len(end) :]
        yield piece
    if end not in tail:
        raise MultiPartException("The form is not whole: its last boundary is missing.")


def texts_in(form: FormData) -> dict[str, list[str]]:
    """Return the texts of a form by their fields."""
    texts: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str) and name != _FILE:
            texts.setdefault(name, []).append(value)
    return texts


def file_in(form: FormData) -> UploadFile:
    """Return the file of a form; raises ApiError."""
    uploads = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    if not uploads or uploads[0][0] != _FILE:
        raise ApiError(400, "There is no audio; send it as the field file.", field=_FILE)
    return uploads[0][1]
