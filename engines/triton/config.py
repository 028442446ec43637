"""The config.pbtxt of Triton's models, in protobuf's text format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, Union

CPU, GPU = "KIND_CPU", "KIND_GPU"
Value: TypeAlias = Union[str, int, bool, "Message", Sequence["Value"]]
Message: TypeAlias = Mapping[str, Value]


class Word(str):
    """A value of an enumeration, which is written without quotes."""


def tensor(name: str, kind: str, dims: Sequence[int], **more: Value) -> Message:
    """Return the description of an input or output; -1 is any size, `kind` such as FP32."""
    return {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": tuple(dims), **more}


def instances(count: int, kind: str) -> Message:
    """Return how many copies of a model run, and on what."""
    return {"count": count, "kind": Word(kind)}


def parameters(values: Mapping[str, str]) -> Sequence[Message]:
    """Return what a model is told when it is loaded."""
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def text_of(message: Message) -> str:
    """Return a message as protobuf's text format has it, a field a line."""
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, str | int):
            yield f"{name}: {_scalar(value)}"
        elif isinstance(value, Mapping):
            yield f"{name} {{"
            yield from (f"  {line}" for line in _lines(value))
            yield "}"
        else:
            for one in value:
                yield from _lines({name: one})


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Word | int):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
