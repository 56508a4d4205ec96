"""Comparing models: their facts side by side, and what differs in structure between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft import __version__
from regraft.ir.errors.files import OutputExistsError
from regraft.ir.errors.usage import TooFewModelsError
from regraft.ir.files import write_atomic
from regraft.model import Model, lift
from regraft.passes.latent_forms import decoding_form
from regraft.views.compare import diff
from regraft.views.diff import Diff
from regraft.views.facts import Facts, facts

SCHEMA = "regraft.compare/1"


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        models: The facts of each, at the same contexts and on the same device.
        diff: What differs in structure, of two models.
    """

    models: tuple[Facts, ...]
    diff: Diff | None

    @property
    def different(self) -> bool:
        """Whether anything but names differs."""
        if self.diff is not None and not self.diff.identical:
            return True
        return any(replace(each, name="") != replace(self.models[0], name="") for each in self.models[1:])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of schema ``regraft.compare/1``."""
        return {
            "schema": SCHEMA,
            "different": self.different,
            "models": [model.to_json() for model in self.models],
            "diff": None if self.diff is None else self.diff.to_json(),
        }

    def html(self) -> str:
        """Return the comparison as one HTML file that needs nothing else."""
        from regraft.views.document import document
        from regraft.views.side_by_side import side_by_side

        title = ", ".join(model.name for model in self.models)
        note = f"regraft {__version__}; bytes are in binary units, operations count two for a multiply-add"
        return document(title, side_by_side(self.models, self.diff), note)

    def write_html(self, path: str | Path) -> None:
        """Write `html` to a file, whole or not at all.

        Raises:
            OutputExistsError: The file exists.
            OutputError, DiskFullError: It cannot be written.
        """
        if Path(path).exists():
            raise OutputExistsError(path=path)
        write_atomic(Path(path), self.html())


def compare(
    *models: str | Path | Model,
    contexts: Sequence[int] = (4096, 131072),
    device: str | None = "h200-sxm",
    batch: int = 1,
) -> Comparison:
    """Return models side by side; of exactly two also what differs in structure.

    Args:
        models: Two or more, each as in `regraft.lift`; config keys that nobody reads are passed over.
        contexts: Context lengths in tokens to report at.
        device: A device of ``hardware.json``, a file that describes one, or none.
        batch: Sequences at a time.

    Raises:
        TooFewModelsError: There are fewer than two.
        RegraftError: A model cannot be read.
    """
    if len(models) < 2:
        raise TooFewModelsError(found=len(models))
    lifted = [lift(model, strict=False) for model in models]
    alike = Counter(model.name for model in lifted)
    found: list[Facts] = []
    for number, model in enumerate(lifted, 1):
        name = f"{model.name} ({number})" if alike[model.name] > 1 else model.name
        known = facts(model.graph, contexts, device, batch, decoding_form(model.graph))
        found.append(replace(known, name=name))
    two = len(lifted) == 2
    return Comparison(tuple(found), diff(lifted[0].graph, lifted[1].graph, (found[0], found[1])) if two else None)
