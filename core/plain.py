"""Plain values, as JSON holds them, checked and turned back into the records they were made of."""

from __future__ import annotations

import json
import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

# Far more than any description has, and far less than Python can follow.
_DEEPEST = 64
_UNIONS = (Union, types.UnionType)

Record = TypeVar("Record")


def parsed(text: str) -> Any:
    """Return the value that a JSON text holds; raises ValueError, also where it is too deep."""
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level, depth = [document], 0
    while level:
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        level, depth = [child for value in level for child in _children(value)], depth + 1
    return document


def require_positive(**numbers: int | tuple[int, ...]) -> None:
    """Raise ValueError, naming it, for a number that is not above zero."""
    for name, value in numbers.items():
        if any(number <= 0 for number in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} is {reprlib.repr(value)}, it must be above zero")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def record_of(kind: type[Record], value: object, name: str = "it") -> Record:
    """Return the `kind` that `asdict` and JSON made `value` of; raises ValueError.

    Tuples, mappings, unions and other records in it are told by the annotations of its fields.
    """
    record: Record = value_of(kind, value, name)
    return record


def member_of(document: Mapping[str, Any], key: str, kind: Any) -> Any:
    """As `record_of`, for what an object has under `key`."""
    if key not in document:
        raise ValueError(f"it lacks {key!r}")
    return value_of(kind, document[key], key)


def value_of(kind: Any, value: Any, name: str) -> Any:
    """As `record_of`, for any annotation that a record's field may have."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _record(kind, value, name)
    if origin in _UNIONS:
        return _one_of(arguments, value, name)
    if origin is tuple:
        return _tuple(arguments, value, name)
    if origin is Mapping:
        rows = _checked(dict, value, name)
        return {key: value_of(arguments[1], row, f"{name}.{key}") for key, row in rows.items()}
    if kind is float:
        return _float(value, name)
    return _checked(kind, value, name)


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    rows = _checked(list, value, name)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(rows)
    if len(rows) != len(kinds):
        raise ValueError(f"{name} is {reprlib.repr(value)}")
    pairs = zip(kinds, rows, strict=True)
    return tuple(value_of(kind, row, f"{name}[{i}]") for i, (kind, row) in enumerate(pairs))


def _checked(kind: type, value: Any, name: str) -> Any:
    # To Python True is a number, to JSON it is none.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {reprlib.repr(value)}")
    return value


def _float(value: Any, name: str) -> float:
    if isinstance(value, float):
        return value
    try:
        return float(_checked(int, value, name))
    except OverflowError as error:
        raise ValueError(f"{name} is {reprlib.repr(value)}") from error


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    for kind in kinds:
        if kind is type(None):
            if value is None:
                return None
            continue
        try:
            return value_of(kind, value, name)
        except ValueError as error:
            reason = error
    raise reason


def _record(kind: Any, value: Any, name: str) -> Any:
    row, known = _checked(dict, value, name), _fields_of(kind)
    unknown = [key for key in row if key not in known]
    if unknown:
        raise ValueError(f"{name} has {reprlib.repr(unknown[0])}, which this version does not know")
    missing = [key for key, (field, _) in known.items() if key not in row and _is_needed(field)]
    if missing:
        raise ValueError(f"{name} lacks {missing[0]!r}")
    return kind(
        **{
            key: value_of(annotation, row[key], f"{name}.{key}")
            for key, (_, annotation) in known.items()
            if key in row
        }
    )


def _is_needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@cache
def _fields_of(kind: Any) -> dict[str, tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return {field.name: (field, hints[field.name]) for field in fields(kind)}
