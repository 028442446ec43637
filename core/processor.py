"""What is known of this machine's processor: who made it and which instructions it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_INTEL = "GenuineIntel"
_BYTE_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True)
class Processor:
    """Its vendor, and its instruction sets as Linux names them; None where neither is told."""

    vendor: str | None = None
    instructions: frozenset[str] | None = None

    @property
    def is_intel(self) -> bool:
        """Whether it is known to be Intel's."""
        return self.vendor == _INTEL

    @property
    def sums_byte_products_exactly(self) -> bool:
        """Whether it is known to add up products of bytes in 32 bits (VNNI, AMX), not in 16."""
        return bool(_BYTE_PRODUCTS & (self.instructions or frozenset()))

    @property
    def has_bfloat16(self) -> bool:
        """Whether it is known to multiply bfloat16 (AVX512-BF16, AMX)."""
        return bool(_BFLOAT16 & (self.instructions or frozenset()))


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Return the first processor that Linux lists in `cpuinfo`, nothing known elsewhere."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Processor()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags")
    return Processor(fields.get("vendor_id"), None if flags is None else frozenset(flags.split()))
