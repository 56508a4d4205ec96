"""K10: memories of a row for every few tokens (specs/kernels.md; specs/deepseek_v4.md, section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


def power_of_two(count: int) -> int:
    """Return the least power of two that is not below a count."""
    return 1 << (count - 1).bit_length()


@dataclass(frozen=True)
class Pooled(Kernel):
    """Constants of memories that are pooled alike, with the same start and at the same positions.

    Attributes:
        name: The custom op's.
        widths: Channels of a row of each memory: one for attention, one more for what chooses its rows.
        rate: Tokens of a window, which makes a row.
        overlap: Whether a row is also made of the window before.
        turning: Channels that turn, the last ones of a row, channel ``2 i`` with ``2 i + 1``.
        eps: Added to a row's mean square.
    """

    name: str
    widths: tuple[int, ...]
    rate: int
    overlap: bool
    turning: int
    eps: float = 1e-6

    def __post_init__(self) -> None:
        odd = any(width % 2 for width in self.widths) if self.turning else False
        if self.rate < 2 or odd or self.turning % 2 or self.turning > min(self.widths):
            raise ValueError(f"windows of {self.rate} tokens, {self.turning} channels of {self.widths} that turn")

    @property
    def slots(self) -> int:
        """Tokens of a window, up to a power of two."""
        return power_of_two(self.rate)

    @property
    def halves(self) -> int:
        """How many windows a token gives to."""
        return 2 if self.overlap else 1

    @property
    def labels(self) -> tuple[str, ...]:
        """What the names of each memory's tensors end in."""
        return ("",) if len(self.widths) == 1 else tuple(f"_{i}" for i in range(len(self.widths)))

    def weights(self, width: int) -> int:
        """Numbers that are trained: biases, and the norm's weight."""
        return (self.rate * self.halves + 1) * width


