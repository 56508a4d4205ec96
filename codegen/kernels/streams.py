"""K4: what stands between two sublayers of residual streams (specs/kernels.md; specs/deepseek_v4.md, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile
from regraft.codegen.kernels.route import Route

RESIDENT = 264  # programs that an H100 holds at once, two on a processor
_OF_ROUTE = {"norm_weight": "router_norm", "weight": "router", "weight_bias": "router_bias"}


@dataclass(frozen=True)
class Streams(Kernel):
    """The boundary of a step: write one sublayer's result to the streams, read the next one's input; in one launch.

    A router of what is read may ride in it (specs/kernels.md, K2): programs of their own map each stream to experts as
    it is written, and the last one adds these up by the shares that it finds, since what is read is a sum of streams.
    It chooses by what is read before that is rounded.

    Attributes:
        name: The custom op's.
        streams: Residual streams.
        width: Channels of each.
        comes: Where the streams come from: ``whole``, they are given; ``written``, a result is added to those before;
            ``spread``, each is a copy of a token's embedding.
        gives: What is read: ``maps``, an input and the maps to write back by; ``collapsed``, one stream after the last
            layer; ``none``, nothing.
        eps: Added to the mean square of a token's streams.
        floor: Added to shares and sums.
        iterations: How often the columns of the map are normalised.
        weights: Triton dtype of ``fn``, ``base`` and ``scale``; that of the streams if None.
        gain: Whether the streams that are written are multiplied by a number, where nothing is read.
        route: The router, if one rides; its operands and results come after the others.
    """

    name: str
    streams: int
    width: int
    comes: Literal["whole", "written", "spread"] = "written"
    gives: Literal["maps", "collapsed", "none"] = "maps"
    eps: float = 1e-6
    floor: float = 1e-6
    iterations: int = 20
    weights: str | None = None
    gain: bool = False
    route: Route | None = None

    template: ClassVar[str] = "streams.py.j2"

    def __post_init__(self) -> None:
        if self.comes == "whole" and self.gives == "none":
            raise ValueError("a boundary that neither writes nor reads")
        if self.gain and (self.comes, self.gives, self.template) != ("written", "none", Streams.template):
            raise ValueError("streams that are multiplied are written, in a step, and nothing is read of them")
        if self.route is not None and (self.gives != "maps" or self.route.given_logits or self.route.states):
            raise ValueError("a router that does not start from what a sublayer reads")

    @property
    def maps(self) -> int:
        """Rows of ``fn``: numbers that a token's maps are made of."""
        return {"maps": (2 + self.streams) * self.streams, "collapsed": self.streams, "none": 0}[self.gives]

    @property
    def sums(self) -> int:
        """Numbers that a program leaves behind for a token, the square among them, up to a power of two."""
        return 1 << self.maps.bit_length()

    @property
    def side(self) -> int:
        """Streams, up to a power of two."""
        return 1 << (self.streams - 1).bit_length()

    @property
    def padded(self) -> bool:
        """Whether blocks have places for streams that are not there."""
        return self.side != self.streams

    @property
    def of_route(self) -> list[str]:
        """Names of what the router takes beside what is read."""
        return [] if self.route is None else [_OF_ROUTE.get(name, name) for name in self.route.arguments()]

    def tiles(self) -> Sequence[Tile]:
        """Return channels of each stream for a program, and how many the last one reads at once.

        With a router, experts of a program too, and channels that it takes at once; all programs run side by side.
        """
        if not self.maps:
            return [Tile({"BLOCK": block}, warps) for block, warps in ((512, 1), (256, 1), (512, 2))]
        chunk = min(1 << (self.width - 1).bit_length(), 4096)
        if self.route is None:
            shapes = ((32, 8), (64, 8), (64, 4), (32, 4), (128, 8))
            return [Tile({"BLOCK": block, "CHUNK": chunk}, warps) for block, warps in shapes]
        routed = [(32, 2, 1024, 8), (64, 4, 512, 8), (64, 2, 512, 4), (32, 2, 512, 4), (128, 4, 1024, 8)]
        if -(-self.width // 32) + -(-self.route.experts // 2) > RESIDENT:
            routed.insert(0, routed.pop(1))
        sizes = (({"BLOCK": block, "CHUNK": chunk, "BLOCK_E": e, "BLOCK_M": m}, warps) for block, e, m, warps in routed)
        return [Tile(each, warps) for each, warps in sizes]

    def pointers(self, dtype: str) -> dict[str, str]:
        """Return the types of a function's arguments; maps are in float32 whatever the streams are in."""
        x, weight, wide = f"*{dtype}", f"*{self.weights or dtype}", "*fp32"
        arguments = {"rows" if self.comes == "spread" else "streams": x}
        if self.comes == "written":
            arguments |= {"added": x, "post": wide, "comb": wide} | ({"gain": x} if self.gain else {})
        if self.maps:
            arguments |= {"fn": weight, "base": weight, "scale": weight}
        arguments |= {name: "*i64" if name in ("tokens", "table") else x for name in self.of_route}
        if self.comes != "whole":
            arguments["out"] = x
        if self.maps:
            arguments["read"] = x
        if self.gives == "maps":
            arguments |= {"new_post": wide, "new_comb": wide}
        return arguments if self.route is None else arguments | {"shares": x, "experts": "*i64"}

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        more = {"partial": "*fp32", "arrived": "*i32"} if self.maps else {}
        more |= {} if self.route is None else {"logits": "*fp32"}
        return [Entry(f"{self.name}_kernel", self.pointers(dtype) | more)]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what one call moves: each program leaves sums behind, and the last one reads the streams again."""
        stored, given, least = self.needed(width, batch)
        if not self.maps:
            return Moved(least - stored, stored, least)
        parts = batch * -(-self.width // self.cut.sizes["BLOCK"])
        read = least - given + parts * (self.maps + 1) * 4 + batch * 4
        written = stored + given + parts * self.sums * 4 + batch * 4
        whole = Moved(read, written, least, flops=self.products(batch))
        return whole if self.route is None else whole + self.routed(self.route, width, batch)

    def routed(self, route: Route, width: int, batch: int) -> Moved:
        """Return what the router moves beside: each stream's logits are left behind and read again."""
        read, written = route.needed(width, batch)
        left = batch * self.streams * route.experts
        return Moved(read + 4 * left, written + 4 * left, read + written, 0, 2 * left * self.width)

    def needed(self, width: int, tokens: int) -> tuple[int, int, int]:
        """Return bytes: of the streams that are stored, of what is given beside them, and of all that must be moved."""
        n, m = self.streams, self.width
        whole, maps = n * m * width, (n + n * n) * 4
        taken = {"whole": whole, "written": whole + m * width + maps, "spread": m * width}[self.comes] * tokens
        stored = 0 if self.comes == "whole" else whole * tokens
        if not self.maps:
            return stored, 0, taken + stored + width * self.gain
        item = width if self.weights is None else {"fp32": 4, "bf16": 2, "fp16": 2}[self.weights]
        scales = 3 if self.gives == "maps" else 1
        given = (m * width + (maps if self.gives == "maps" else 0)) * tokens
        return stored, given, taken + (self.maps * (n * m + 1) + scales) * item + stored + given

    def products(self, tokens: int) -> int:
        """Return the operations of maps."""
        return 2 * tokens * self.maps * self.streams * self.width


@dataclass(frozen=True)
class StreamsPrefill(Streams):
    """The same for many tokens, some of which a program takes through all channels; maps are matrix products."""

    template: ClassVar[str] = "streams_prefill.py.j2"

    @property
    def dotted(self) -> int:
        """Columns of the product, as many as matrix units take."""
        return max(16, 1 << (self.maps - 1).bit_length())

    def tiles(self) -> Sequence[Tile]:
        """Return tokens of a program, and channels of each stream that it takes at once."""
        shapes = ((16, 16, 4, 2), (32, 16, 8, 2), (16, 32, 8, 2), (32, 16, 8, 1), (16, 16, 4, 1))
        if not self.maps:
            shapes = ((4, 512, 4, 1), (4, 256, 4, 1), (8, 128, 4, 1))
        return [Tile({"ROWS": rows, "BLOCK": block}, warps, stages) for rows, block, warps, stages in shapes]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        more = {"sums": "*fp32"} if self.maps else {}
        return [Entry(f"{self.name}_kernel", self.pointers(dtype) | more | {"tokens": "i32"})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what a call for whole sequences moves: each program reads its streams again."""
        tokens = batch * context
        stored, given, least = self.needed(width, tokens)
        if not self.maps:
            return Moved(least - stored, stored, least)
        read = least - given + tokens * self.maps * 4
        return Moved(read, stored + given + tokens * self.dotted * 4, least, flops=self.products(tokens))


def examples() -> list[Streams]:
    """Return the boundaries of the models that have some."""
    found = [
        Streams("hyper_read", 4, 4096, comes="whole", weights="fp32"),
        Streams("hyper_write", 4, 4096, gives="none"),
        Streams("hyper_first_pro", 4, 7168, comes="spread", weights="fp32"),
        StreamsPrefill("hyper_first_prefill", 4, 4096, comes="spread", weights="fp32"),
        StreamsPrefill("hyper_prefill", 4, 4096, weights="fp32"),
        StreamsPrefill("hyper_prefill_narrow", 4, 4096),
        StreamsPrefill("hyper_prefill_last", 4, 7168, gives="collapsed", weights="fp32"),
        StreamsPrefill("hyper_prefill_write", 4, 7168, gives="none"),
    ]
    router = Route("", 4096, 256, 6, score="sqrt_softplus", normalize=True, scale=1.5, bias=True, norm=1e-6)
    router = replace(router, eps=1e-20, norm_weight=True)
    for label, width in (("flash", 4096), ("pro", 7168)):
        if width > 4096:
            router = replace(router, width=width, experts=384, scale=2.5)
        routed = Streams(f"hyper_{label}_routed", 4, width, weights="fp32", route=router)
        found += [routed, replace(routed, route=replace(router, bias=False, table=True))]
        found.append(Streams(f"hyper_{label}", 4, width, weights="fp32"))
        found.append(Streams(f"hyper_{label}_narrow", 4, width))
        found.append(Streams(f"hyper_{label}_last", 4, width, gives="collapsed", weights="fp32"))
    return found
