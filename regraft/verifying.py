"""Checking that what should be equal is: prefill, chunks and decode; graph and program; graph and transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.dequantizing import dequantized, is_quantized
from regraft.frontends.folder import open_model
from regraft.ir.cost import parameters
from regraft.ir.errors.program import IncomparableError, OracleError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.json_files import read_object
from regraft.ir.types import MemoryType
from regraft.machine import machine
from regraft.model import Model, lift
from regraft.programs import is_package, load_program
from regraft.quality import Runnable
from regraft.retracing import retrace

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5
LENGTH = 40  # random tokens a row
WINDOW = 128  # a window up to this is outrun by as many more
ROUNDINGS = 4  # two results are off by the sum of their roundings; either may be twice the one that is measured


@dataclass(frozen=True)
class Check:
    """One comparison: the largest absolute difference of logits, and what it may be."""

    name: str
    passed: bool
    error: float
    bound: float
    detail: str = ""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` compared."""

    subject: str
    against: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """Return the JSON of schema ``regraft.verify/1``."""
        return {
            "schema": "regraft.verify/1",
            "subject": self.subject,
            "against": self.against,
            "passed": self.passed,
            "checks": [vars(check) for check in self.checks],
        }


@dataclass(frozen=True)
class _Subject:
    """Something that gives logits, in float32."""

    name: str
    run: Runnable
    vocab: int
    folder: Path | None
    graph: Graph
    exact: Callable[[], Runnable]  # the same in float64
    model: Model | None = None


def verify(
    model: str | Path | Model,
    *,
    against: str | Path | Model | None = None,
    tokens: int | None = None,
    allow_keys: Collection[str] = (),
) -> VerifyReport:
    """Compare logits in float32 on random tokens.

    A model or a package must give the same for a prefill, for chunks of 1, 7 and the rest, for single tokens, and for
    a ragged batch as for each row alone. With ``against``, prefill and decode must also equal the other's: a model,
    a package, or ``"transformers"``, the original implementation.

    Logits may differ by 1e-5, relative to a quarter of the largest. Where they differ by more, the subject is computed
    in float64 too: fits can make a model whose float32 results are off by more than that in any order of sums.

    What an exact recipe of ``apply`` made of the other in half precision differs by the rounding of the weights that
    its passes made. Then the recipe is carried out again: it must give the other's logits before that rounding, and
    the subject's after it.

    A quantised checkpoint must also give what it gives dequantised, lifted from a folder of its own; transformers is
    given that one, since its kernels for quantised weights need a GPU.

    Args:
        model: A model, or a package.
        against: What it must equal, beside itself.
        tokens: Random tokens a row, more than 8; by default 40, beyond the longest of the windows of up to 128.
        allow_keys: Config keys that the family does not know.

    Raises:
        OracleError: transformers is asked for and cannot load the model.
        IncomparableError: The vocabularies differ.
        NoWeightsError: There is only a config.
    """
    import torch

    subject = _subject(model, allow_keys)
    generator = torch.Generator().manual_seed(0)
    length = _length(subject.graph) if tokens is None else tokens
    rows = torch.randint(0, subject.vocab, (3, length), generator=generator)
    with torch.no_grad(), ExitStack() as files:
        base = subject.run(rows)
        bound = TOLERANCE * max(1.0, base.abs().max().item() / 4)
        checks = [
            *_splits(subject.run, rows, base, bound),
            _ragged(subject.run, rows, base, bound),
        ]
        if subject.model is not None and is_quantized(subject.model):
            subject = replace(subject, folder=files.enter_context(dequantized(subject.model)))
            assert subject.folder is not None
            plain = _subject(subject.folder, allow_keys)
            checks += _equal("itself dequantised", subject.run, _fed(plain.run, rows), rows, base, bound)
        other = ""
        if against is not None:
            other, more = _against(subject, against, rows, base, bound, allow_keys)
            checks += more
        if not all(check.passed for check in checks):
            rounding = ROUNDINGS * _rounding(subject, rows, base)
            checks = [_rounded(check, rounding) for check in checks]
    return VerifyReport(subject.name, other, tuple(checks))


