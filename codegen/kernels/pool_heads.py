"""Memories of a row for every few tokens, of keys and values by head (specs/kernels.md, K10; the pass compress-seq)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from regraft.codegen.kernels.attend_rows import Piece
from regraft.codegen.kernels.attention import HeadNorm, Turn, padded
from regraft.codegen.kernels.compress import power_of_two
from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class PoolHeads(Kernel):
    """A step of one token: the tails keep it, and where it ends a window the row is pooled. A program has a head.

    The tails are those of target ``torch``, in float32: of the ``rate - 1`` tokens before, and with an overlap what the
    ``2 rate - 1`` tokens before give to the window after their own, which are the same values.

    Attributes:
        name: The custom op's.
        pieces: What a token's row is made of: keys and values, or keys alone.
        rate: Tokens of a window.
        overlap: Whether a row is also made of the window before.
        gated: Whether tokens have gates of their own, beside those of their places.
        turn: How pieces turn that do so before they are pooled, and keys afterwards.
        late: Whether keys turn afterwards, by a position of the row's own.
    """

    template: ClassVar[str] = "pool_heads.py.j2"
    name: str
    pieces: tuple[Piece, ...]
    rate: int
    overlap: bool = False
    gated: bool = False
    turn: Turn | None = None
    late: bool = False

    @property
    def width(self) -> int:
        """Channels of a head of keys."""
        return self.pieces[0].width

    @property
    def total(self) -> int:
        """Channels of a row."""
        return sum(piece.channels for piece in self.pieces)

    @property
    def slots(self) -> int:
        """Tokens of a window, up to a power of two."""
        return power_of_two(self.rate)

    @property
    def normed(self) -> bool:
        """Whether heads are normed here."""
        return any(piece.norm for piece in self.pieces)

    @property
    def turned(self) -> bool:
        """Whether tokens turn."""
        return any(piece.turned for piece in self.pieces)

    def pad(self, count: int, least: int = 16) -> int:
        """Return the length of a vector of so many channels."""
        return padded(count, least)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The op's tensors in order, those left out that this kernel has no use for.

        For each piece ``rows_i [B, E, H, W]``; ``tail [B, R - 1, C]``, ``before [B, 2 R - 1, C]``, for each
        ``piece_i [B, 1, H, W]`` and ``norm_i [W]``; ``cos`` and ``sin`` of the token's position, ``row_cos`` and
        ``row_sin`` of the row's, ``gates [B, 1, L]``, ``bias [R, L]``, ``start [B]``, ``count [B]``.
        """
        numbers = range(len(self.pieces))
        needed = {
            **{f"rows_{i}": True for i in numbers},
            "tail": True,
            "before": self.overlap,
            **{f"piece_{i}": True for i in numbers},
            **{f"norm_{i}": piece.norm is not None and piece.norm.weighted for i, piece in enumerate(self.pieces)},
            "cos": self.turned,
            "sin": self.turned,
            "row_cos": self.late,
            "row_sin": self.late,
            "gates": self.gated,
            "bias": True,
            "start": True,
            "count": True,
        }
        return tuple(name for name, there in needed.items() if there)

    @property
    def changed(self) -> tuple[str, ...]:
        """The arguments that a call changes."""
        return tuple(name for name in self.arguments if name.startswith("rows_") or name in ("tail", "before"))

    def tiles(self) -> Sequence[Tile]:
        """Return how many warps a program has: all tokens of a window are in registers at once."""
        wide = self.slots * max(self.pad(piece.width) for piece in self.pieces)
        return [Tile({}, warps) for warps in ((2, 1, 4) if wide <= 1024 else (8, 16, 4))]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        known = {"tail": "*fp32", "before": "*fp32", "start": "*i64", "count": "*i64"}
        types = {name: known.get(name, f"*{dtype}") for name in self.arguments}
        return [Entry(f"{self.name}_kernel", {**types, "made": "i32"})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what a call moves that all sequences stand in alike; one in ``rate`` calls makes rows."""
        total, kinds = self.total, 1 + self.gated
        halves = 1 + self.overlap
        ends = context % self.rate == 0
        tails = 4 * kinds * total * (self.rate - 1 + self.rate * self.overlap) * batch if ends else 0
        line = 4 * kinds * halves * total * batch
        gates = halves * total * width * batch if self.gated else 0
        trained = self.rate * total * halves * width if ends else 0
        norms = sum(piece.width * width for i, piece in enumerate(self.pieces) if f"norm_{i}" in self.arguments)
        turning = 0 if self.turn is None else self.turn.channels * (2 if self.turn.layout == "halves" else 1)
        turn = turning * (self.turned + (self.late and ends)) * width * batch
        made = total * width * batch if ends else 0
        read = total * width * batch + gates + norms + turn + tails + trained
        return Moved(read + 16 * batch, line + made, read + line + made)


def examples() -> list[Kernel]:
    """Return the memories of Qwen3-8B and Llama-3.1-8B, compressed in both of V4's ways."""
    heads: dict[str, Any] = {"norm": HeadNorm(1e-6), "turned": True}
    qwen = PoolHeads("every_4", (Piece(8, 128, **heads), Piece(8, 128)), 4, overlap=True, gated=True, turn=Turn(128))
    llama = replace(qwen, name="every_128", pieces=(Piece(8, 128), Piece(8, 128)), rate=128, overlap=False, late=True)
    return [qwen, llama]
