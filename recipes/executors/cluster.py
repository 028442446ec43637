"""The connection to a Ray cluster, or a Ray of this machine's own."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from speechquant.core.errors import MissingPackageError, OptionError

ADDRESS_VARIABLE = "RAY_ADDRESS"
# Results are small; a bundle and audio go through it once, and what does not fit goes to disk.
_OBJECT_STORE_BYTES = 256 << 20
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray 2.60 warns of where it is not set
}


def connected(address: str | None, cores: int) -> Any:
    """Return the module ray, connected to `address`, else RAY_ADDRESS, else one started here.

    It stays connected to the end of this process. One that is started here has room for `cores`.
    Raises MissingPackageError and OptionError.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get(ADDRESS_VARIABLE)
    ray = _imported(address)
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": max(cores, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = address
    with _signals_as_they_were():
        try:
            ray.init(**options)
        except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
            raise OptionError(
                f"{address or 'ray'}: no Ray cluster can be reached there ({error}); start one "
                'with "ray start --head", or mend the address; a cluster that asks for a token '
                "(Ray 2.60 does where it finds one in ~/.ray) needs RAY_AUTH_MODE=token"
            ) from error
    return ray


def _imported(address: str | None) -> Any:
    wanted = ["ray", *(["grpc"] if (address or "").startswith("ray://") else [])]
    if any(find_spec(name) is None for name in wanted):
        raise MissingPackageError(
            "the package ray[client] is not installed: pip install 'speechquant[cluster]'"
        )
    return import_module("ray")


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Keep Ray from answering the signals that this program answers."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
