"""Which query heads to keep: scores, and elimination one head at a time.

``c`` is ``E[z zᵀ]`` of what the output projection reads, ``[Hq * Dv, Hq * Dv]``; ``o`` are the projection's rows
``[Hq * Dv, M]``. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Shares:
    """How evenly heads must go: over ``parts`` devices, each with the same number of heads and of KV heads.

    Args:
        groups: The KV head of each query head.
        kv_heads: KV heads.
        parts: Devices; with one, heads may go in any order.
    """

    groups: Sequence[int]
    kv_heads: int
    parts: int = 1

    def part(self, head: int) -> int:
        """Return the device that holds a head."""
        return self.groups[head] * self.parts // self.kv_heads

    def removable(self, alive: Sequence[int], keep: int) -> list[int]:
        """Return the heads that may go next on the way to ``keep`` heads."""
        if self.parts == 1:
            return list(alive)
        held = [self.part(head) for head in alive]
        left = [self.groups[head] for head in alive]
        return [
            head
            for head in alive
            if held.count(self.part(head)) > keep // self.parts and left.count(self.groups[head]) > 1
        ]


def eliminate(c: Tensor, o: Tensor, keep: int, shares: Shares, ridge: float = 0.0) -> list[int]:
    """Return the heads to keep, the rest removed one at a time at the least error of the refitted output.

    Args:
        c: Second moments; ``ridge`` times their mean diagonal is added.
        o: The current output rows.
        keep: How many heads stay.
        shares: What must stay even.
        ridge: In units of the mean diagonal of ``c``.

    Source: specs/passes_math.md, equation (4).
    """
    return eliminations(c, o, (keep,), shares, ridge)[keep]


def eliminations(
    c: Tensor, o: Tensor, keeps: Sequence[int], shares: Shares, ridge: float = 0.0
) -> dict[int, list[int]]:
    """Return the heads to keep for each of several numbers, those of fewer among those of more; see `eliminate`."""
    import torch

    heads = len(shares.groups)
    width = c.shape[0] // heads
    # singular statistics (a head that is always zero) have no inverse; a trace of the diagonal keeps it finite
    amount = max(ridge, 1e-12) * float(c.trace()) / c.shape[0]
    p = torch.linalg.inv(c + (amount or 1.0) * torch.eye(c.shape[0], dtype=c.dtype))
    o = o.clone()
    alive = list(range(heads))
    found: dict[int, list[int]] = {}
    for keep in sorted(keeps, reverse=True):
        while len(alive) > keep:
            allowed = set(shares.removable(alive, keep))
            blocks = p.view(len(alive), width, len(alive), width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            rows = o.view(len(alive), width, -1)
            costs = (rows * torch.linalg.solve(blocks, rows)).sum((1, 2)).tolist()
            _, place = min((cost, place) for place, cost in enumerate(costs) if alive[place] in allowed)
            gone = torch.zeros(len(p), dtype=torch.bool)
            gone[place * width : (place + 1) * width] = True
            pull = torch.linalg.solve(p[gone][:, gone], p[gone][:, ~gone]).T
            o = o[~gone] - pull @ o[gone]
            p = p[~gone][:, ~gone] - pull @ p[gone][:, ~gone]
            alive.pop(place)
        found[keep] = list(alive)
    return found


def keep_largest(scores: Tensor, keep: int, shares: Shares) -> list[int]:
    """Return the heads to keep by score, the smallest removed first."""
    alive = list(range(len(shares.groups)))
    while len(alive) > keep:
        alive.remove(min(shares.removable(alive, keep), key=lambda head: float(scores[head])))
    return alive


def activation_norms(c: Tensor, o: Tensor, heads: int) -> Tensor:
    """Return ``E|O_hᵀ z_h|²`` of each head."""
    import torch

    width = c.shape[0] // heads
    blocks = c.view(heads, width, heads, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    rows = o.view(heads, width, -1)
    return torch.einsum("hdm,hde,hem->h", rows, blocks, rows)


def weight_norms(o: Tensor, values: Tensor, groups: Sequence[int]) -> Tensor:
    """Return ``|W_Vᵀ O_h|²`` (Frobenius) of each head: its path from the stream to the stream, without data.

    Args:
        o: Output rows ``[Hq * Dv, M]``.
        values: The value projection ``[Hkv * Dv, M]``.
        groups: The KV head of each query head.
    """
    import torch

    rows = o.view(len(groups), -1, o.shape[1])
    width = rows.shape[1]
    v = values.view(-1, width, values.shape[1])
    grams = torch.einsum("gdm,gem->gde", v, v)[torch.tensor(groups)]
    return torch.einsum("hdm,hem,hde->h", rows, rows, grams)
