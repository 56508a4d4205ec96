"""A lifted model: its graph, where its tensors are, and where it came from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from regraft.frontends.checkpoint import Checkpoint
from regraft.frontends.folder import ModelFolder, open_model
from regraft.frontends.lift import lift as lift_folder
from regraft.ir.errors.graph import AttributeRgError
from regraft.ir.graph import Graph
from regraft.ir.source import Source
from regraft.ir.types import FLOATS, TensorType

if TYPE_CHECKING:
    from regraft.passes.plan import Plan
    from regraft.passes.recipe import Recipe
    from regraft.quality import EvalReport
    from regraft.verifying import VerifyReport


@dataclass(frozen=True)
class Model:
    """A model as every function here takes it.

    Attributes:
        graph: What the model computes.
        folder: Where it came from.
        warnings: What its config holds that nobody reads.
        allow_keys: The config keys that the user vouched for.
    """

    graph: Graph
    folder: ModelFolder
    warnings: tuple[str, ...] = ()
    allow_keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name for titles."""
        return self.folder.name

    @property
    def source(self) -> Checkpoint | None:
        """The weights, or none where there is only a config."""
        return self.folder.checkpoint

    def require_source(self) -> Source:
        """Return the weights.

        Raises:
            NoWeightsError: There are none.
            AttributeRgError: What the graph says of itself does not fit what it computes.
        """
        source = self.folder.require_checkpoint()
        self._check_facts()
        return source

    def _check_facts(self) -> None:
        meta, last = self.graph.meta, self.graph.outputs[0].type
        wide = last.shape[-1] if isinstance(last, TensorType) and last.shape else None
        vocab, begin, dtype = meta.get("vocab"), meta.get("bos"), meta.get("dtype")
        wrong: tuple[str, str, str] | None = None
        if vocab != wide or not isinstance(vocab, int):
            wrong = "vocab", f"{vocab}, and the result is {last}", "the last dim of the result"
        elif begin is not None and not (isinstance(begin, int) and 0 <= begin < vocab):
            wrong = "bos", f"{begin}, and there are {vocab} tokens", "none or a token"
        elif dtype not in FLOATS:
            wrong = "dtype", f"{dtype}", "one of " + ", ".join(FLOATS)
        if wrong:
            name, problem, legal = wrong
            raise AttributeRgError(
                op=f"graph @{self.graph.name}", name=name, problem=problem, legal=f"{name} = {legal}"
            )

    @property
    def files(self) -> Path | None:
        """The folder that tokenizer files stand in."""
        return self.folder.files

    @property
    def dtype(self) -> str:
        """The dtype of its weights."""
        return str(self.graph.meta["dtype"])

    @property
    def vocab(self) -> int:
        """Tokens in the vocabulary."""
        return cast(int, self.graph.meta["vocab"])

    @property
    def begin(self) -> int | None:
        """The token that begins a text, where the model has one."""
        return cast("int | None", self.graph.meta.get("bos"))

    def plan(self, recipe: str | Path | Recipe, *, measure: bool = False) -> Plan:
        """Return what `apply` would do; see `regraft.plan`."""
        from regraft import api

        return api.plan(self, recipe, measure=measure)

    def apply(self, recipe: str | Path | Recipe, out: str | Path, *, resume: bool = False) -> Model:
        """Carry out a recipe into the folder ``out``, and return the model that stands there; see `regraft.apply`."""
        from regraft import api

        return lift(api.apply(self, recipe, out, resume=resume).out)

    def build(self, out: str | Path, *, target: str = "torch") -> Path:
        """Write a package that runs without regraft; see `regraft.build`."""
        from regraft import api

        return api.build(self, out, target=target)

    def verify(self, *, against: str | Path | Model | None = None) -> VerifyReport:
        """Compare logits; see `regraft.verify`."""
        from regraft import api

        return api.verify(self, against=against)

    def evaluate(self, text: str | Path, *, against: str | Path | Model | None = None) -> EvalReport:
        """Measure the model on a text; see `regraft.evaluate`."""
        from regraft import api

        return api.evaluate(self, text, against=against)

    def named(self, name: str) -> Model:
        """Return the same model under another name."""
        return replace(self, folder=replace(self.folder, name=name))


def lift(model: str | Path | Model, *, allow_keys: Collection[str] = (), strict: bool = True) -> Model:
    """Return a model lifted into a graph. Reads its config and its checkpoint's headers, and no numbers.

    Args:
        model: A folder, a ``config.json``, a Hugging Face id, a graph ``x.rg``, or ``builtin:NAME``.
        allow_keys: Config keys to pass over though nobody here reads them.
        strict: Refuse other unknown keys; otherwise they become warnings.

    Raises:
        RegraftError: The model cannot be read, or its architecture is not known; see docs/errors.md.
    """
    if isinstance(model, Model):
        return model
    folder = open_model(model)
    lifted = lift_folder(folder, allow_keys=allow_keys, strict=strict)
    warnings: Sequence[object] = lifted.warnings
    return Model(lifted.graph, folder, tuple(str(each) for each in warnings), tuple(allow_keys))