def _length(graph: Graph) -> int:
    """Return how many tokens show what a model does beyond its windows, where they are not long."""
    found = [v.type.window or 0 for op in graph.ops for v in op.results if isinstance(v.type, MemoryType)]
    return LENGTH + max((window for window in found if window <= WINDOW), default=0)


def _rounding(subject: _Subject, rows: Tensor, base: Tensor) -> float:
    """Return how far float32 logits are from those in float64; 0 if these are beyond the machine's memory."""
    if 8 * parameters(subject.graph).total > machine().memory_available_bytes:
        return 0.0
    return (subject.exact()(rows) - base).abs().max().item()


def _rounded(check: Check, rounding: float) -> Check:
    bound = max(check.bound, rounding)
    return replace(check, passed=check.error <= bound, bound=bound)


def _subject(model: str | Path | Model, allow_keys: Collection[str]) -> _Subject:
    if not isinstance(model, Model) and is_package(model):
        folder = Path(model)
        program = load_program(folder, dtype="float32")
        graph = lift(folder / "graph.rg").graph
        exact = partial(load_program, folder, dtype="float64")
        return _Subject(folder.name, program, int(program.vocab), folder, graph, exact)
    lifted = lift(model, allow_keys=allow_keys)
    source = lifted.require_source()
    run, exact = Interpreter(lifted.graph, source), partial(Interpreter, lifted.graph, source, "f64")
    return _Subject(lifted.name, run, lifted.vocab, lifted.files, lifted.graph, exact, lifted)


def _check(name: str, found: Tensor, expected: Tensor, bound: float, detail: str = "") -> Check:
    error = (found - expected).abs().max().item()
    return Check(name, error <= bound, error, bound, detail)


def feed(run: Runnable, rows: Tensor, sizes: list[int]) -> Tensor:
    """Return the logits of ``rows [B, T]`` fed through a cache in chunks of the given sizes."""
    import torch

    cache = run.new_cache(len(rows), rows.shape[1])
    return torch.cat([run(chunk, cache) for chunk in rows.split(sizes, 1)], 1)


def _splits(run: Runnable, rows: Tensor, base: Tensor, bound: float) -> list[Check]:
    length = rows.shape[1]
    ways = {
        "prefill through a cache": [length],
        "chunks of 1, 7 and the rest": [1, 7, length - 8],
        "one token at a time": [1] * length,
    }
    return [_check(f"{name} = prefill", feed(run, rows, sizes), base, bound) for name, sizes in ways.items()]


