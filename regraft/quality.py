"""What a pass did to a model: perplexity, divergence from the base, layer errors, recall, cache."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.calibration import NeedleLengthError
from regraft.ir.errors.program import IncomparableError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Cache, Interpreter, Run, execute
from regraft.ir.kinds import Layer, split_layers
from regraft.ir.op import Value
from regraft.ir.types import MemoryType

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

Progress = Callable[[int, int, str], None]


class Runnable(Protocol):
    """An interpreter or an emitted program."""

    def __call__(self, tokens: Tensor, cache: Any = None, lengths: Any = None, last: int | None = None) -> Tensor:
        """Return logits ``[B, T, V]``."""
        ...

    def new_cache(self, batch: int, context: int) -> Any:
        """Return an empty cache."""
        ...


@dataclass(frozen=True)
class Needle:
    """Recall of one value among many: prompt length in tokens, where it stood (0 first, 1 last), share found."""

    length: int
    depth: float
    recall: float


@dataclass(frozen=True)
class LayerError:
    """Relative error of a layer.

    ``error_teacher_forced``: the layer alone, fed with the original's values, against the original's update.
    ``error_free_running``: the stream after the layer in the whole converted model, against the original's.
    """

    layer: int
    error_teacher_forced: float
    error_free_running: float


@dataclass(frozen=True)
class EvalReport:
    """What `evaluate` measured. KL is KL(base ‖ model) in nats per token."""

    tokens: int
    context: int
    perplexity: float
    base_perplexity: float | None
    kl_mean: float | None
    kl_p99: float | None
    top1_agreement: float | None
    needle: tuple[Needle, ...]
    base_needle: tuple[Needle, ...]
    layers: tuple[LayerError, ...]
    cache_predicted: int | None
    cache_measured: int | None
    text: str
    text_sha256: str

    def to_json(self) -> dict[str, object]:
        """Return the JSON of schema ``regraft.eval/1``."""
        return {
            "schema": "regraft.eval/1",
            "tokens": self.tokens,
            "context": self.context,
            "text": self.text,
            "text_sha256": self.text_sha256,
            "perplexity": self.perplexity,
            "base_perplexity": self.base_perplexity,
            "kl": {"mean": self.kl_mean, "p99": self.kl_p99},
            "top1_agreement": self.top1_agreement,
            "needle": [asdict(each) for each in self.needle],
            "base_needle": [asdict(each) for each in self.base_needle],
            "layers": [asdict(each) for each in self.layers],
            "cache": {"predicted_bytes": self.cache_predicted, "measured_bytes": self.cache_measured},
        }


@dataclass
class Scores:
    """Sums over scored tokens."""

    nll: float = 0.0
    base_nll: float = 0.0
    agree: int = 0
    tokens: int = 0
    kl: list[Tensor] | None = None


def score(
    model: Runnable, base: Runnable | None, tokens: Tensor, batch: int = 4, progress: Progress | None = None
) -> Scores:
    """Score every next token of ``tokens [N, T]`` with the model, and with the base beside it.

    Raises:
        IncomparableError: The vocabularies differ.
    """
    import torch

    scores = Scores(kl=[])
    for done, rows in enumerate(tokens.split(batch)):
        target = rows[:, 1:, None]
        with torch.no_grad():
            mine = model(rows)[:, :-1].float().log_softmax(-1)
            scores.nll -= mine.gather(-1, target).double().sum().item()
            scores.tokens += target.numel()
            if base is not None:
                theirs = base(rows)[:, :-1].float().log_softmax(-1)
                if theirs.shape != mine.shape:
                    reason = f"{mine.shape[-1]} and {theirs.shape[-1]} tokens in the vocabulary"
                    raise IncomparableError(first="the model", second="the base", reason=reason)
                scores.base_nll -= theirs.gather(-1, target).double().sum().item()
                scores.agree += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
                assert scores.kl is not None
                scores.kl.append((theirs.exp() * (theirs - mine)).sum(-1).flatten())
        if progress is not None:
            progress(min((done + 1) * batch, len(tokens)), len(tokens), "windows")
    return scores


def layer_errors(converted: Interpreter, base: Interpreter, tokens: Tensor) -> list[LayerError]:
    """Compare the streams of two graphs layer by layer, where both have a layer's output ``layers.N.out`` in one form.

    Args:
        converted: The converted model.
        base: The model that it came from.
        tokens: int64 ``[N, T]``.
    """
    original = base.graph
    layers = [item for item in split_layers(converted.graph) if isinstance(item, Layer)]
    made = {v: layer for layer in layers for v in layer.outputs}
    named = [layer for layer in layers if any(v.name == _stream(layer) and _alike(v, original) for v in layer.outputs)]
    streams = [_stream(layer) for layer in named]
    read = {v for layer in layers for v in layer.inputs if not v.is_weight}
    before = base.run(tokens, edges={*streams, *(v.name for v in read if _alike(v, original))})
    after = converted.run(tokens, edges=streams)
    errors: list[LayerError] = []
    for layer, name in zip(named, streams, strict=True):
        free = _relative(after[name] - before[name], before[name])
        forced = _forced(layer, converted, tokens, before, made)
        errors.append(LayerError(layer.number, forced, free))
    return errors


def _stream(layer: Layer) -> str:
    return f"layers.{layer.number}.out"


def _alike(value: Value, graph: Graph) -> bool:
    """Return whether a graph has a value of this name and type."""
    return value.name in graph and graph[value.name].type == value.type


def _forced(
    layer: Layer, model: Interpreter, tokens: Tensor, before: Mapping[str, Any], made: Mapping[Value, Layer]
) -> float:
    """Return the error of one layer fed with the original's values; NaN where the original has no such value."""
    import torch

    name = _stream(layer)
    out = model.graph[name]
    run = model.begin(tokens)
    given = {**before, "tokens": tokens, "pos": run.pos, "valid": run.valid}
    with torch.no_grad():
        result = _fed(layer, out, model, run, given, made)
    if result is None:
        return math.nan
    stream = next((given[v.name] for v in layer.inputs if v.type == out.type and v.name in given), None)
    update = before[name] - stream if isinstance(stream, torch.Tensor) else before[name]
    return _relative(result - before[name], update)


