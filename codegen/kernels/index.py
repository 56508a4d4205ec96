"""K9: scores of a memory's keys by a few light heads, and the numbers of the best rows (specs/kernels.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile

CHUNK = 4096  # scores that a program chooses among
BINS = 2048  # of the histogram over the highest 11 bits of scores


@dataclass(frozen=True)
class Index(Kernel):
    """Constants of choosing rows by the keys of a memory, one shared by all heads or each by some (`seq.index`).

    Attributes:
        name: The custom op's.
        heads: Heads of a query.
        width: Channels of a head, and of a key.
        chosen: Rows chosen for a query.
        scale: What products are multiplied by.
        rate: Tokens that a row is made of; it is seen once all of them are there.
        window: Tokens that attention sees otherwise: rows are then those before them; None if rows are all.
        first: Tokens at the start whose rows are left out as well.
        turned: Channels of a query that turn here; keys turn where they are written. 0: queries come turned.
        offset: The first of these channels.
        layout: Which of them turn together: ``"halves"`` or ``"interleaved"``.
        writes: Whether the token's own key comes with the call, not turned yet, and is added to the memory, which holds
            one of every token.
        key_heads: Heads of a row's key; each is shared by as many heads of a query.
    """

    template: ClassVar[str] = "index.py.j2"
    name: str
    heads: int
    width: int
    chosen: int
    scale: float
    rate: int = 1
    window: int | None = None
    first: int = 0
    turned: int = 0
    offset: int = 0
    layout: str = "halves"
    writes: bool = False
    key_heads: int = 1

    def __post_init__(self) -> None:
        assert self.heads % self.key_heads == 0
        assert not self.writes or self.key_heads == 1
        assert not self.writes or (self.rate == 1 and self.window is None and not self.first)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The function's tensors in order, those left out that this kernel has no use for.

        ``q [B, T, H, D]``, ``weights [B, T, H]``, ``k [B, 1, 1, D]``, ``keys [B, N, G D]``, ``cos`` and ``sin``
        ``[B, T, 1, channels]``, or one number for each pair of interleaved channels, ``start [B]``. All are contiguous.
        """
        turn = ("cos", "sin") if self.turned else ()
        return ("q", "weights", *(("k",) if self.writes else ()), "keys", *turn, "start")

    @property
    def block_heads(self) -> int:
        """Heads of a tile: the power of two from 16 on."""
        return max(16, 1 << (self.heads // self.key_heads - 1).bit_length())

    @property
    def block_width(self) -> int:
        """Channels of a tile: the power of two from 16 on."""
        return max(16, 1 << (self.width - 1).bit_length())

    @property
    def chunk(self) -> int:
        """Scores that a program chooses among."""
        return CHUNK

    @property
    def bins(self) -> int:
        """Bins of the histogram that the scores' launch makes."""
        return BINS

    @property
    def steps(self) -> tuple[bool, ...]:
        """Whether scores are those of a step, where they may be of one or of many tokens."""
        return (True,) if self.writes else (True, False)

    def rows(self, tokens: int) -> int:
        """Return the rows that the last of so many tokens sees."""
        end = tokens if self.window is None else tokens - 1 - self.window + self.rate
        return max(0, end // self.rate - self.first // self.rate)

    def tiles(self) -> Sequence[Tile]:
        return [
            Tile({"BLOCK": 64}, warps=8),
            Tile({"BLOCK": 128}, warps=8),
            Tile({"BLOCK": 128}, warps=16),
            Tile({"BLOCK": 32}, warps=8),
        ]

    def entries(self, dtype: str) -> Sequence[Entry]:
        scores = {
            **dict.fromkeys(self.arguments, f"*{dtype}"),
            "start": "*i64",
            "scores": "*fp32",
            "state": "*i32",
            "first_token": "i32",
            "tokens": "i32",
            "T": "i32",
            "N": "i32",
        }
        choose = {"scores": "*fp32", "start": "*i64", "state": "*i32", "counts": "*i32", "lists": "*i32"}
        return [
            *(Entry(f"{self.name}_scores_kernel", scores, {"STEP": step}) for step in self.steps),
            Entry(f"{self.name}_choose_kernel", {**choose, "numbers": "*i64", "N": "i32"}, {"CHUNKS": 64}),
        ]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        rows = self.rows(context)
        own = self.width * width if self.writes else 0
        keys = rows * self.key_heads * self.width * width - own
        given = self.heads * (self.width + 1) * width + 2 * self._angles * width + own + 8 if rows else 8
        chosen = 8 * self.chosen
        read, written = given + keys + 8, 4 * rows + chosen + own
        if rows > self.chosen:  # a histogram, which is cleared again, and lists of what may be chosen
            chunks = -(-(context // self.rate) // CHUNK)
            read += 16 * -(-(self.first // self.rate + rows) // 4) + 4 * BINS + 4 * self.chosen + 8 * chunks
            written += 4 * (BINS + 1) + 4 * self.chosen + 8 * chunks
        return Moved(
            read=read * batch,
            written=written * batch,
            least=(given + keys + own + chosen) * batch,
            launches=2,
            flops=2 * rows * self.heads * self.width * batch,
        )

    @property
    def _angles(self) -> int:
        """Cosines of a token: halves have one for each channel, interleaved ones for each pair."""
        return self.turned if self.layout == "halves" else self.turned // 2


def examples() -> list[Kernel]:
    """Return the shapes of DeepSeek V4 Flash and Pro, of V3.2, and of a compressed Qwen3-8B."""
    flash = Index(
        "index_flash",
        heads=64,
        width=128,
        chosen=512,
        scale=128**-0.5,
        rate=4,
        turned=64,
        offset=64,
        layout="interleaved",
    )
    pro = replace(flash, name="index_pro", chosen=1024)
    latent = Index("index_v32", heads=64, width=128, chosen=2048, scale=128**-0.5, turned=64, writes=True)
    heads = Index("index_heads", heads=32, width=128, chosen=256, scale=128**-0.5, rate=4, window=131, key_heads=8)
    return [flash, pro, latent, heads]
