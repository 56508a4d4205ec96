"""A router in one launch: the norm before it, its logits, the choice of experts and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Route(Kernel):
    """The kernel of ``moe.route``, with the product and the norm before it (specs/kernels.md, K2 a).

    ``NAME(x, [norm_weight], weight, [weight_bias], [bias], [gain], [tokens, table])`` gives the shares, [..., chosen]
    in the weight's dtype, and the experts' numbers, int64. With ``given_logits`` it is ``NAME(logits, [bias], ...)``.
    With ``states`` the normalised x becomes a state, [..., states], to which a `carried` one is added: the call is
    ``NAME(x, [norm_weight], into, [into_bias], [carried, carried_gain], [state_norm], hidden_1, [hidden_1_bias], ...,
    weight, ...)`` and gives the state too, before the others. What is computed of it, its norm and the ``hidden`` maps
    with an activation behind each, is what the last program to arrive does: they are small (ZAYA1: 256 x 256).
    Of experts with equal ranks the first are chosen. Logits stay in float32, where the unfused form rounds them.

    Attributes:
        name: The emitted op's name.
        width: Channels of x.
        experts: Experts that are scored, a skipping one among them.
        chosen: Experts chosen for a token.
        score: ``softmax``, ``sigmoid`` or ``sqrt_softplus``.
        normalize: Whether shares are divided by their sum plus `eps`.
        eps: Added to the sum of shares.
        scale: Multiplies the shares.
        groups: Groups that the experts are dealt to, in order.
        kept: Groups that stay, those with the highest sum of their `best` highest ranks.
        best: Experts of a group that stand for it.
        bias: Whether a bias is added to the scores for the choice.
        gain: Whether a share is multiplied by its expert's gain.
        table: Whether the experts are looked up by token instead of chosen.
        given_logits: Whether logits come ready-made.
        weight_bias: Whether a bias is added to the logits.
        norm: The epsilon of an RMS norm before the product, if there is one.
        norm_weight: Whether this norm has a weight.
        norm_offset: Added to that weight.
        factor: Multiplies the normalised x.
        states: Channels of the state, 0 without one.
        into_bias: Whether a bias is added to it.
        carried: Whether another state times a factor for each channel is.
        state_norm: The epsilon of its RMS norm.
        state_norm_weight: Whether this norm has a weight.
        state_norm_offset: Added to that weight.
        hidden: For each of the maps between, whether it has a bias.
        activation: Of these.
    """

    template: ClassVar[str] = "route.py.j2"

    name: str
    width: int
    experts: int
    chosen: int
    score: str = "softmax"
    normalize: bool = False
    eps: float = 0.0
    scale: float = 1.0
    groups: int = 1
    kept: int = 1
    best: int = 1
    bias: bool = False
    gain: bool = False
    table: bool = False
    given_logits: bool = False
    weight_bias: bool = False
    norm: float | None = None
    norm_weight: bool = False
    norm_offset: float = 0.0
    factor: float = 1.0
    states: int = 0
    into_bias: bool = False
    carried: bool = False
    state_norm: float = 0.0
    state_norm_weight: bool = False
    state_norm_offset: float = 0.0
    hidden: tuple[bool, ...] = ()
    activation: str = "gelu"

    @property
    def grouped(self) -> bool:
        """Whether some groups do not stay."""
        return self.kept < self.groups and not self.table

    @staticmethod
    def power(count: int) -> int:
        """Return the least power of two that is not below a count."""
        return 1 << (count - 1).bit_length()

    def tiles(self) -> Sequence[Tile]:
        if self.given_logits:
            return [Tile(warps=1)]
        if self.states:
            return [
                Tile({"BLOCK_E": 2, "BLOCK_M": 1024, "BLOCK_R": 32}, warps=8),
                Tile({"BLOCK_E": 2, "BLOCK_M": 1024, "BLOCK_R": 64}, warps=8),
                Tile({"BLOCK_E": 2, "BLOCK_M": 512, "BLOCK_R": 16}, warps=4),
            ]
        return [
            Tile({"BLOCK_E": 2, "BLOCK_M": 1024}, warps=4),
            Tile({"BLOCK_E": 4, "BLOCK_M": 512}, warps=4),
            Tile({"BLOCK_E": 4, "BLOCK_M": 1024}, warps=4),
            Tile({"BLOCK_E": 2, "BLOCK_M": 512}, warps=4),
            Tile({"BLOCK_E": 8, "BLOCK_M": 512}, warps=8),
        ]

    def arguments(self) -> list[str]:
        """Return the emitted op's arguments after the first, in order."""
        own = [] if self.given_logits else ["weight"]
        if not self.given_logits and self.norm is not None and self.norm_weight:
            own.insert(0, "norm_weight")
        if self.states:
            own[-1:] = [*self.of_state, "weight"]
        own += ["weight_bias"] if self.weight_bias else []
        own += ["bias"] if self.bias and not self.table else []
        own += ["gain"] if self.gain else []
        return own + (["tokens", "table"] if self.table else [])

    @property
    def of_state(self) -> list[str]:
        """Names of what a state is made of and mapped by."""
        maps = [
            name
            for number, biased in enumerate(self.hidden, 1)
            for name in (f"hidden_{number}", *([f"hidden_{number}_bias"] if biased else []))
        ]
        into = ["into", *(["into_bias"] if self.into_bias else [])]
        carried = ["carried", "carried_gain"] if self.carried else []
        return [*into, *carried, *(["state_norm"] if self.state_norm_weight else []), *maps]

    def entries(self, dtype: str) -> Sequence[Entry]:
        whole = {"tokens": "*i64", "table": "*i64"}
        arguments = {"logits" if self.given_logits else "x": f"*{dtype}"}
        arguments |= {name: whole.get(name, f"*{dtype}") for name in self.arguments()}
        if not self.given_logits:
            arguments |= {"inner": "*fp32", "state": f"*{dtype}"} if self.states else {}
            arguments |= {"logits": "*fp32", "arrived": "*i32"}
        return [Entry(f"{self.name}_kernel", arguments | {"shares": f"*{dtype}", "experts": "*i64"})]

    def needed(self, width: int, batch: int) -> tuple[int, int]:
        """Return the bytes that any program reads to choose, but for what it starts from, and those that it writes."""
        of_experts = self.experts * (self.weight_bias + (self.bias and not self.table) + self.gain)
        chosen = batch * self.chosen
        read = of_experts * width + (batch * 8 + chosen * 8) * self.table
        if not self.given_logits:
            normed = self.width * (self.norm is not None and self.norm_weight)
            read += ((self.states or self.experts) * self.width + normed) * width
        return read, chosen * (width + 8)

    def moved(self, width: int, batch: int, context: int) -> Moved:
        read, written = self.needed(width, batch)
        if self.given_logits:
            read += batch * self.experts * width
            return Moved(read, written, read + written)
        first = self.states or self.experts
        read += batch * self.width * width
        own = batch * (self.experts * 4 + 4)  # logits and counters, written and read again
        flops = 2 * batch * first * self.width
        if self.states:
            vectors = self.into_bias + self.carried + self.state_norm_weight + sum(self.hidden)
            maps = len(self.hidden) * self.states + self.experts
            read += (self.states * (vectors + maps) + batch * self.states * self.carried) * width
            written += batch * self.states * width
            flops += 2 * batch * maps * self.states
            again = batch * self.states * (width + 4 * len(self.hidden))
            return Moved(
                read + own + again, written + own + again - batch * self.states * width, read + written, 1, flops
            )
        return Moved(read + own, written + own, read + written, flops=flops)


