"""Attention of one token to kept rows, of which keys and values are made as they are read (K3 and K7 of the spec).

So a step attends to what passes keep instead of keys and values: keys before their rotation, values of which keys are
made, latents that are mapped to both. A row is read once for each key/value head that is made of it, and what is made
stays in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from regraft.codegen.kernels.attention import FAN, PROGRAMS, Attention, HeadNorm, Turn, padded
from regraft.codegen.kernels.kernel import Constant, Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Piece:
    """A part of a row, as the token's is made: heads side by side, or a number for each of them.

    Attributes:
        heads: How many heads it has.
        width: Channels of each.
        norm: What each is normed by.
        turned: Whether each turns as queries do.
        inverse: If not None, kept is one over each head's root mean square alone, this added to the mean square.
    """

    heads: int
    width: int
    norm: HeadNorm | None = None
    turned: bool = False
    inverse: float | None = None

    @property
    def channels(self) -> int:
        """Channels of the row that it takes."""
        return self.heads * (self.width if self.inverse is None else 1)


@dataclass(frozen=True)
class Made:
    """What keys or values are made of.

    Attributes:
        start: The first channel of a row.
        stop: The first that is none of them.
        mapped: Whether a map makes them of these channels; else the channels are theirs, head by head.
        biased: Whether something is added then.
    """

    start: int
    stop: int
    mapped: bool = False
    biased: bool = False

    @property
    def channels(self) -> int:
        """How many channels of a row they are made of."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class AttendRows(Attention):
    """Attention of one token to rows that are kept as they are, with keys and values made of each.

    Attributes:
        row: Channels of a row.
        keys: What keys are made of.
        values: What values are made of; of the same channels as keys where both are mapped.
        pieces: What the token's row is made of, part by part.
        turn: Rotation of queries.
        late: Whether keys turn when they are read, each by its own position; else they were kept turned.
        amplitude: What their cosines and sines are multiplied by then; all pairs turn if it is not 1.
        gain: Whether each channel of a key is multiplied by a number of its own, before it turns.
        factors: The first channel of numbers of which keys are multiplied by one; none if None.
        factor_heads: How many such numbers there are: one a key/value head, or dealt evenly to query heads.
        value_factors: The first channel of numbers of which each head's values are multiplied by one; none if None.
    """

    template: ClassVar[str] = "attend_rows.py.j2"
    row: int
    keys: Made
    values: Made
    pieces: tuple[Piece, ...] = ()
    late: bool = False
    amplitude: float = 1.0
    gain: bool = False
    factors: int | None = None
    factor_heads: int = 1
    value_factors: int | None = None

    @property
    def normed(self) -> bool:
        """Whether heads are normed here."""
        return self.q_norm is not None or any(piece.norm for piece in self.pieces)

    @property
    def alike(self) -> bool:
        """Whether keys are made of values, channel by channel."""
        return not self.keys.mapped and self.keys == self.values

    @property
    def pairs(self) -> int:
        """Pairs of channels that turn as they are read."""
        if not self.late or self.turn is None:
            return 0
        return self.turn.channels // 2 if self.turn.pairs is None else self.turn.pairs

    @property
    def plain(self) -> int:
        """Channels that are multiplied as they are made; where they are values too also those that turn, by zero."""
        return self.width if self.alike else self.width - 2 * self.pairs

    def plain_channel(self, at: str) -> str:
        """Return code for the channel of a key that number `at` of those is that do not turn."""
        if self.alike or not self.pairs or self.turn is None:
            return at
        code, taken, found = "", 0, 0
        for start, stop in [*self.turn.spans, (self.width, self.width)]:
            if start > found:
                one = f"{at} + {found - taken}" if found > taken else at
                code = one if not code else f"tl.where({at} < {taken}, {code}, {one})"
                taken += start - found
            found = stop
        return code or at

    def pair_channel(self, at: str, second: bool) -> str:
        """Return code for the first or the second channel of pair number `at`."""
        assert self.turn is not None
        start = self.turn.start
        if self.turn.layout == "halves":
            start += self.turn.channels // 2 if second else 0
            return f"{at} + {start}" if start else at
        return f"2 * {at} + {start + second}" if start + second else f"2 * {at}"

    @property
    def turns(self) -> str:
        """Code for whether channel c turns."""
        spans = () if self.turn is None else self.turn.spans
        return " | ".join(f"((c >= {start}) & (c < {stop}))" for start, stop in spans)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The op's tensors in order, those left out that this kernel has no use for.

        ``q [B, 1, Hq, D]``, ``cos`` and ``sin`` of the token's position, ``q_norm [D]``, ``piece_i [B, 1, H, W]`` and
        the weights of their norms, ``angles`` of a pair ``[C / 2]``, ``gain [D]``, ``k_map [Hkv D, R]`` and
        ``v_map [Hkv Dv, R]`` with biases, ``sink [Hq]``, ``rows [B, N, M]``, ``start [B]``.
        """
        written = list(enumerate(self.pieces)) if self.writes else []
        turning = self.turn is not None
        needed = {
            "q": True,
            "cos": turning,
            "sin": turning,
            "q_norm": self.q_norm is not None and self.q_norm.weighted,
            **{f"piece_{i}": True for i, _ in written},
            **{f"norm_{i}": piece.norm is not None and piece.norm.weighted for i, piece in written},
            "angles": self.late,
            "gain": self.gain,
            "k_map": self.keys.mapped,
            "k_bias": self.keys.biased,
            "v_map": self.values.mapped,
            "v_bias": self.values.biased,
            "sink": self.sink,
            "rows": True,
            "start": True,
        }
        return tuple(name for name, there in needed.items() if there)

    def tiles(self) -> Sequence[Tile]:
        """Return tiles; where rows are mapped a tile is long, so that the maps are read for many rows at a time."""
        heads = min(64, padded(self.group))
        blocks = self.kv_heads * -(-self.group // heads)
        wide = self.width + self.value_width
        if self.keys.mapped or self.values.mapped:
            cuts = [(64, 8, 2, 64), (64, 8, 2, 32), (64, 4, 2, 32), (32, 8, 2, 64), (32, 8, 2, 32), (16, 4, 1, 32)]
        elif wide <= 256:
            cuts = [(64, 4, 2, 0), (32, 4, 3, 0), (32, 4, 2, 0), (64, 8, 2, 0)]
        else:
            cuts = [(32, 8, 2, 0), (16, 8, 2, 0), (16, 4, 2, 0), (16, 8, 1, 0)]
        least = 64
        while least < min(256, 32 * blocks, self.seen // 8):
            least *= 2
        least = max(least, cuts[0][0])
        splits = max(1, min(-(-PROGRAMS // blocks), self.seen // least, FAN * FAN))
        sizes = {"HEADS": heads, "SPLITS": splits, "LEAST": least}
        more = [{"CHUNK": chunk} if chunk else {} for *_, chunk in cuts]
        return [Tile({**sizes, "ROWS": cut[0], **also}, cut[1], cut[2]) for cut, also in zip(cuts, more, strict=True)]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        types = dict.fromkeys(self.arguments, f"*{dtype}") | {"start": "*i64"}
        types |= {"angles": "*fp32"} if self.late else {}
        types |= {"heads": "*i32"} if self.head_map is not None else {}
        types |= {"out": f"*{dtype}", "parts": "*fp32", "weights": "*fp32", "counters": "*i32"}
        constants: dict[str, Constant] = {"SLOTS": self.slots}
        return (Entry(f"{self.name}_kernel", types, constants),)

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what one call moves: the rows seen once, maps once, the token's row, and the parts out and back in."""
        seen = context
        if self.window is not None and context > self.window:
            seen = self.window + min(self.first, context - self.window)
        looked = {*range(self.keys.start, self.keys.stop), *range(self.values.start, self.values.stop)}
        looked |= set() if self.factors is None else {*range(self.factors, self.factors + self.factor_heads)}
        looked |= (
            set() if self.value_factors is None else {*range(self.value_factors, self.value_factors + self.kv_heads)}
        )
        merged = self.merged_bytes(seen, batch)
        row = self.row * width if self.writes else 0
        maps = self._maps()
        own, shared = self._input_bytes(width)
        shared += sum(made * (part.channels + part.biased) for part, made in maps) * width
        products = sum(part.channels * made for part, made in maps) * -(-self.group // self.cut.sizes["HEADS"])
        return Moved(
            read=batch * (seen * len(looked) * width + own + merged) + shared,
            written=batch * (self.heads * self.value_width * width + row + merged),
            least=batch * (seen * len(looked) * width + row) + shared,
            flops=batch * 2 * seen * (self.heads * (self.width + self.value_width) + products),
        )

    def _maps(self) -> list[tuple[Made, int]]:
        """Return what is mapped, and to how many channels of all heads."""
        both = (self.keys, self.kv_heads * self.width), (self.values, self.kv_heads * self.value_width)
        return [(part, made) for part, made in both if part.mapped]

    def _input_bytes(self, width: int) -> tuple[int, int]:
        """Return the bytes of what each sequence brings, and of what all share, without maps."""
        turn = self.turn
        turning = 0 if turn is None else turn.channels * (2 if turn.layout == "halves" else 1)  # cosines and sines
        pieces = self.pieces if self.writes else ()
        own = self.heads * self.width + turning + sum(piece.heads * piece.width for piece in pieces)
        sizes = [piece.width for i, piece in enumerate(pieces) if f"norm_{i}" in self.arguments]
        sizes += [self.width * (name in self.arguments) for name in ("q_norm", "gain")]
        table = 4 * self.kv_heads * self.group if self.head_map is not None else 0
        return own * width + 8, (sum(sizes) + self.heads * self.sink) * width + 4 * self.pairs + table


def examples() -> list[Kernel]:
    """Return what passes make of known models at 128K: Qwen3-8B, Llama-3.1-8B, Gemma 4 31B."""
    sizes: dict[str, Any] = {"heads": 32, "kv_heads": 8, "width": 128, "value_width": 128, "slots": 131072}
    common: dict[str, Any] = {**sizes, "scale": 128**-0.5, "turn": Turn(128)}
    heads = Piece(8, 128)
    kept = AttendRows(
        name="kept_heads",
        **common,
        row=2048,
        keys=Made(0, 1024),
        values=Made(1024, 2048),
        pieces=(replace(heads, norm=HeadNorm(1e-6)), heads),
        q_norm=HeadNorm(1e-6),
        late=True,
    )
    mapped = Made(0, 1024, mapped=True)
    latent = replace(
        kept,
        name="kept_latent",
        row=1032,
        keys=mapped,
        values=mapped,
        pieces=(Piece(1, 1024), replace(heads, inverse=1e-6)),
        factors=1024,
        factor_heads=8,
    )
    reader = replace(latent, name="latent_reader", row=1024, pieces=(), factors=None, writes=False)
    merged = replace(
        kept,
        name="merged_heads",
        kv_heads=4,
        row=1032,
        keys=Made(0, 512),
        values=Made(512, 1024),
        pieces=(Piece(4, 128, turned=True), Piece(4, 128), replace(heads, inverse=1e-6)),
        late=False,
        factors=1024,
        factor_heads=8,
    )
    values = AttendRows(
        name="kept_values",
        heads=32,
        kv_heads=4,
        width=512,
        value_width=512,
        slots=131072,
        scale=1.0,
        row=2048,
        keys=Made(0, 2048),
        values=Made(0, 2048),
        pieces=(Piece(4, 512, HeadNorm(1e-6, weighted=False)),),
        q_norm=HeadNorm(1e-6),
        turn=Turn(512, pairs=64),
        late=True,
        gain=True,
    )
    return [kept, latent, reader, merged, values]