def _fed(
    layer: Layer, wanted: Value, model: Interpreter, run: Run, given: Mapping[str, Any], made: Mapping[Value, Layer]
) -> Any:
    """Return what a layer makes of given values, or None where one is missing.

    A memory that the original does not keep in this form comes of the layer that makes it, fed in the same way.
    """
    ops = [op for op in layer.ops if not op.weight_time]
    values: dict[Value, Any] = {v: model.weights[v.name] for op in ops for v in op.operands if v.is_weight}
    for value in layer.inputs:
        if value.is_weight:
            continue
        found = given.get(value.name)
        if found is None and isinstance(value.type, MemoryType) and value in made:
            found = _fed(made[value], value, model, run, given, made)
        if found is None:
            return None
        values[value] = found
    return execute(ops, values, run, {wanted})[wanted]


def _relative(error: Tensor, of: Tensor) -> float:
    return (error.double().norm() / of.double().norm()).item()


@dataclass(frozen=True)
class Probes:
    """Which recall probes to ask: prompt lengths in tokens, how many at each depth, and the seed that draws them."""

    lengths: tuple[int, ...] = (64, 128)
    count: int = 20
    seed: int = 1

    def check(self, context: int, model: str) -> None:
        """Check that a model has seen texts as long as the prompts.

        Raises:
            NeedleLengthError: One of them is longer than ``context`` tokens.
        """
        longest = max(self.lengths, default=0)
        if longest > context:
            raise NeedleLengthError(length=longest, model=model, context=context)


