"""What a compiled kernel's assembly says about it."""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_PTX_LOAD = re.compile(r"\bld\.(?:\w+\.)*?global[\w.:]*?(?:\.v(\d))?\.[busf](\d+)\b")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared[\w:]*\.global[\w.:]*\s[^;]*?\],\s*(0x[0-9a-f]+|\d+)")
_PTX_BULK = re.compile(r"\bcp\.async\.bulk\.(?:tensor\.\dd\.)?shared")
_PTX_MATRIX = re.compile(r"\b(wgmma|mma\.sync|tcgen05\.mma)\b(?!\.\w*(?:wait|commit|fence))")
_AMD_LOAD = re.compile(r"^\s*(?:global|buffer|flat)_load_(?:lds_)?(\w+)\b(.*)$", re.MULTILINE)
_LOAD = re.compile(r"\btt\.load .*: tensor<((?:\d+x)+)!tt\.ptr<[a-zE]+(\d+)\w*>>")
_DOT = re.compile(r"\btt\.dot .*: tensor<((?:\d+x)+)\w+> \* tensor<(?:\d+x)*?(\d+)x[a-z]\w*> ->")
_AMD_WIDE = ("dwordx4", "b128")


@dataclass(frozen=True)
class Listing:
    """Instructions of a kernel, counted where they stand, not how often they run.

    Attributes:
        wide_loads: Loads from global memory of at least 16 bytes a thread, those straight to shared memory included.
        narrow_loads: The others.
        copies: Asynchronous copies from global to shared memory.
        matrix: Matrix instructions by unit: ``wgmma``, ``mma.sync``, ``tcgen05.mma``, ``mfma``.
    """

    wide_loads: int
    narrow_loads: int
    copies: int
    matrix: dict[str, int]


def read_ptx(text: str) -> Listing:
    """Return what PTX holds."""
    text = re.sub(r"//.*", "", text)
    loads = [int(lanes or 1) * int(bits) // 8 for lanes, bits in _PTX_LOAD.findall(text)]
    copies = [int(size, 0) for size in _PTX_COPY.findall(text)]
    bulk = len(_PTX_BULK.findall(text))
    wide = sum(size >= 16 for size in (*loads, *copies)) + bulk
    matrix = Counter(
        unit
        for line in text.splitlines()
        for unit in _PTX_MATRIX.findall(line)
        if unit != "wgmma" or "wgmma.mma_async" in line
    )
    return Listing(wide, len(loads) + len(copies) + bulk - wide, len(copies) + bulk, dict(sorted(matrix.items())))


def read_amdgcn(text: str) -> Listing:
    """Return what the assembly of an AMD GPU holds."""
    loads = _AMD_LOAD.findall(text)
    wide = sum(width in _AMD_WIDE for width, _ in loads)
    copies = sum(rest.rstrip().endswith(" lds") for _, rest in loads) + len(re.findall(r"_load_lds_", text))
    mfma = len(re.findall(r"^\s*v_mfma_", text, re.MULTILINE))
    return Listing(wide, len(loads) - wide, copies, {"mfma": mfma} if mfma else {})


def read_loop(ttir: str) -> tuple[int, int]:
    """Return the bytes that a step of a program loads, and its operations, in the loop that multiplies most.

    Both are 0 if no loop multiplies matrices.
    """
    open_loops: list[tuple[int, str]] = []  # indentation and header, which tells them apart
    loaded: Counter[str] = Counter()
    multiplied: Counter[str] = Counter()
    for line in ttir.splitlines():
        indent = len(line) - len(line.lstrip())
        while open_loops and indent <= open_loops[-1][0]:
            open_loops.pop()
        here = open_loops[-1][1] if open_loops else ""
        if here and (load := _LOAD.search(line)):
            loaded[here] += _product(load[1]) * int(load[2]) // 8
        if here and (dot := _DOT.search(line)):
            multiplied[here] += 2 * _product(dot[1]) * int(dot[2])
        if "scf.for " in line:
            open_loops.append((indent, line))
    if not multiplied:
        return 0, 0
    most = max(multiplied, key=lambda header: multiplied[header])
    return loaded[most], multiplied[most]


def _product(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split("x") if size)


def amd_registers(text: str) -> tuple[int, int]:
    """Return the vector registers of a thread and the bytes of its stack, in which spilled registers lie."""
    stack = max(_field(text, "private_segment_fixed_size"), 4 * _field(text, "vgpr_spill_count"))
    return _field(text, "vgpr_count"), stack


def nvidia_registers(usage: str) -> tuple[int, int]:
    """Return the same from what ``cuobjdump -res-usage`` printed."""
    found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    return found["REG"], found["STACK"]


def text_bytes(binary: bytes) -> int:
    """Return the bytes of machine code of a 64-bit ELF file."""
    return sum(size for name, size in _sections(binary) if name.startswith(b".text"))


def _field(text: str, name: str) -> int:
    found = re.search(rf"^\s*(?:- )?\.{name}:\s*(\d+)\s*$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _sections(binary: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the names and sizes of an ELF file's sections."""
    (table,) = struct.unpack_from("<Q", binary, 0x28)
    size, count, names = struct.unpack_from("<HHH", binary, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", binary, table + size * index) for index in range(count)]
    start = headers[names][4]
    for name, _, _, _, _, length in headers:
        yield binary[start + name : binary.index(b"\0", start + name)], length