def _ragged(run: Runnable, rows: Tensor, base: Tensor, bound: float) -> Check:
    import torch

    length = rows.shape[1]
    lengths = torch.tensor([length, length // 2, 1])
    cache = run.new_cache(len(rows), length)
    found = run(rows, cache, lengths)
    rest = length - lengths
    tail = torch.stack([row.roll(-int(n)) for row, n in zip(rows, lengths, strict=True)])[:, : int(rest.max())]
    more = run(tail, cache, rest)
    joined = (torch.cat((found[row, :n], more[row, :m])) for row, (n, m) in enumerate(zip(lengths, rest, strict=True)))
    return _check("ragged batch = each row alone", torch.stack([*joined]), base, bound)


def _against(
    subject: _Subject,
    against: str | Path | Model,
    rows: Tensor,
    base: Tensor,
    bound: float,
    allow_keys: Collection[str],
) -> tuple[str, list[Check]]:
    """Compare with another implementation's prefill, and with its cached decode."""
    if against == "transformers":
        other, detail = _oracle(subject, rows)
        name = "transformers"
    else:
        second = _subject(against, allow_keys)
        if second.vocab != subject.vocab:
            reason = f"{subject.vocab} and {second.vocab} tokens in the vocabulary"
            raise IncomparableError(first=subject.name, second=second.name, reason=reason)
        name = second.name
        other, detail = _fed(second.run, rows), ""
        checks = _equal(name, subject.run, other, rows, base, bound, detail)
        if second.model is not None and not all(check.passed for check in checks):
            checks = _retraced(subject, second.model, name, other, rows, base, bound) or checks
        return name, checks
    return name, _equal(name, subject.run, other, rows, base, bound, detail)


def _retraced(
    subject: _Subject,
    original: Model,
    name: str,
    other: Callable[[list[int]], Tensor],
    rows: Tensor,
    base: Tensor,
    bound: float,
) -> list[Check]:
    """Compare the recipe that made the subject with the original before rounding; nothing, if it is another recipe."""
    found = retrace(subject.folder, original)
    if found is None:
        return []
    checks = _equal(f"its recipe on {name}, rounded", subject.run, _fed(found.rounded(), rows), rows, base, bound)
    if not all(check.passed for check in checks):
        return []
    run = found.unrounded()
    logits = run(rows)
    moved, dtypes = (base - logits).abs().max().item(), " and ".join(found.dtypes)
    detail = f"weights that exact passes made are stored as {dtypes}, which moves logits by up to {moved:.2g}"
    return checks + _equal(f"{name}, before rounding", run, other, rows, logits, bound, detail)


def _equal(
    name: str,
    run: Runnable,
    other: Callable[[list[int]], Tensor],
    rows: Tensor,
    base: Tensor,
    bound: float,
    detail: str = "",
) -> list[Check]:
    """Compare prefill and decode of ``run`` with those of another implementation, called ``name``."""
    length = rows.shape[1]
    sizes = [length // 2, *[1] * (length - length // 2)]
    return [
        _check(f"prefill = {name}", base, other([length]), bound, detail),
        _check(f"decode = {name}", feed(run, rows, sizes), other(sizes), bound, detail),
    ]


def _fed(run: Runnable, rows: Tensor) -> Callable[[list[int]], Tensor]:
    return lambda sizes: run(rows) if len(sizes) == 1 else feed(run, rows, sizes)


def _restore_buffers(model: Any, folder: Path) -> str:
    """Give buffers that transformers sets anew the checkpoint's values, and return a line that says so, or nothing.

    ZAYA's router forgets the bias of its class that skips (specs/zaya_cca.md, section 5).
    """
    import torch

    source = open_model(folder).require_checkpoint()
    held = set(source.names())
    changed: list[str] = []
    for name, buffer in model.named_buffers():
        if name in held and source.info(name).shape == tuple(buffer.shape):
            stored = source.read(name).to(buffer.dtype)
            if not torch.equal(stored, buffer):
                buffer.copy_(stored)
                changed.append(name)
    return f"{len(changed)} buffers as the checkpoint has them, {changed[0]} first" if changed else ""


def _oracle(subject: _Subject, rows: Tensor) -> tuple[Callable[[list[int]], Tensor], str]:
    """Return transformers' logits of ``rows`` for given chunk sizes, computed from the same folder in float32.

    And a line on what was done to its model beforehand, if anything was.
    """
    import torch

    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise OracleError(model=subject.name, reason=error) from None
    if subject.folder is None:
        raise OracleError(model=subject.name, reason="it has no folder with weights")
    if read_object(subject.folder / "config.json").get("model_type") == "regraft":
        raise IncomparableError(first=subject.name, second="transformers", reason="none of its classes is this model")
    loader: Any = AutoModelForCausalLM
    try:
        model = loader.from_pretrained(
            subject.folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
        ).eval()
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise OracleError(model=subject.folder, reason=str(error).partition("\n")[0]) from None
    detail = _restore_buffers(model, subject.folder)

    def run(sizes: list[int]) -> Tensor:
        cache: Any = None
        parts: list[Tensor] = []
        for chunk in rows.split(sizes, 1):
            with torch.no_grad():
                out = model(chunk, past_key_values=cache, use_cache=len(sizes) > 1)
            cache = out.past_key_values
            parts.append(out.logits)
        return torch.cat(parts, 1)

    return run, detail
