"""Attention of one token to a memory: the kernel beside its plain form, and that beside what the graph's ops say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.attend import AttendStep
from regraft.codegen.kernels.attention import Entries, HeadNorm, Turn
from regraft.codegen.kernels.kernel import Tile
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.pos import Rope, rotate
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from tests.ir.models import random_weights
from tests.kernels.harness import module
from tests.kernels.touched import touched


@dataclass(frozen=True)
class Cut(AttendStep):
    """A kernel whose rows are divided as a test wants it: over several splits of few rows."""

    splits: int = 12  # of all sequences of a batch together
    tile_rows: int = 16
    least: int = 16
    tile_heads: int = 16

    def tiles(self) -> Sequence[Tile]:
        sizes = {"HEADS": self.tile_heads, "SPLITS": self.splits, "LEAST": self.least, "ROWS": self.tile_rows}
        return [Tile(sizes)]


PLAIN = Cut("attend", heads=4, kv_heads=2, width=16, value_width=16, slots=96, scale=0.25)
NORMED = replace(PLAIN, q_norm=HeadNorm(1e-6), k_norm=HeadNorm(1e-6), turn=Turn(16))
KEY_FROM_VALUE = replace(
    PLAIN,
    width=32,
    value_width=32,
    rows="values",
    q_norm=HeadNorm(1e-6),
    k_norm=HeadNorm(1e-6),
    v_norm=HeadNorm(1e-6, weighted=False),
    turn=Turn(32, pairs=4),
)
LATENT = Cut(
    "attend",
    heads=20,
    kv_heads=1,
    width=40,
    value_width=32,
    slots=96,
    scale=0.2,
    rows="shared",
    q_apart=True,
    k_norm=HeadNorm(1e-6, width=32),
    turn=Turn(8, start=32, layout="interleaved"),
)
POOLED = replace(NORMED, slots=19, ring=True, window=19)
KINDS: Mapping[str, Cut] = {
    "normed": NORMED,
    "offset": replace(NORMED, q_norm=HeadNorm(1e-5, offset=1.0), k_norm=HeadNorm(1e-5, offset=1.0)),
    "values_normed": replace(NORMED, v_norm=HeadNorm(1e-6, weighted=False), turn=Turn(16, pairs=2)),
    "partial": replace(NORMED, turn=Turn(8)),
    "pairs": replace(NORMED, turn=Turn(8, start=8, layout="interleaved"), temper=True),
    "odd_widths": replace(PLAIN, width=40, value_width=24, turn=Turn(40)),
    "late_turn": replace(PLAIN, width=48, value_width=20, q_norm=HeadNorm(1e-6), turn=Turn(12, start=36)),
    "narrow": replace(PLAIN, width=6, value_width=6, turn=Turn(6)),
    "narrow_ring": replace(NORMED, slots=24, ring=True, window=17),
    "narrow_window": replace(NORMED, window=33),
    "first_seen": replace(NORMED, window=33, first=5),
    "anchored_narrow": replace(NORMED, slots=30, ring=True, kept=6, window=20, first=3),
    "pooled": replace(POOLED, pooled=Entries(4, 24, bias=1.4), kept=4, first=4, slots=23, sink=True),
    "pooled_chosen": replace(POOLED, pooled=Entries(4, 24, chosen=6)),
    "capped": replace(NORMED, softcap=0.7, sink=True, gate="sigmoid", gate_wide=True),
    "gated": replace(NORMED, gate="softplus"),
    "uneven": replace(NORMED, heads=5, kv_heads=3, head_map=(2, 0, 0, 2, 0)),
    "across": replace(PLAIN, kv_heads=1, width=48, value_width=40, turn=Turn(8, every=12), writes=False),
    "reader": replace(NORMED, k_norm=None, writes=False, window=40),
    "key_from_value": KEY_FROM_VALUE,
    "key_from_value_all": replace(KEY_FROM_VALUE, turn=Turn(8, layout="interleaved"), temper=True),
    "key_from_value_reader": replace(KEY_FROM_VALUE, writes=False, turn=Turn(32, pairs=8)),
    "latent": LATENT,
    "latent_blocks": replace(LATENT, heads=37, slots=50, ring=True, window=50),
    "latent_apart": replace(LATENT, k_apart=True, k_norm=None, sink=True),
    "latent_alone": replace(LATENT, width=32, q_apart=False, turn=None),
    "one_row": replace(PLAIN, rows="shared", kv_heads=1, k_norm=HeadNorm(1e-6), turn=Turn(4, start=12)),
    "groups": replace(NORMED, heads=2, kv_heads=1, splits=60, least=8, sink=True, slots=300),
}


def inputs(k: AttendStep, dtype: torch.dtype, starts: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Return tensors for each argument. Slots that no token has filled hold no numbers."""
    torch.manual_seed(seed)
    batch, kv = len(starts), k.kv_heads
    angle = torch.rand(batch, 1, 1, k.turn.channels // 2 if k.turn else 1) * 7
    if k.turn is not None and k.turn.pairs is not None:
        angle[..., k.turn.pairs :] = 0.0
    cos, sin = angle.cos(), angle.sin()
    if k.turn is not None and k.turn.layout == "halves":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    keys = torch.randn(batch, k.slots, kv, k.row_width)
    values = torch.randn(batch, k.slots, kv, k.value_width)
    for row, start in enumerate(starts):
        filled = start if k.writes else start + 1
        keys[row, filled:] = torch.nan
        values[row, filled:] = torch.nan
    every = {
        "q": torch.randn(batch, 1, k.heads, k.value_width if k.q_apart else k.width),
        "q_turned": torch.randn(batch, 1, k.heads, k.far + 3)[..., 3:],
        "k": torch.randn(batch, 1, kv, k.near if k.k_apart else k.width),
        "k_turned": torch.randn(batch, 1, kv, k.far),
        "v": torch.randn(batch, 1, kv, k.value_width),
        "cos": cos,
        "sin": sin,
        "q_norm": torch.randn(k.width),
        "k_norm": torch.randn(k.width),
        "temper": torch.rand(kv) + 0.5,
        "sink": torch.randn(k.heads),
        "gate": torch.randn(batch, 1, k.heads, k.value_width) if k.gate_wide else torch.randn(batch, 1, k.heads),
        "keys": keys,
        "values": values,
        **(pooled(k, starts) if k.pooled else {}),
    }
    given = {name: each if name == "chosen" else each.to(dtype) for name, each in every.items() if name in k.arguments}
    return given | {"start": torch.tensor(starts)}


def pooled(k: AttendStep, starts: Sequence[int]) -> dict[str, Tensor]:
    """Return pooled rows, those there are, and the numbers of chosen ones that stand before the window."""
    assert k.pooled is not None
    assert k.window is not None
    rate, count = k.pooled.rate, k.pooled.slots
    keys, values = (torch.randn(len(starts), count, k.kv_heads, width) for width in (k.width, k.value_width))
    chosen = torch.full((len(starts), 1, k.pooled.chosen or 1), -1)
    for row, start in enumerate(starts):
        keys[row, start // rate :] = torch.nan
        values[row, start // rate :] = torch.nan
        seen = torch.randperm(-(-max(start - k.window + 1, 0) // rate))[: k.pooled.chosen or 1]
        chosen[row, 0, : len(seen)] = seen
    return {"far_keys": keys, "far_values": values, "chosen": chosen}


def copied(given: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return tensors of their own, floats in another dtype if given."""
    return {
        name: each.clone() if name in ("start", "chosen") else each.to(dtype, copy=True) for name, each in given.items()
    }


def both(program: Any, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the kernel computes and keeps, and what its plain form does in float64."""
    mine, wide = dict(given), copied(given, torch.float64)
    mine["out"] = program.attend(*mine.values())
    wide["out"] = program.attend_plain(*wide.values())
    return mine, wide


def error(mine: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> float:
    """Return the largest error of results and memories; empty slots must be the same in both."""
    names = [name for name in ("out", "keys", "values") if name in mine]
    for name in names:
        assert torch.equal(mine[name].isnan(), wide[name].isnan())
    return max((mine[name] - wide[name]).nan_to_num().abs().max().item() for name in names)


COVERED = (  # by kinds with more than they have
    "values_normed",
    "partial",
    "narrow_ring",
    "narrow_window",
    "key_from_value",
    "latent",
)


def starts_of(k: AttendStep) -> list[int]:
    """Return positions: in one and in several splits, or at the start and beyond the ring where there is one."""
    if k.pooled:
        return [5, 94]
    return [0, 77] if k.ring else [17, k.slots - 1]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in COVERED else kind for kind in KINDS]
)
def test_it_computes_what_its_plain_form_does(kind: str, tmp_path: Path) -> None:
    k = KINDS[kind]
    program = module(tmp_path, k)
    mine, wide = both(program, inputs(k, torch.float32, starts_of(k)))
    assert error(mine, wide) < 5e-6  # sums of up to 300 float32 numbers of size 1, and exponentials to 2 in 10^7


@pytest.mark.parametrize("kind", ["capped", "key_from_value"])
def test_half_precision(kind: str, tmp_path: Path) -> None:
    """The kernel rounds less often than its plain form, which rounds where the graph's ops do."""
    k = KINDS[kind]
    program = module(tmp_path, k)
    given = inputs(k, torch.float16, starts_of(k))
    plain = copied(given)
    plain["out"] = program.attend_plain(*plain.values())
    mine, wide = both(program, given)
    assert error(mine, wide) <= max(2 * error(plain, wide), 2.0**-9)


def test_ends_of_tiles_and_splits(tmp_path: Path) -> None:
    """Splits of 16 rows: none beside the token's own, one less than full, full, one more, and splits left over."""
    starts = [0, 1, 15, 16, 17, 33, 64]
    k = replace(PLAIN, splits=4 * len(starts))
    program = module(tmp_path, k)
    mine, wide = both(program, inputs(k, torch.float32, starts))
    assert error(mine, wide) < 2e-6


@pytest.mark.parametrize("kind", ["capped", "key_from_value"])
def test_how_rows_are_divided_changes_nothing(kind: str, tmp_path: Path) -> None:
    results: list[Tensor] = []
    for splits, rows, least in ((1, 32, 16), (6, 16, 16), (14, 16, 2)):
        k = replace(KINDS[kind], splits=splits, tile_rows=rows, least=least)
        given = inputs(k, torch.float32, [90, 40])
        results.append(module(tmp_path, k).attend(*given.values()))
    most = results[0].abs().max().item()
    assert max((each - results[0]).abs().max().item() for each in results) < 1e-6 * most


@pytest.mark.parametrize("position", [1, 131071])
def test_far_positions_are_turned_as_the_graph_turns_them(position: int, tmp_path: Path) -> None:
    k = replace(NORMED, q_norm=None, k_norm=None, slots=8, ring=True, window=8)
    program = module(tmp_path, k)
    given = inputs(k, torch.float32, [position])
    rope = rope_of(MEANINGS["normed"].graph(), "kr")
    given["cos"], given["sin"] = turns(rope, torch.tensor([position]), torch.float32)
    angle = position * rope.frequencies()
    key = rotate(given["k"], angle.cos(), angle.sin(), 16, "halves")
    mine, wide = both(program, given)
    assert error(mine, wide) < 2e-6
    assert torch.allclose(mine["keys"][:, position % 8], key[:, 0], rtol=0, atol=1e-6)


def test_an_idle_row_behind_the_last_slot_touches_no_other(tmp_path: Path) -> None:
    k = replace(NORMED, slots=20)
    program = module(tmp_path, k)
    given = inputs(k, torch.float32, [20, 9])
    given["keys"][0], given["values"][0] = 1.0, 1.0
    mine, wide = both(program, given)
    assert error(mine, wide) < 2e-6


def test_heads_may_stand_apart(tmp_path: Path) -> None:
    """Queries and gates side by side in each head, as one projection gives them; keys and values behind each other."""
    k = replace(NORMED, gate="sigmoid", gate_wide=True)
    program = module(tmp_path, k)
    given = inputs(k, torch.float32, [9, 30])
    paired = torch.cat((given["q"], given["gate"]), -1)
    behind = torch.cat((given["k"].flatten(2), given["v"].flatten(2)), -1)
    apart = dict(given, q=paired[..., :16], gate=paired[..., 16:])
    apart["k"], apart["v"] = (each.unflatten(2, (2, 16)) for each in behind.split(32, -1))
    apart["keys"], apart["values"] = given["keys"].clone(), given["values"].clone()
    assert torch.equal(program.attend(*apart.values()), program.attend(*given.values()))


MOVED = (
    "across",
    "pooled",
    "pooled_chosen",
    "values_normed",
    "pairs",
    "odd_widths",
    "anchored_narrow",
    "first_seen",
    "capped",
    "uneven",
    "reader",
)


@pytest.mark.parametrize("kind", [*MOVED, "key_from_value_all", "key_from_value_reader", "latent_apart"])
def test_it_moves_what_it_says(kind: str, tmp_path: Path) -> None:
    k = KINDS[kind]
    program = module(tmp_path, k)
    with touched() as run:
        program.attend(*inputs(k, torch.float32, [70]).values())
    moved = k.moved(4, 1, 71)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_groups_of_splits_move_what_they_say(tmp_path: Path) -> None:
    k = KINDS["groups"]
    program = module(tmp_path, k)
    with touched() as run:
        program.attend(*inputs(k, torch.float32, [290]).values())
        program.attend(*inputs(k, torch.float32, [290]).values())  # counters stand at zero again
    moved = k.moved(4, 1, 291)
    assert (run.read, run.written) == (2 * moved.read, 2 * moved.written)


@pytest.mark.parametrize("kind", ["capped", "latent_apart"])
def test_the_op_is_registered_as_torch_wants(kind: str, tmp_path: Path) -> None:
    k = KINDS[kind]
    given = inputs(k, torch.float32, [5])
    for name in {"keys", "values"} & given.keys():
        given[name] = given[name].nan_to_num()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(module(tmp_path, k).attend, tuple(given.values()), test_utils=checks)


def turns(rope: Rope, pos: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [B, 1, 1, ...] of positions [B], as a model computes them once a step."""
    angle = pos[:, None, None, None].to(dtype) * rope.frequencies().to(dtype)
    cos, sin = angle.cos(), angle.sin()
    if rope.layout == "halves":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return cos, sin


def rope_of(graph: Graph, name: str) -> Rope:
    """Return the op that makes a value."""
    op = graph[name].op
    assert isinstance(op, Rope)
    return op


@dataclass(frozen=True)
class Meaning:
    """A kernel, and the ops that it stands for."""

    k: Cut
    rope: str = "base = 100.0, channels = 16"
    norm: str = "eps = 1e-06"
    v: str = "%vh = core.unflatten %v {parts = 2}"
    sight: str = ""
    attend: str = ""
    sink: bool = False

    def graph(self) -> Graph:
        """Return the graph of a layer's attention, of which tokens are rows of tables."""
        k = self.k
        return parse_graph(f"""
        graph @g (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {{
          %wq = weight.load : f32[32, {k.heads * k.width}]
          %wk = weight.load : f32[32, {k.kv_heads * k.width}]
          %wv = weight.load : f32[32, {k.kv_heads * k.value_width}]
          %q_norm = weight.load : f32[{k.width}]
          %k_norm = weight.load : f32[{k.width}]
          %temper = weight.load : f32[{k.kv_heads}]
          %sink = weight.load : f32[{k.heads}]
          %q = core.embed %tokens, %wq
          %k = core.embed %tokens, %wk
          %v = core.embed %tokens, %wv
          %qh = core.unflatten %q {{parts = {k.heads}}}
          %kh = core.unflatten %k {{parts = {k.kv_heads}}}
          {self.v}
          %qn = core.norm %qh, weight=%q_norm {{{self.norm}}}
          %kn = core.norm %kh, weight=%k_norm {{{self.norm}}}
          %kt = {"attn.temper %kn, %temper" if k.temper else "core.scale %kn {factor = 1.0}"}
          %qr = pos.rope %qn, %pos {{{self.rope}}}
          %kr = pos.rope %kt, %pos {{{self.rope}}}
          %m = state.kv %kr, %vh {{{self.sight}}}
          %c = attn.attend %qr, %m{", sink=%sink" if self.sink else ""} {{scale = {k.scale}{self.attend}}}
          return %c
        }}""")


MEANINGS: Mapping[str, Meaning] = {
    "normed": Meaning(replace(NORMED, slots=26)),
    "anchored": Meaning(
        replace(NORMED, slots=11, ring=True, kept=3, window=8, first=3),
        sight="window = 8, first = 3",
        attend=", window = 8, first = 3",
    ),
    "narrow_ring": Meaning(
        replace(NORMED, slots=9, ring=True, window=5), sight="window = 9", attend=", window = 5", norm="eps = 1e-06"
    ),
    "capped": Meaning(
        replace(KINDS["offset"], slots=26, softcap=0.7, sink=True, q_norm=HeadNorm(1e-5, offset=1.0), temper=True),
        norm='eps = 1e-05, offset = 1.0, cast = "after"',
        attend=", softcap = 0.7",
        sink=True,
    ),
    "uneven": Meaning(
        replace(NORMED, slots=26, heads=5, head_map=(1, 0, 0, 1, 0), turn=Turn(12, layout="interleaved")),
        rope='base = 100.0, channels = 12, layout = "interleaved"',
        attend=", head_map = [1, 0, 0, 1, 0]",
    ),
    "key_from_value": Meaning(
        replace(KEY_FROM_VALUE, slots=26),
        rope="base = 100.0, channels = 32, pairs = 4",
        v="%vh = core.norm %kh {eps = 1e-06}",
    ),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_step_by_step_it_is_what_the_graphs_ops_say(name: str, tmp_path: Path) -> None:
    meaning = MEANINGS[name]
    k, graph = meaning.k, meaning.graph()
    weights = random_weights(graph)
    tokens = torch.arange(52).view(2, 26) * 7 % 32
    run = Interpreter(graph, TensorSource(weights), "f64").run(tokens, edges=["qh", "kh", "v", "c"])
    program, kept = module(tmp_path, k), inputs(k, torch.float64, [0, 0])
    for t in range(26):
        pos = torch.tensor([t, t])
        cos, sin = turns(rope_of(graph, "qr"), pos, torch.float64)
        v = run["v"].unflatten(-1, (k.kv_heads, -1))[:, t : t + 1]
        step = {
            "q": run["qh"][:, t : t + 1],
            "k": run["kh"][:, t : t + 1],
            "v": v,
            "cos": cos,
            "sin": sin,
            "start": pos,
        }
        given = {name: {**kept, **weights, **step}[name] for name in k.arguments}
        out = program.attend_plain(*given.values())
        assert (out - run["c"][:, t : t + 1]).abs().max() < 1e-12


LATENT_GRAPH = """
graph @g (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
  %wq = weight.load : f32[32, 800]
  %wk = weight.load : f32[32, 40]
  %k_norm = weight.load : f32[32]
  %q = core.embed %tokens, %wq
  %k = core.embed %tokens, %wk
  %qh = core.unflatten %q {parts = 20}
  %q_near = core.slice %qh {start = 0, stop = 32}
  %q_far = core.slice %qh {start = 32, stop = 40}
  %qr = pos.rope %q_far, %pos {base = 100.0, channels = 8, layout = "interleaved"}
  %q_both = core.concat %q_near, %qr
  %k_near = core.slice %k {start = 0, stop = 32}
  %k_far = core.slice %k {start = 32, stop = 40}
  %kn = core.norm %k_near, weight=%k_norm {eps = 1e-06}
  %k_head = core.unflatten %k_far {parts = 1}
  %kr = pos.rope %k_head, %pos {base = 100.0, channels = 8, layout = "interleaved"}
  %k_flat = core.flatten %kr
  %row = core.concat %kn, %k_flat
  %kept = state.rows %row
  %rows = mem.read %kept
  %heads = core.unflatten %rows {parts = 1}
  %latents = core.slice %heads {start = 0, stop = 32}
  %m = mem.view %kept, %heads, v=%latents
  %c = attn.attend %q_both, %m {scale = 0.2}
  return %c
}"""


def test_latents_step_by_step_are_what_the_graphs_ops_say(tmp_path: Path) -> None:
    k, graph = replace(LATENT, slots=26), parse_graph(LATENT_GRAPH)
    weights, tokens = random_weights(graph), torch.arange(52).view(2, 26) * 7 % 32
    run = Interpreter(graph, TensorSource(weights), "f64").run(tokens, edges=["q_near", "q_far", "k", "c"])
    program, kept = module(tmp_path, k), inputs(k, torch.float64, [0, 0])
    for t in range(26):
        pos = torch.tensor([t, t])
        cos, sin = turns(rope_of(graph, "kr"), pos, torch.float64)
        q, turned, row, wanted = (run[name][:, t : t + 1] for name in ("q_near", "q_far", "k", "c"))
        out = program.attend_plain(q, turned, row[:, :, None], cos, sin, weights["k_norm"], kept["keys"], pos)
        assert (out - wanted).abs().max() < 1e-12
