from __future__ import annotations

from pathlib import Path

import pytest

from speechquant.core.processor import Processor, read_processor

SAPPHIRE = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512_vnni avx512_bf16 amx_bf16 amx_int8\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\nflags\t\t: fpu\n"
HASWELL = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 fma\n"
ZEN4 = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512_vnni avx512_bf16\n"
ALDER_LAKE = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx_vnni\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n"


@pytest.mark.parametrize(
    ("text", "is_intel", "exact", "bfloat16"),
    [
        (SAPPHIRE, True, True, True),
        (HASWELL, True, False, False),
        (ZEN4, False, True, True),
        (ALDER_LAKE, True, True, False),
        (GRAVITON, False, False, False),
    ],
)
def test_vendor_and_instructions_are_read_from_linux(
    text: str, is_intel: bool, exact: bool, bfloat16: bool, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    processor = read_processor(tmp_path / "cpuinfo")
    assert processor.is_intel is is_intel
    assert processor.sums_byte_products_exactly is exact
    assert processor.has_bfloat16 is bfloat16


def test_elsewhere_nothing_is_known(tmp_path: Path) -> None:
    assert read_processor(tmp_path / "missing") == Processor(None, None)
