"""A decode step's mixture of experts in two launches: gate and up of all chosen experts, then down and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Experts(Kernel):
    """The kernel of ``moe.experts`` for few tokens (specs/kernels.md, K2 b and c).

    ``NAME(x, [norm_weight], weights, experts, gate_up, down, [gate_up_bias, down_bias], [shared_gate, shared_up,
    shared_down, [shared_norm], [shared_share]], [residual, [out_bias, out_gain, residual_bias, residual_gain] or
    [out_norm, shared_out_norm, sum_norm, [gain]]])`` gives [..., M], in the dtype of ``down``, or with a residual in
    that one's; where the residual is moved, in float32 at least. x is [..., M], weights and experts [..., K], gate_up
    [E, 2F, M] with the gate's rows first, down [E, M, F]. A program of the second launch owns rows of the result and
    goes through the experts in order, so that the sum is always the same.

    Attributes:
        name: The emitted op's name.
        width: Channels of x, M.
        inner: Channels inside an expert, F.
        experts: Experts with weights, E.
        chosen: Experts chosen for a token, K.
        activation: Of the gate.
        limit: Cuts the gate above it and the up projection at both sides.
        shift: Added to the up projection then.
        skip: What numbers from E on give: ``none`` are chosen, ``zero``, or the input (``identity``).
        biases: Whether the experts' maps have biases.
        shared: Channels inside the expert that every token takes, 0 without one.
        shared_limit: Its limit.
        shared_share: Whether its output is multiplied by the sigmoid of a map of x, [1, M].
        shared_norm: Whether the norm before it has a weight of its own.
        norm: The epsilon of an RMS norm of x that comes first, if there is one.
        norm_weight: Whether this norm has a weight.
        norm_offset: Added to that weight.
        residual: ``none``, ``add``: is added to the sum; ``move``: both get a bias, then a factor for each channel,
            before they are added; ``norms``: the chosen experts' sum and what the shared one gives are normed, each
            with a weight, and so is the sum of these, before it is added, by the program that is last: Gemma 4's MLP
            beside experts. All norms have the same epsilon and offset.
        gain: Whether the result is multiplied by a number then.
    """

    template: ClassVar[str] = "experts.py.j2"

    name: str
    width: int
    inner: int
    experts: int
    chosen: int
    activation: str = "silu"
    limit: float | None = None
    shift: float = 0.0
    skip: str = "none"
    biases: bool = False
    shared: int = 0
    shared_limit: float | None = None
    shared_share: bool = False
    shared_norm: bool = False
    norm: float | None = None
    norm_weight: bool = False
    norm_offset: float = 0.0
    residual: str = "none"
    gain: bool = False

    def __post_init__(self) -> None:
        if self.skip == "identity" and self.norm is not None:
            raise ValueError("an identity gives the normalised input: the norm comes before the kernel")
        if self.residual == "norms" and (
            not self.shared or self.norm is None or self.biases or self.skip == "identity"
        ):
            raise ValueError("norms of two sums want an expert that every token takes, and sums of products alone")

    @staticmethod
    def power(count: int) -> int:
        """Return the least power of two that is not below a count."""
        return 1 << (count - 1).bit_length()

    @property
    def normed(self) -> list[str]:
        """Arguments of the norm."""
        return ["norm_weight"] if self.norm is not None and self.norm_weight else []

    @property
    def first(self) -> list[str]:
        """Arguments of the first launch after the norm's and the experts' numbers: its weights."""
        shared = ["shared_gate", "shared_up"] if self.shared else []
        norm = ["shared_norm"] if self.shared and self.shared_norm else []
        share = ["shared_share"] if self.shared and self.shared_share else []
        return ["gate_up", *(["gate_up_bias"] if self.biases else []), *shared, *norm, *share]

    @property
    def second(self) -> list[str]:
        """Arguments of the second launch after the experts' numbers: its weights, and the residual with its own."""
        own = ["down", *(["down_bias"] if self.biases else []), *(["shared_down"] if self.shared else [])]
        moved = ["out_bias", "out_gain", "residual_bias", "residual_gain"] if self.residual == "move" else []
        if self.residual == "norms":
            moved = ["out_norm", "shared_out_norm", "sum_norm", *(["gain"] if self.gain else [])]
        return own + ([] if self.residual == "none" else ["residual", *moved])

    def arguments(self) -> list[str]:
        """Return the emitted op's arguments, in order."""
        biases = ["gate_up_bias", "down_bias"] if self.biases else []
        order = {"shared_gate": 0, "shared_up": 1, "shared_down": 2, "shared_norm": 3, "shared_share": 4}
        shared = [name for name in (*self.first, *self.second) if name in order]
        last = self.second[self.second.index("residual") :] if self.residual != "none" else []
        return [
            *["x", *self.normed, "weights", "experts", "gate_up", "down", *biases],
            *sorted(shared, key=lambda name: order[name]),
            *last,
        ]

    def tiles(self) -> Sequence[Tile]:
        return [
            Tile({"BLOCK_N": 4, "BLOCK_K": 512}, warps=4),
            Tile({"BLOCK_N": 2, "BLOCK_K": 1024}, warps=4),
            Tile({"BLOCK_N": 4, "BLOCK_K": 1024}, warps=8),
            Tile({"BLOCK_N": 8, "BLOCK_K": 512}, warps=8),
            Tile({"BLOCK_N": 8, "BLOCK_K": 256}, warps=4),
            Tile({"BLOCK_N": 2, "BLOCK_K": 512}, warps=2),
        ]

    def entries(self, dtype: str) -> Sequence[Entry]:
        pointer = f"*{dtype}"
        one = {"x": pointer} | dict.fromkeys(self.normed, pointer) | {"experts": "*i64"}
        two = {"hidden": pointer, "weights": pointer, "experts": "*i64"} | dict.fromkeys(self.second, pointer)
        two |= {"x": pointer} if self.skip == "identity" else {}
        two |= {"residual": "*fp32"} if self.residual == "move" else {}
        two |= {"sums": "*fp32", "arrived": "*i32"} if self.residual == "norms" else {}
        return [
            Entry(f"{self.name}_hidden_kernel", one | dict.fromkeys([*self.first, "hidden"], pointer)),
            Entry(f"{self.name}_kernel", two | {"out": "*fp32" if self.residual == "move" else pointer}),
        ]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        chosen = round(self.experts * (1 - (1 - self.chosen / self.experts) ** batch)) if batch > 1 else self.chosen
        weights = chosen * 3 * self.width * self.inner + 3 * self.width * self.shared
        weights += chosen * (2 * self.inner + self.width) * self.biases
        weights += self.width * bool(self.shared) * (self.shared_share + self.shared_norm)
        vectors = batch * self.width * (1 + (self.skip == "identity")) + self.width * len(self.normed)
        routed = batch * self.chosen * (width + 8)
        hidden = batch * (self.chosen * self.inner + self.shared) * width
        kept = 4 if self.residual == "move" else width
        residual = batch * self.width * kept * (self.residual != "none")
        residual += 4 * self.width * width * (self.residual == "move")
        residual += (3 * self.width + self.gain) * width * (self.residual == "norms")
        read = (weights + vectors) * width + routed + residual
        written = batch * self.width * kept
        again = batch * self.chosen * 8  # the second launch reads the experts' numbers too
        flops = 6 * batch * self.width * (self.chosen * self.inner + self.shared)
        inside = hidden + batch * (8 * self.width + 4) * (self.residual == "norms")  # written and read again
        return Moved(read + again + inside, written + inside, read + written, launches=2, flops=flops)


