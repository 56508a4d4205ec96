"""What else computes what a kernel does: what a user would pick."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_inputs import Call
from regraft.codegen.kernels.attend import AttendStep
from regraft.codegen.kernels.flash import Flash
from regraft.codegen.kernels.grouped import Grouped
from regraft.codegen.kernels.head import Head
from regraft.codegen.kernels.kernel import Kernel
from regraft.codegen.kernels.rows import RowsKernel

Form = Callable[..., Any]


def rivals(kernel: Kernel, plain: Form, call: Call) -> dict[str, Form]:
    """Return functions of a kernel's arguments, by name; those of a library do its part of the work, or all of it."""
    return {**_library(kernel, call), "torch.compile": torch.compile(plain, dynamic=False)}


@singledispatch
def _library(kernel: Kernel, call: Call) -> dict[str, Form]:
    return {}


@_library.register
def _attend(kernel: AttendStep, call: Call) -> dict[str, Form]:
    """Return SDPA over the rows that are seen, without norm, rotation and writing."""
    if kernel.rows == "values" or kernel.head_map is not None or kernel.pooled is not None:
        return {}
    seen = min(kernel.seen, call.context)

    def sdpa(
        *, q: Tensor, keys: Tensor, q_turned: Tensor | None = None, values: Tensor | None = None, **_: Any
    ) -> Tensor:
        q = q if q_turned is None else torch.cat((q, q_turned), -1)
        values = keys[..., : kernel.value_width] if values is None else values
        k, v = (memory[:, :seen].transpose(1, 2) for memory in (keys, values))
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, scale=kernel.scale, enable_gqa=True)

    return {"SDPA": sdpa}


@_library.register
def _flash(kernel: Flash, call: Call) -> dict[str, Form]:
    """Return SDPA where it has the mask, and FlexAttention."""
    if kernel.head_map is not None or kernel.sink:
        return {}

    def sides(q: Tensor, k: Tensor, v: Tensor | None) -> list[Tensor]:
        v = k[..., : kernel.value_width] if v is None else v
        return [x.transpose(1, 2) for x in (q, k, v)]

    grouped = kernel.heads != kernel.kv_heads

    def sdpa(*, q: Tensor, k: Tensor, v: Tensor | None = None, **_: Any) -> Tensor:
        q, k, v = sides(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=kernel.scale, enable_gqa=grouped)

    def flex(*, q: Tensor, k: Tensor, v: Tensor | None = None, **_: Any) -> Tensor:
        attend, mask = _flex(kernel, call.context, str(q.device))
        return attend(*sides(q, k, v), block_mask=mask, scale=kernel.scale, enable_gqa=grouped)

    plain = kernel.window is None and kernel.softcap is None
    return {**({"SDPA": sdpa} if plain else {}), "FlexAttention": flex}


@cache
def _flex(kernel: Flash, tokens: int, device: str) -> tuple[Form, Any]:
    """Return FlexAttention compiled, with a kernel's softcap, and the mask of its window."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b: Any, h: Any, at: Any, other: Any) -> Any:
        seen = other <= at
        if kernel.window is not None:
            seen = seen & ((at - other < kernel.window) | (other < kernel.first))
        return seen

    def capped(score: Tensor, b: Any, h: Any, at: Any, other: Any) -> Tensor:
        assert kernel.softcap is not None
        return kernel.softcap * torch.tanh(score / kernel.softcap)

    mask = create_block_mask(visible, None, None, tokens, tokens, device=device)
    change = capped if kernel.softcap is not None else None
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def attend(*args: Tensor, **options: Any) -> Tensor:
        return compiled(*args, score_mod=change, **options)

    return attend, mask


@_library.register
def _rows(kernel: RowsKernel, call: Call) -> dict[str, Form]:
    """Return the vendor's matrix-vector products alone."""

    def products(**given: Any) -> list[Tensor]:
        return [torch.mv(given[name], given[name][0]) for name in kernel.weights if given[name].ndim == 2]

    return {"cuBLAS": products}


@_library.register
def _head(kernel: Head, call: Call) -> dict[str, Form]:
    """Return the vendor's matrix product, and the choice of the largest."""

    def product(*, x: Tensor, weight: Tensor, **_: Any) -> Tensor:
        return F.linear(x, weight)[:, 0].argmax(-1)

    return {"cuBLAS": product}


@_library.register
def _grouped(kernel: Grouped, call: Call) -> dict[str, Form]:
    """Return the library's grouped matrix products, on copies of tokens that are sorted by expert."""
    if kernel.biases or kernel.skip != "none" or kernel.limit is not None or kernel.activation not in _ACTIVATIONS:
        return {}

    def product(*, x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        order = experts.flatten().argsort(stable=True)
        numbers = torch.arange(kernel.experts, device=x.device)
        ends = torch.searchsorted(experts.flatten()[order], numbers, right=True).to(torch.int32)
        tokens = order // kernel.chosen
        gate, up = F.grouped_mm(x.flatten(0, 1)[tokens], gate_up.mT, offs=ends).chunk(2, -1)
        made = F.grouped_mm(_ACTIVATIONS[kernel.activation](gate) * up, down.mT, offs=ends)
        made = made * weights.flatten()[order][:, None]
        return torch.zeros_like(x).flatten(0, 1).index_add_(0, tokens, made).view_as(x)

    return {"grouped_mm": product}


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
