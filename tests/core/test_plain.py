from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from speechquant.core.plain import member_of, parsed, record_of, require_positive, value_of


@dataclass(frozen=True)
class Inner:
    name: str
    dims: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Outer:
    rows: tuple[Inner, ...]
    by_name: Mapping[str, Inner]
    pair: tuple[int, int | None]
    share: float
    is_new: bool
    note: str | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)


OUTER = Outer(
    (Inner("a", ("batch", 3)), Inner("b")),
    {"c": Inner("c", (1,))},
    (1, None),
    0.5,
    True,
    "x",
    {"y": [1]},
)


def plain(record: Outer = OUTER) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return document


def test_a_record_comes_back_as_it_was() -> None:
    assert record_of(Outer, plain()) == OUTER
    document = plain()
    del document["note"], document["rest"]  # they have defaults
    assert record_of(Outer, document).rest == {}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), 3, "it is 3"),
        ((), None, "it is None"),
        (("rows",), {}, r"it\.rows is {}"),
        (("rows", 1), "b", r"it\.rows\[1\] is 'b'"),
        (("rows", 1, "name"), 7, r"it\.rows\[1\]\.name is 7"),
        (("rows", 0, "dims", 1), 1.5, r"it\.rows\[0\]\.dims\[1\] is 1\.5"),
        (("rows", 0, "dims", 1), None, r"it\.rows\[0\]\.dims\[1\] is None"),
        (("rows", 0, "dims", 1), True, r"it\.rows\[0\]\.dims\[1\] is True"),
        (("by_name",), [], r"it\.by_name is \[\]"),
        (("by_name", "c"), "c", r"it\.by_name\.c is 'c'"),
        (("pair",), [1], r"it\.pair is \[1\]"),
        (("pair",), [1, 2, 3], r"it\.pair is \[1, 2, 3\]"),
        (("share",), "0.5", r"it\.share is '0\.5'"),
        (("share",), True, r"it\.share is True"),
        (("share",), 10**400, r"it\.share is 1000"),
        (("is_new",), 1, r"it\.is_new is 1"),
        (("note",), 1, r"it\.note is 1"),
        (("rest",), None, r"it\.rest is None"),
        (("surprise",), 1, r"it has 'surprise', which this version does not know"),
        (("rows", 0, "x" * 500), 1, r"it\.rows\[0\] has 'xxx.*\.\.\..*xxx', which"),
    ],
)
def test_what_is_off_is_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    document: Any = {"it": plain()}
    place: Any = document
    for key in ("it", *path)[:-1]:
        place = place[key]
    place[("it", *path)[-1]] = value
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        record_of(Outer, document["it"])
    assert len(str(caught.value)) < 100


def test_what_is_missing_is_named() -> None:
    document = plain()
    del document["by_name"]["c"]["name"]
    with pytest.raises(ValueError, match=r"^it\.by_name\.c lacks 'name'$"):
        record_of(Outer, document)
    with pytest.raises(ValueError, match=r"^it lacks 'x'$"):
        member_of({}, "x", int)
    assert member_of({"x": 1}, "x", int) == 1


def test_whole_numbers_are_floats_too() -> None:
    found = value_of(float, 3, "x")
    assert (found, type(found)) == (3.0, float)
    assert math.isnan(value_of(float, float("nan"), "x"))


def test_a_union_takes_the_first_that_fits() -> None:
    assert value_of(int | tuple[int, ...], 3, "x") == 3
    assert value_of(int | tuple[int, ...], [3], "x") == (3,)
    with pytest.raises(ValueError, match=r"^x\[0\] is 'a'$"):
        value_of(int | tuple[int, ...], ["a"], "x")


@pytest.mark.parametrize("depth", [70, 900, 100_000])
@pytest.mark.parametrize("ends", ["[]", ('{"a":', "}")])
def test_what_is_nested_too_deeply_is_no_value(depth: int, ends: tuple[str, str]) -> None:
    inside = "1" if ends[0] != "[" else ""
    with pytest.raises(ValueError, match="nested too deeply"):
        parsed(ends[0] * depth + inside + ends[1] * depth)
    parsed(ends[0] * 60 + inside + ends[1] * 60)


@pytest.mark.parametrize("text", ["", "{", "nul", "9" * 5000, "[1,]"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        parsed(text)


def test_numbers_above_zero() -> None:
    require_positive(rate=1, sizes=(1, 2), none=())
    with pytest.raises(ValueError, match=r"^rate is 0, it must be above zero$"):
        require_positive(sizes=(1,), rate=0)
    with pytest.raises(ValueError, match=r"^sizes is \(3, -1\), it must be above zero$"):
        require_positive(sizes=(3, -1))