@dataclass(frozen=True)
class Compress(Pooled):
    """A step of one token: the tails keep it, and where it ends a window the row is pooled, normed and turned.

    The tails are those of target ``torch``: in float32, values then gates of the ``rate - 1`` tokens before, and with
    an overlap what the ``2 rate - 1`` tokens before give to the window after their own. Each token is in the slot that
    is its position modulo so many, so that a step that ends no window reads none.
    """

    template: ClassVar[str] = "compress.py.j2"

    @property
    def fields(self) -> list[str]:
        """Names of what it is given for each memory, without their labels."""
        return ["keys", "tail", *(["before"] if self.overlap else []), "values", "gates", "bias", "weight"]

    @property
    def turn(self) -> list[str]:
        """Names of what rows are turned by."""
        return ["cos", "sin"] if self.turning else []

    @property
    def given(self) -> list[str]:
        """Names of what it is given, in order."""
        return [*(f"{name}{label}" for label in self.labels for name in self.fields), *self.turn, "start", "count"]

    @property
    def changed(self) -> list[str]:
        """Names of what it changes."""
        kept = ("keys", "tail", "before")
        return [f"{name}{label}" for label in self.labels for name in self.fields if name in kept]

    @property
    def parameters(self) -> list[str]:
        """Names of what its function is given, in order: pooled rows before the norm, too, and counters."""
        each = (f"{name}{label}" for label in self.labels for name in [*self.fields, "pooled"])
        return [*each, *self.turn, "start", "count", "arrived", "rows"]

    def tiles(self) -> Sequence[Tile]:
        """Return channels of a program, few where windows are long: all their tokens are in registers at once."""
        if self.rate > 16:
            return [Tile({"BLOCK": block}, warps) for block, warps in ((16, 4), (32, 8), (16, 8), (8, 4))]
        return [Tile({"BLOCK": block}, warps) for block, warps in ((64, 2), (64, 1), (128, 4), (32, 1))]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        types = {"start": "*i64", "count": "*i64", "arrived": "*i32", "rows": "i32"}
        for label in self.labels:
            types |= {f"{name}{label}": "*fp32" for name in ("tail", "before", "pooled")}
        return [Entry(f"{self.name}_kernel", {name: types.get(name, f"*{dtype}") for name in self.parameters})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what a call moves that all sequences stand in alike; one in ``rate`` calls makes rows."""
        total, wide = sum(self.widths), 2 * 4  # values and gates
        ends = context % self.rate == 0
        tails = (self.rate - 1 + self.rate * self.overlap) * wide * total * batch
        line = wide * self.halves * total * batch  # the token, in the tails
        new = 2 * self.halves * total * width * batch
        made = total * width * batch if ends else 0
        trained = sum(map(self.weights, self.widths)) * width if ends else 0
        least = new + trained + made + line + (tails if ends else 0)
        at = 2 * 8 * batch
        if not ends:
            return Moved(new + at, line, least)
        passed = (4 * total + 4 * len(self.widths)) * batch  # pooled rows, and counters
        turn = self.turning * width * batch
        return Moved(new + tails + at + trained + turn + passed, line + made + passed, least + turn)


@dataclass(frozen=True)
class CompressPrefill(Pooled):
    """The rows of all windows that a call ends, a program each; the last one to read the tails brings them up to date.

    Attributes:
        kept: Whether there are tails, of which windows that the call continues are made.
    """

    kept: bool = True

    template: ClassVar[str] = "compress_prefill.py.j2"

    def tiles(self) -> Sequence[Tile]:
        """Return tokens that a program takes at once."""
        chunk = min(self.slots, 8)
        return [Tile({"CHUNK": chunk}, 4), Tile({"CHUNK": chunk}, 8), Tile({"CHUNK": max(chunk // 2, 1)}, 4)]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        arguments: dict[str, str] = {}
        tails = ("tail", "before")[: self.halves] if self.kept else ()
        for label in self.labels:
            x = dict.fromkeys(tails, "*fp32")
            x |= dict.fromkeys(("values", "gates", "bias", "weight", "rows"), f"*{dtype}")
            arguments |= {f"{name}{label}": type for name, type in x.items()}
        turn = {"cos": f"*{dtype}", "sin": f"*{dtype}"} if self.turning else {}
        rest = {"start": "*i64", "count": "*i64"} | ({"arrived": "*i32"} if self.kept else {})
        return [Entry(f"{self.name}_kernel", {**arguments, **turn, **rest, "length": "i32", "made": "i32"})]

    @property
    def tails(self) -> tuple[int, ...]:
        """Tokens in each tail."""
        return (self.rate - 1, 2 * self.rate - 1)[: self.halves] if self.kept else ()

    @property
    def changed(self) -> list[str]:
        """The arguments that a call changes."""
        names = ("tail", "before")[: len(self.tails)]
        return [f"{name}{label}" for label in self.labels for name in names]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what a call for whole sequences moves, from their start on."""
        total, ended, made = sum(self.widths), context // self.rate, -(-context // self.rate)
        shared = self.overlap and ended > 1  # a window has one before it
        used = ended + (ended - 1 if shared else 0)
        # tails keep what no window takes: of those that have not ended, and what the last one gives to the next
        late = [min(self.rate - 1, context - ended * self.rate)]
        late += [min(2 * self.rate - 1, context - max(ended - 1, 0) * self.rate)]
        taken = 2 * (used * self.rate + sum(late[: len(self.tails)])) * total * width * batch
        trained = (self.rate * (2 if shared else 1) + 1) * total * width if ended else 0
        turn, rows = self.turning * ended * width * batch, made * total * width * batch
        line = 2 * 4 * total * batch  # a token in a tail
        arrived = 4 * len(self.widths) * batch if self.kept else 0
        kept = line * sum(min(rows, context) for rows in self.tails)
        at = 2 * 8 * batch
        read = taken + trained + turn
        return Moved(read + at + arrived, rows + kept + arrived, read + rows + kept)


def examples() -> list[Kernel]:
    """Return the memories of the models that have some: DeepSeek V4 Flash and Pro, which are alike here."""
    return [
        Compress("every_4", (512, 128), 4, overlap=True, turning=64),
        Compress("every_128", (512,), 128, overlap=False, turning=64),
        CompressPrefill("every_4_prefill", (512, 128), 4, overlap=True, turning=64),
        CompressPrefill("every_128_prefill", (512,), 128, overlap=False, turning=64),
        CompressPrefill("every_4_alone", (512,), 4, overlap=True, turning=64, kept=False),
    ]
