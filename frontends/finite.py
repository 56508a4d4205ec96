"""NaN and infinity in raw bytes, found at the speed of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from regraft.ir.source import Bytes

if TYPE_CHECKING:
    import numpy as np


class _Bits(NamedTuple):
    """A floating format: its integer's width, and the least magnitude that is no number."""

    width: int
    least: int


_BITS: dict[str, _Bits] = {
    "f64": _Bits(64, 0x7FF0_0000_0000_0000),
    "f32": _Bits(32, 0x7F80_0000),
    "f16": _Bits(16, 0x7C00),
    "bf16": _Bits(16, 0x7F80),
    "f8e5m2": _Bits(8, 0x7C),
    "f8e4m3": _Bits(8, 0x7F),
}


def all_finite(data: Bytes, dtype: str) -> bool:
    """Whether no element of ``data`` is NaN or infinite; integers always are finite.

    Two maxima suffice, and need no memory: read as signed integers, the largest is the largest positive number; read as
    unsigned ones, the negative number of the largest magnitude.
    """
    bits = _BITS.get(dtype)
    if bits is None:
        return dtype != "f8e8m0" or b"\xff" not in bytes(data)  # a power of two, NaN being 255
    if not len(data):
        return True
    import numpy as np

    signed = np.frombuffer(data, np.dtype(f"<i{bits.width // 8}"))
    unsigned = np.frombuffer(data, np.dtype(f"<u{bits.width // 8}"))
    return int(signed.max()) < bits.least and int(unsigned.max()) < bits.least + (1 << bits.width - 1)


def count_nonfinite(data: Bytes, dtype: str) -> int:
    """Return how many elements of ``data`` are NaN or infinite."""
    bits = _BITS.get(dtype)
    if bits is None:
        return bytes(data).count(b"\xff") if dtype == "f8e8m0" else 0
    import numpy as np

    unsigned: np.ndarray = np.frombuffer(data, np.dtype(f"<u{bits.width // 8}"))
    magnitude = unsigned & ((1 << bits.width - 1) - 1)
    return int(np.count_nonzero(magnitude >= bits.least))