def needles(model: Runnable, tokenizer: Tokenizer, begin: int | None, probes: Probes) -> list[Needle]:
    """Ask for one of many random key-value pairs, at five depths of prompts of each length in tokens.

    A probe is a list of lines ``ab = 'xyz'`` and then ``assert ab == '``; it is right when every token of the value
    that the prompt does not fix is the most likely one.
    """
    rng = random.Random(probes.seed)
    per_line = len(tokenizer.encode("ab = 'xyz'\n", add_special_tokens=False).ids)
    found: list[Needle] = []
    for length in probes.lengths:
        pairs = max(2, length // per_line)
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
            asked = [_probe(tokenizer, begin, pairs, round(depth * (pairs - 1)), rng) for _ in range(probes.count)]
            found.append(Needle(length, depth, _recalled(model, asked) / probes.count))
    return found


def _probe(
    tokenizer: Tokenizer, begin: int | None, pairs: int, asked: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Return a probe's tokens, and the places of those that its value decides."""

    def word(size: int) -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=size))

    values: dict[str, str] = {}
    letters = 2
    while 26**letters < 2 * pairs:  # so many names that few are drawn twice
        letters += 1
    while len(values) < pairs:
        values[word(letters)] = word(3)
    name = list(values)[asked]
    prompt = "".join(f"{key} = '{value}'\n" for key, value in values.items()) + f"assert {name} == '"
    encoded = tokenizer.encode(f"{prompt}{values[name]}'\n", add_special_tokens=False)
    first = [] if begin is None else [begin]
    end = len(prompt) + len(values[name])
    places = [i + len(first) for i, (a, b) in enumerate(encoded.offsets) if len(prompt) <= a < end and b > a]
    return first + encoded.ids, places


def _recalled(model: Runnable, probes: Sequence[tuple[list[int], list[int]]]) -> int:
    """Return how many probes are answered right, all asked in one batch."""
    import torch

    lengths = torch.tensor([len(ids) for ids, _ in probes])
    tokens = torch.zeros(len(probes), int(lengths.max()), dtype=torch.int64)
    for row, (ids, _) in enumerate(probes):
        tokens[row, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        best = model(tokens, lengths=lengths)[:, :-1].argmax(-1)
    hits = best == tokens[:, 1:]
    return sum(all(bool(hits[row, place - 1]) for place in places) for row, (_, places) in enumerate(probes))


def measured_cache(model: Runnable, context: int, vocab: int) -> int | None:
    """Return the bytes that a cache holds after ``context`` tokens, where it can say so."""
    import torch

    cache = model.new_cache(1, context)
    tokens = torch.arange(context)[None] % vocab
    with torch.no_grad():
        model(tokens, cache, last=1)
    return cache.nbytes if isinstance(cache, Cache) or hasattr(cache, "nbytes") else None


def summarize(
    scores: Scores, context: int, text: tuple[str, str], graph: Graph | None, cache_measured: int | None, **rest: Any
) -> EvalReport:
    """Put the measurements together."""
    import torch

    kl = torch.cat(scores.kl) if scores.kl else None
    based = kl is not None
    predicted = cache_bytes(graph, context) if graph is not None else None
    return EvalReport(
        tokens=scores.tokens,
        context=context,
        perplexity=math.exp(scores.nll / scores.tokens),
        base_perplexity=math.exp(scores.base_nll / scores.tokens) if based else None,
        kl_mean=kl.mean().item() if based else None,
        kl_p99=kl.kthvalue(math.ceil(0.99 * len(kl))).values.item() if based else None,
        top1_agreement=scores.agree / scores.tokens if based else None,
        needle=tuple(rest.get("needle", ())),
        base_needle=tuple(rest.get("base_needle", ())),
        layers=tuple(rest.get("layers", ())),
        cache_predicted=predicted,
        cache_measured=cache_measured,
        text=text[0],
        text_sha256=text[1],
    )