def examples() -> list[Kernel]:
    """Return the routers of models at their real sizes."""
    normed = Route("route", 2048, 128, 8, normalize=True, norm=1e-6, norm_weight=True)  # Qwen3-30B-A3B
    shares = replace(normed, score="sigmoid", scale=2.5, bias=True)
    roots = replace(shares, width=4096, experts=256, chosen=6, score="sqrt_softplus", eps=1e-20, scale=1.5)
    zaya = replace(normed, normalize=False, experts=17, chosen=1, bias=True, norm=1e-5, into_bias=True, carried=True)
    return [
        normed,
        replace(normed, experts=512, chosen=10, norm_offset=1.0),  # Qwen3-Next
        replace(shares, width=7168, experts=256, eps=1e-20, groups=8, kept=4, best=2),  # DeepSeek V3
        roots,  # V4 Flash
        replace(roots, bias=False, table=True),  # its first layers
        replace(roots, width=7168, experts=384, scale=2.5),  # V4 Pro
        replace(shares, experts=256),  # Laguna
        replace(normed, width=2816, gain=True, factor=0.018844459036110227),  # Gemma 4 26B-A4B
        replace(normed, width=2880, experts=32, chosen=4, weight_bias=True, norm=1e-5),  # gpt-oss
        Route("route", 256, 17, 1, bias=True),
        replace(zaya, states=256, state_norm=1e-5, state_norm_weight=True, hidden=(True, True)),  # ZAYA1
        Route("route", 2048, 64, 6, norm=1e-6, norm_weight=True),  # DeepSeek V2-Lite
    ]
