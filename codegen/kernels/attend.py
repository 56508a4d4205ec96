"""The step of an attention layer: from projections to mixed values, with the cache between (K3 and K7 of the spec).

One launch norms and turns the heads of the current token, adds its row to the memory, attends to the rows seen with the
work divided over them, and merges the parts: the last program of a group to arrive merges the group, the last group
all of them. Which rows there are is read on the device; the grid depends on shapes only.
Source: Dao et al. 2023, "Flash-Decoding for long-context inference"; specs/kernels.md, K3 and K7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from regraft.codegen.kernels.attention import FAN, PROGRAMS, Attention, Entries, HeadNorm, Turn, padded
from regraft.codegen.kernels.kernel import Constant, Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class AttendStep(Attention):
    """Attention of one token to a memory, and what stands between the projections and it.

    Attributes:
        rows: What a row of the memory is. ``apart``: keys and values are two tensors. ``shared``: one tensor of keys,
            whose first ``value_width`` channels are the values (latents). ``values``: one tensor of values and, behind
            them, the turned channels of keys; the other channels of keys are values times the weight of the key's norm.
        q_apart: Whether the channels of queries after ``value_width`` come in a tensor of their own (latents).
        k_apart: Whether those of new keys do.
        k_norm: Norm of each key; with ``values`` over the same numbers as the norm of values.
        v_norm: Norm of each value.
        temper: Whether each key head is multiplied by a number of its own.
    """

    template: ClassVar[str] = "attend.py.j2"
    rows: Literal["apart", "shared", "values"] = "apart"
    q_apart: bool = False
    k_apart: bool = False
    k_norm: HeadNorm | None = None
    v_norm: HeadNorm | None = None
    temper: bool = False

    @property
    def normed(self) -> bool:
        """Whether heads are normed here."""
        return bool(self.q_norm or self.k_norm or self.v_norm)

    @property
    def near(self) -> int:
        """Channels of the part of keys that is multiplied first: a power of two, or those that are values too."""
        if self.rows != "apart":
            return self.value_width
        return self.width if self.width < 32 else 1 << (self.width.bit_length() - 1)

    @property
    def far(self) -> int:
        """Channels of the other part of keys."""
        if self.rows == "values":
            return 0 if self.turn is None else sum(stop - start for start, stop in self.turn.spans)
        return self.width - self.near

    @property
    def row_width(self) -> int:
        """Channels of a head in the memory's first tensor."""
        return self.near + self.far

    @property
    def padded(self) -> dict[str, int]:
        """Lengths of the vectors that hold a row's parts."""
        return {"near": padded(self.near), "far": padded(self.far), "value": padded(self.value_width)}

    @property
    def mutated(self) -> str:
        """The names of tensors that the op writes to, as items of a tuple."""
        if not self.writes:
            return ""
        return '"keys", "values"' if self.rows == "apart" else '"keys",'

    @property
    def stride_of(self) -> dict[str, tuple[str, int]]:
        """The tensor and the axis of each of `strides`."""
        tensors = {"Q": "q", "TURNED": "q_turned", "K": "k", "FAR": "k_turned", "V": "v", "GATE": "gate"}
        axes = {"BATCH": 0, "HEAD": 2}
        split = {name: name.split("_") for name in self.strides}
        return {name: (tensors[tensor], axes[axis]) for name, (tensor, axis) in split.items()}

    def far_channel(self, at: str) -> str:
        """Return code for the channel of a key that number `at` of its other part is."""
        if self.rows != "values" or self.turn is None:
            return f"{self.near} + {at}"
        (start, stop), *more = self.turn.spans
        one = f"{start} + {at}" if start else at
        if not more:
            return one
        pairs = stop - start
        return f"tl.where({at} < {pairs}, {one}, {more[0][0] - pairs} + {at})"

    def inside_turn(self, at: str) -> str:
        """Return code for whether a channel turns."""
        spans = () if self.turn is None else self.turn.spans
        parts = [f"({at} < {stop})" if start == 0 else f"({at} >= {start}) & ({at} < {stop})" for start, stop in spans]
        return parts[0] if len(parts) == 1 else " | ".join(f"({part})" if "&" in part else part for part in parts)

    def turned_slices(self, keys: str) -> str:
        """Return code for the channels of keys that turn, one slice for each range of them."""
        spans = () if self.turn is None else self.turn.spans
        return ", ".join(f"{keys}[..., {start}:{stop}]" for start, stop in spans)

    def woven(self, plain: str, turned: str) -> str:
        """Return code for keys of which some channels are made of values and others, that turn, were kept."""
        parts, taken, at = list[str](), 0, 0
        for start, stop in () if self.turn is None else self.turn.spans:
            parts += [f"{plain}[..., {at}:{start}]"] if at < start else []
            parts.append(f"{turned}[..., {taken}:{taken + stop - start}]")
            taken, at = taken + stop - start, stop
        parts += [f"{plain}[..., {at}:]"] if at < self.width else []
        return f"torch.cat(({', '.join(parts)}), -1)"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The op's tensors in order, those left out that this kernel has no use for.

        ``q [B, 1, Hq, D]``, ``q_turned [B, 1, Hq, D - Dv]``, ``k [B, 1, Hkv, D]``, ``k_turned [B, 1, 1, D - Dv]``,
        ``v [B, 1, Hkv, Dv]``, ``cos`` and ``sin``, ``q_norm [D]``, ``k_norm [D]``, ``temper [Hkv]``, ``sink [Hq]``,
        ``gate [B, 1, Hq]`` or ``[B, 1, Hq, Dv]``, ``keys [B, N, Hkv, D]``, ``values [B, N, Hkv, Dv]``, ``start [B]``.
        Before the last, of pooled rows, ``far_keys`` and ``far_values`` likewise with ``E`` rows, ``chosen [B, 1, K]``.
        With ``shared`` and ``values`` rows there is no ``v`` and ``keys`` are all that is kept; with ``values`` both
        norms are over ``k``. The last axis is contiguous; heads of queries and gates may stand apart.
        """
        needed = {
            "q": True,
            "q_turned": self.q_apart,
            "k": self.writes,
            "k_turned": self.k_apart,
            "v": self.writes and self.rows == "apart",
            "cos": self.turn is not None,
            "sin": self.turn is not None,
            "q_norm": self.q_norm is not None and self.q_norm.weighted,
            "k_norm": self.k_weighted,
            "temper": self.temper and (self.writes or self.rows == "values"),
            "sink": self.sink,
            "gate": self.gate is not None,
            "keys": True,
            "values": self.rows == "apart",
            "far_keys": self.pooled is not None,
            "far_values": self.pooled is not None,
            "chosen": self.pooled is not None and self.pooled.chosen is not None,
            "start": True,
        }
        return tuple(name for name, there in needed.items() if there)

    @property
    def k_weighted(self) -> bool:
        """Whether the weight of the key's norm is needed: for new keys, or for queries of values."""
        return self.k_norm is not None and self.k_norm.weighted and (self.writes or self.rows == "values")

    @property
    def strides(self) -> dict[str, int]:
        """Elements from one sequence to the next, and from head to head, where all is contiguous."""
        values = {"Q_BATCH": self.heads * self.width, "Q_HEAD": self.width}
        if self.q_apart:
            values = {"Q_BATCH": self.heads * self.value_width, "Q_HEAD": self.value_width}
            values |= {"TURNED_BATCH": self.heads * self.far, "TURNED_HEAD": self.far}
        if self.writes:
            values["K_BATCH"] = self.kv_heads * (self.near if self.k_apart else self.width)
        if self.k_apart:
            values["FAR_BATCH"] = self.kv_heads * self.far
        if self.writes and self.rows == "apart":
            values["V_BATCH"] = self.kv_heads * self.value_width
        if self.gate is not None:
            each = self.value_width if self.gate_wide else 1
            values |= {"GATE_BATCH": self.heads * each, "GATE_HEAD": each}
        return values

    def tiles(self) -> Sequence[Tile]:
        """Return tiles as the spec suggests them; wide ones hold few rows, so that they fit every target."""
        total = self.near + self.far + (self.value_width if self.rows == "apart" else 0)
        most = 64 if total <= 512 else 32 if total <= 1152 else 16
        heads = min(most, padded(self.group))  # more of wide ones would spill
        if total > 1152:
            cuts = [(16, 8, 2), (16, 8, 1), (32, 8, 1), (16, 4, 1)]
        elif total <= 256:
            cuts = [(64, 4, 3), (128, 4, 3), (128, 4, 2), (64, 4, 2), (32, 4, 2)]
        elif total <= 512:
            cuts = [(64, 4, 2), (64, 4, 3), (32, 4, 3), (32, 4, 2)]
        elif heads == 32:
            cuts = [(32, 8, 2), (64, 8, 2), (16, 8, 2), (16, 8, 1)]
        else:
            cuts = [(32, 8, 2), (64, 8, 2), (32, 8, 3), (16, 8, 2), (16, 8, 1)]
        blocks = self.kv_heads * -(-self.group // heads)
        least = 64  # rows of a split: few enough that 4K rows keep a device busy
        while least < min(256, 32 * blocks, self.seen // 8):
            least *= 2
        while least * 2 * total < 8 * 4 * min(heads, self.group) * self.value_width:  # its result is an eighth of them
            least *= 2
        splits = max(1, min(-(-PROGRAMS // blocks), self.seen // least, FAN * FAN))
        sizes = {"HEADS": heads, "SPLITS": splits, "LEAST": least}
        return [Tile({**sizes, "ROWS": rows}, warps, stages) for rows, warps, stages in cuts]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        types = {name: f"*{dtype}" for name in self.arguments if name != "start"} | {"start": "*i64"}
        more = {"heads": "*i32"} if self.head_map is not None else {}
        more |= {"out": f"*{dtype}", "parts": "*fp32", "weights": "*fp32", "counters": "*i32"}
        types |= {"chosen": "*i64"} if "chosen" in types else {}
        constants: dict[str, Constant] = {**self.strides, "SLOTS": self.slots}
        if self.pooled is not None:
            constants["ENTRIES"] = self.pooled.slots
        return (Entry(f"{self.name}_kernel", {**types, **more}, constants),)

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what one call moves: the rows seen once, the new ones, and the parts out and back in."""
        seen = context
        if self.window is not None and context > self.window:
            seen = self.window + min(self.first, context - self.window)
        numbers = 0
        if self.pooled is not None:
            near, far = self._with_pooled(self.pooled, context)
            seen, numbers = near + far, 0 if self.pooled.chosen is None else 8 * far
        found = seen - 1 if self.writes else seen
        row = self.kv_heads * (self.row_width + (self.value_width if self.rows == "apart" else 0)) * width
        own, shared = self._input_bytes(width)
        merged = self.merged_bytes(found, batch)
        added = row if self.writes else 0
        return Moved(
            read=batch * (found * row + own + merged + numbers) + shared,
            written=batch * (self.heads * self.value_width * width + added + merged),
            least=batch * (found * row + added) + shared,
            flops=batch * 2 * self.heads * (self.near + self.far + self.value_width) * found,
        )

    def _with_pooled(self, pooled: Entries, context: int) -> tuple[int, int]:
        """Return how many tokens are seen as they are, and how many pooled rows."""
        assert self.window is not None
        oldest = -(-max(context - self.window, 0) // pooled.rate) * pooled.rate
        far = max(oldest - self.first, 0) // pooled.rate
        far = far if pooled.chosen is None else min(far, pooled.chosen)
        return context - oldest + min(oldest, self.first), far

    def _input_bytes(self, width: int) -> tuple[int, int]:
        """Return the bytes of what each sequence brings, and of what all share."""
        turn = self.turn
        turning = 0 if turn is None else self.far if self.rows == "values" else turn.channels
        turning *= 2 if turn is not None and turn.layout == "halves" else 1  # cosines and sines
        q = self.heads * (self.value_width + self.far if self.q_apart else self.width)
        k = self.kv_heads * self.width if self.writes else 0
        v = self.kv_heads * self.value_width if "v" in self.arguments else 0
        gates = self.heads * (self.value_width if self.gate_wide else 1) if self.gate is not None else 0
        k_normed = self.width if self.k_norm is None or self.k_norm.width is None else self.k_norm.width
        sizes = {"q_norm": self.width, "k_norm": k_normed, "temper": self.kv_heads, "sink": self.heads}
        shared = sum(size for name, size in sizes.items() if name in self.arguments) * width
        table = 4 * self.kv_heads * self.group if self.head_map is not None else 0
        return (q + k + v + gates + turning) * width + 8, shared + table


def examples() -> list[Kernel]:
    """Return the attention of known models at a context of 128K: widths 64 to 576, rings, sinks, readers, latents."""
    weighted, bare = HeadNorm(1e-6), HeadNorm(1e-6, weighted=False)
    window: dict[str, Any] = {"ring": True, "slots": 512, "window": 512}
    llama = AttendStep("llama", 32, 8, 128, 128, 131072, 128**-0.5, turn=Turn(128))
    qwen = replace(llama, name="qwen", q_norm=weighted, k_norm=weighted)
    laguna = replace(qwen, name="laguna", heads=48, turn=Turn(64), gate="softplus")
    near = replace(laguna, name="laguna_near", heads=64, turn=Turn(128), slots=512, window=512, ring=True)
    normed: dict[str, Any] = {"q_norm": weighted, "k_norm": weighted, "v_norm": bare}
    e2b = AttendStep("e2b", 8, 1, 512, 512, 131072, 1.0, turn=Turn(512, pairs=64), **normed)
    sliding = AttendStep("e2b_near", 8, 1, 256, 256, scale=1.0, turn=Turn(256), **normed, **window)
    large = replace(e2b, name="large", heads=32, kv_heads=4, rows="values")
    oss = AttendStep("oss", 64, 8, 64, 64, 128, 0.125, ring=True, window=128, turn=Turn(64), sink=True)
    zaya = AttendStep("zaya", 8, 2, 128, 128, 131072, 128**-0.5, writes=False)
    latent = AttendStep(
        "latent",
        heads=128,
        kv_heads=1,
        width=576,
        value_width=512,
        slots=131072,
        scale=192**-0.5,
        rows="shared",
        q_apart=True,
        k_norm=HeadNorm(1e-6, width=512),
        turn=Turn(64, start=512, layout="interleaved"),
    )
    apart = {"k_norm": None, "v_norm": None, "writes": False}
    readers = [replace(each, name=f"{each.name}_reader", **apart) for each in (e2b, sliding)]
    small = replace(latent, name="latent_lite", heads=16)
    uneven = (0,) * 8 + (1,) * 4 + (2,) * 8 + (3, 4, 5, 6) * 4 + (7,) * 4
    budget = replace(near, name="budget", heads=40, head_map=uneven)
    next_ = AttendStep("next", 16, 2, 256, 256, 131072, 0.0625, turn=Turn(64), gate="sigmoid", gate_wide=True)
    more: dict[str, Any] = {"slots": 131, "window": 131, "ring": True}
    pooled = replace(qwen, name="pooled", **more, pooled=Entries(4, 32768, bias=1.3863))
    across = replace(qwen, name="across", kv_heads=1, width=1024, value_width=1024, turn=Turn(128, every=128))
    across = replace(across, q_norm=None, k_norm=None, writes=False)
    others = [large, oss, zaya, latent, small, budget, next_, pooled, across]
    return [llama, qwen, laguna, near, e2b, sliding, *readers, *others]
