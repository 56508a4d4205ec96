"""``state.compressed``: one row for every few tokens, pooled by learned gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, INT
from regraft.ir.dims import Sizes
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Cost, Dims, attribute, defaulted, op, operand, optional_operand, result
from regraft.ir.ops.attn import State
from regraft.ir.ops.seq import wide_dtype
from regraft.ir.types import ITEM_BITS, Field, MemoryType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Rows, Run


@op("state.compressed")
class Compressed(State):
    """Pool every ``rate`` tokens into a row: channel by channel, a softmax of gates weighs the tokens.

    A row is there once its last token is, and stands at the position of its first one. ``bias`` is added to the
    gates, a row for each place in a window; without ``gates`` it is all there is, and zeros give the mean. With
    ``overlap`` values and gates are twice as wide: the first half of the channels is what a token gives to the window
    after its own, the second half what it gives to its own. Beside the rows it keeps the tokens of the unfinished
    window, and with ``overlap`` those of the last finished one. Source: specs/deepseek_v4.md, section 7.

    Example:
        %m = state.compressed %values, %bias, gates=%gates {rate = 4, overlap = true} : memory<bf16; x [512]; every 4>
    """

    values = operand("B T W", dtype="float")
    bias = operand("R W", dtype="float")
    gates = optional_operand("B T W", dtype="values")
    out = result()
    rate = attribute(INT)
    overlap = defaulted(BOOL, False)

    def verify(self, dim: Dims) -> None:
        if self.rate < 1 or dim["R"] != self.rate:
            raise OpRuleError(
                op=self.label, problem=f"rate {self.rate}, biases for {dim['R']}", fix="a bias for each place"
            )
        if self.overlap and dim.size("W") % 2:
            raise OpRuleError(op=self.label, problem=f"{dim['W']} channels in two halves", fix="an even number")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        width = dim.size("W") // 2 if self.overlap else dim.size("W")
        return (MemoryType(self.values.tensor.dtype, (Field("x", (width,)),), rate=self.rate),)

    def cost(self, at: Sizes) -> Cost:
        kept, width = self.kept.memory, self.bias.tensor.sizes[1]
        new = kept.rows(at["S"]) - kept.rows(at["S"] - at["T"])
        # pooling is in float32 at least, and so is what it still needs: values, and gates where there are any
        both = (1 if self.gates is None else 2) * ITEM_BITS[wide_dtype(kept.dtype)] // 8
        tail = both * (self.rate - 1) * width
        before = both * self.rate * (width // 2) if self.overlap else 0
        return Cost(
            weights=self.weight_bytes(at),
            cache_written=new * kept.row_bytes * at["B"],
            cache=(kept.rows(at["S"]) * kept.row_bytes + tail + before) * at["B"],
            activations=self.activation_bytes(at),
        )

    def reference(self, run: Run, values: Tensor, bias: Tensor, gates: Tensor | None = None) -> Rows:
        import torch

        from regraft.ir.interpret import Rows

        rate, start = self.rate, run.pos[:, 0]
        given = {"values": run.wide(values)}
        if gates is not None:
            given["gates"] = run.wide(gates)
        tokens = self._continued(run, Rows(given, run.pos, run.valid))
        end = start + run.valid.sum(1)
        self._keep_tokens(run, tokens, (end // rate * rate)[:, None])
        count = int((end // rate - start // rate).amax())
        number = start[:, None] // rate + torch.arange(count, device=values.device)
        slots = torch.arange(-rate if self.overlap else 0, rate, device=values.device)
        wanted = (number * rate)[..., None] + slots
        pooled = self._pooled(run, tokens, wanted, bias)
        rows = Rows({"x": pooled.to(values.dtype)}, number * rate, number < (end // rate)[:, None])
        rows = run.continued(self.out.name, rows)
        run.keep_rows(self.out.name, rows, rows.valid)
        return rows

    def _continued(self, run: Run, new: Rows) -> Rows:
        """Return the tokens that are kept and the new ones; those of a finished window have their first half only."""
        import torch

        from regraft.ir.interpret import Rows

        tokens = run.continued(f"{self.out.name}.open", new)
        before = run.cache.rows.get(f"{self.out.name}.before") if run.cache else None
        if before is None:
            return tokens
        whole = {name: torch.nn.functional.pad(x, (0, x.shape[-1])) for name, x in before.fields.items()}
        fields = {name: torch.cat((whole[name], x), 1) for name, x in tokens.fields.items()}
        pos, valid = torch.cat((before.pos, tokens.pos), 1), torch.cat((before.valid, tokens.valid), 1)
        return Rows(fields, pos, valid)

    def _keep_tokens(self, run: Run, tokens: Rows, first: Tensor) -> None:
        """Keep the tokens of the window that starts at ``first [B, 1]``, and with an overlap what those before give."""
        from regraft.ir.interpret import Rows

        keep = tokens.valid & (tokens.pos >= first)
        keep_exactly(run, f"{self.out.name}.open", tokens, keep, self.rate - 1)
        if self.overlap:
            given = {name: x.chunk(2, -1)[0] for name, x in tokens.fields.items()}
            keep = tokens.valid & (tokens.pos >= first - self.rate) & (tokens.pos < first)
            keep_exactly(run, f"{self.out.name}.before", Rows(given, tokens.pos, tokens.valid), keep, self.rate)

    def _pooled(self, run: Run, tokens: Rows, wanted: Tensor, bias: Tensor) -> Tensor:
        """Return the new rows ``[B, E, W]``, given the position of each of their tokens ``[B, E, slots]``."""
        import torch

        found = (tokens.pos[:, None, None] == wanted[..., None]) & tokens.valid[:, None, None]
        there, place = found.any(-1), found.to(torch.int8).argmax(-1)
        index = place.flatten(1)[..., None].expand(-1, -1, bias.shape[1])
        taken = {n: x.gather(1, index).unflatten(1, wanted.shape[1:]) for n, x in tokens.fields.items()}
        values, gates = taken["values"], run.wide(bias)[wanted % self.rate]
        if "gates" in taken:
            gates = taken["gates"] + gates
        if self.overlap:
            half = bias.shape[1] // 2
            values, gates = (
                torch.cat((x[:, :, : self.rate, :half], x[:, :, self.rate :, half:]), 2) for x in (values, gates)
            )
        gates = gates.masked_fill(~there[..., None], -torch.inf)
        shares = torch.softmax(gates, 2).nan_to_num(0.0)  # rows that a shorter sequence does not have
        return (values.masked_fill(~there[..., None], 0.0) * shares).sum(2)


def keep_exactly(run: Run, name: str, rows: Rows, keep: Tensor, count: int) -> None:
    """Note ``count`` rows to keep under a name: those that ``keep`` says, bool ``[B, N]``, then blank ones."""
    import torch

    from regraft.ir.interpret import Rows

    if run.cache is None:
        return
    padded = torch.nn.functional.pad(keep, (0, count))
    order = torch.argsort((~padded).to(torch.int8), dim=1, stable=True)[:, :count]

    def pick(x: Tensor) -> Tensor:
        index = order.view(*order.shape, *[1] * (x.ndim - 2)).expand(*order.shape, *x.shape[2:])
        return torch.cat((x, x.new_zeros(len(x), count, *x.shape[2:])), 1).gather(1, index)

    fields = {field: pick(x) for field, x in rows.fields.items()}
    run.written[name] = Rows(fields, pick(rows.pos), padded.gather(1, order))
