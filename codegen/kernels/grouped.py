"""A mixture of experts over many tokens: copies of tokens sorted by expert, and two products over blocks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Grouped(Kernel):
    """The kernel of ``moe.experts`` for many tokens (specs/kernels.md, K13).

    ``NAME(x, weights, experts, gate_up, down, [gate_up_bias, down_bias])`` gives [..., M] in x's dtype; x is [..., M],
    weights and experts [..., K], gate_up [E, 2F, M] with the gate's rows first, down [E, M, F]. Copies of tokens are
    sorted by expert on the device. A third launch adds each token's copies in the order of its choices, so that the sum
    is always the same. No value is read on the host: the grid has room for the most blocks that there can be.

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
    """

    template: ClassVar[str] = "grouped.py.j2"

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

    def arguments(self) -> list[str]:
        """Return the emitted op's arguments, in order."""
        biases = ["gate_up_bias", "down_bias"] if self.biases else []
        return ["x", "weights", "experts", "gate_up", "down", *biases]

    @staticmethod
    def power(count: int) -> int:
        """Return the least power of two that is not below a count."""
        return 1 << (count - 1).bit_length()

    def tiles(self) -> Sequence[Tile]:
        return [
            Tile({"BLOCK_T": 64, "BLOCK_N": 64, "BLOCK_K": 64}, warps=4, stages=3),
            Tile({"BLOCK_T": 64, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3),
            Tile({"BLOCK_T": 128, "BLOCK_N": 64, "BLOCK_K": 64}, warps=8, stages=3),
            Tile({"BLOCK_T": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3),
            Tile({"BLOCK_T": 64, "BLOCK_N": 64, "BLOCK_K": 32}, warps=4, stages=2),
        ]

    def entries(self, dtype: str) -> Sequence[Entry]:
        pointer = f"*{dtype}"
        plan = {"order": "*i64", "starts": "*i64", "firsts": "*i64", "owners": "*i64"}
        bias = {"gate_up_bias": pointer} if self.biases else {}
        one = {"x": pointer, "gate_up": pointer} | bias | plan | {"hidden": pointer, "blocks": "i32"}
        bias = {"down_bias": pointer} if self.biases else {}
        two = {"hidden": pointer, "weights": pointer, "down": pointer} | bias | plan
        three = {"copies": pointer, **({} if self.skip == "none" else {"experts": "*i64"})}
        three |= {"x": pointer, "weights": pointer} if self.skip == "identity" else {}
        return [
            Entry(f"{self.name}_hidden_kernel", one),
            Entry(f"{self.name}_kernel", two | {"copies": pointer, "blocks": "i32"}),
            Entry(f"{self.name}_sum_kernel", three | {"out": pointer}),
        ]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        tokens = batch * context
        copies = tokens * self.chosen
        held = round(self.experts * (1 - (1 - self.chosen / self.experts) ** tokens))
        weights = held * 3 * self.width * self.inner * width
        weights += held * (2 * self.inner + self.width) * self.biases * width
        rows = tokens * self.width * width
        inner, outer = copies * self.inner * width, copies * self.width * width
        given = rows + copies * (width + 8)
        plan = 2 * (8 * copies + 8 * (2 * self.experts + 1))  # both products read it; sorting is PyTorch's
        return Moved(
            weights + given - 8 * copies + plan + inner + outer,
            inner + outer + rows,
            weights + given + rows,
            launches=3,
            flops=6 * copies * self.width * self.inner,
        )


def examples() -> list[Kernel]:
    """Return the mixtures of models at their real sizes."""
    return [
        Grouped("grouped", 2048, 512, 256, 8),  # Laguna XS.2, Qwen3.6 35B-A3B
        Grouped("grouped", 2048, 2048, 16, 1, skip="zero"),  # ZAYA1-8B
        Grouped("grouped", 2816, 704, 128, 8, activation="gelu_tanh"),  # Gemma 4 26B-A4B
        Grouped("grouped", 4096, 2048, 256, 6, limit=10.0),  # DeepSeek V4 Flash
        Grouped("grouped", 7168, 2048, 256, 8),  # DeepSeek V3
        Grouped("grouped", 2880, 2880, 32, 4, activation="quick_gelu", limit=7.0, shift=1.0, biases=True),  # gpt-oss
    ]