def examples() -> list[Kernel]:
    """Return the mixtures of models at their real sizes."""
    return [
        Experts("experts", 2048, 512, 256, 8, shared=512, norm=1e-6, norm_weight=True, residual="add"),  # Laguna XS.2
        Experts("experts", 2048, 2048, 16, 1, skip="zero", residual="move"),  # ZAYA1-8B
        Experts(  # Gemma 4 26B-A4B
            *("experts", 2816, 704, 128, 8),
            activation="gelu_tanh",
            shared=2112,
            shared_norm=True,
            norm=1e-6,
            norm_weight=True,
            residual="norms",
            gain=True,
        ),
        Experts("experts", 4096, 2048, 256, 6, limit=10.0, shared=2048, shared_limit=10.0),  # DeepSeek V4 Flash
        Experts("experts", 7168, 3072, 384, 6, limit=10.0, shared=3072, shared_limit=10.0),  # DeepSeek V4 Pro
        Experts("experts", 7168, 2048, 256, 8, shared=2048, norm=1e-6, norm_weight=True, residual="add"),  # V3
        Experts("experts", 2048, 1408, 64, 6, shared=2816, residual="add"),  # DeepSeek V2 Lite
        Experts("experts", 2048, 768, 128, 8, norm=1e-6, norm_weight=True, residual="add"),  # Qwen3 30B-A3B
        Experts(  # Qwen3-Next 80B-A3B
            *("experts", 2048, 512, 512, 10),
            shared=512,
            shared_share=True,
            norm=1e-6,
            norm_weight=True,
            norm_offset=1.0,
            residual="add",
        ),
        Experts(  # gpt-oss 20B
            *("experts", 2880, 2880, 32, 4),
            activation="quick_gelu",
            limit=7.0,
            shift=1.0,
            biases=True,
            residual="add",
        ),
    ]
