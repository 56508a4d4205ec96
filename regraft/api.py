"""The public functions, each a whole job: what the command line does, for programs.

import regraft

model = regraft.lift("builtin:Llama-3.2-1B")
regraft.apply("examples/tiny-qwen3", "share-kv{layers='4..7', donor=3}", "out")
regraft.build("out", "pkg")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regraft.applying import ApplyReport, apply, calibration_path, calibration_windows, read_recipe
from regraft.comparing import Comparison, compare
from regraft.drawing import draw
from regraft.evaluating import evaluate
from regraft.frontends.lift import lift as lift_folder
from regraft.ir.errors.config import RewrittenTwinError
from regraft.ir.errors.kernels import UnknownGpuError
from regraft.ir.graph import Graph
from regraft.model import Model, lift
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.plan import Plan
from regraft.passes.recipe import Recipe, parse_pipeline
from regraft.plotting import plot_cache, plot_quality
from regraft.quality import EvalReport, Probes, Progress
from regraft.verifying import VerifyReport, verify
from regraft.views.facts import Facts

__all__ = [
    "ApplyReport",
    "Comparison",
    "EvalReport",
    "Facts",
    "Model",
    "Plan",
    "Probes",
    "Recipe",
    "VerifyReport",
    "apply",
    "build",
    "compare",
    "draw",
    "evaluate",
    "inspect",
    "lift",
    "opt",
    "plan",
    "plot_cache",
    "plot_quality",
    "twin",
    "verify",
]


def inspect(
    model: str | Path | Model,
    contexts: Sequence[int] = (4096, 131072),
    *,
    device: str | None = "h200-sxm",
    batch: int = 1,
) -> Facts:
    """Return the facts of a model: structure, memories, parameters, cache, work, and what a device allows.

    Args:
        model: As in `lift`; config keys that nobody reads are passed over.
        contexts: Context lengths in tokens to report at.
        device: A device of ``hardware.json``, a file that describes one, or none; for limits.
        batch: Sequences at a time.
    """
    from regraft.passes.latent_forms import decoding_form
    from regraft.views.facts import facts

    subject = lift(model, strict=False)
    found = facts(subject.graph, tuple(contexts), device, batch, decoding_form(subject.graph))
    return replace(found, name=subject.name)


def plan(
    model: str | Path | Model,
    recipe: str | Path | Recipe,
    *,
    measure: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Return what `apply` would do: legality, the choice for each layer, the predicted change, disk and memory.

    Reads no weights, unless ``measure`` is set: then the choices that need calibration text are made.

    Raises:
        IllegalPassError: The recipe does not fit the model.
        TextError: The calibration text is not there.
    """
    from regraft.passes.plan import make_plan

    subject = lift(model)
    steps, base = read_recipe(recipe)
    steps.check_calibration()
    if steps.calibration is not None:
        calibration_path(steps.calibration, base)
    measurements = None
    if measure:
        tokens = None
        if steps.calibration is not None:
            rows = -(-steps.calibration.tokens // steps.calibration.context)
            tokens = calibration_windows(subject, steps.calibration, base).tokens[:rows]
        measurements = Measurements(subject.graph, subject.require_source(), tokens, progress)
    graph = subject.graph
    if subject.source is None and subject.folder.graph_path is None:  # a config says too what is published quantised
        graph = lift_folder(subject.folder, subject.allow_keys, published=True).graph
    return make_plan(graph, steps, measurements)


def opt(model: str | Path | Model | Graph, pipeline: str | Recipe) -> PipelineResult:
    """Return what a pipeline makes of a graph, graph to graph: no weight is read, and fits stay expressions.

    Args:
        model: As in `lift`, or a graph, which stays as it is.
        pipeline: ``share-kv{layers="4..7"},dce``; empty for none.

    Raises:
        IllegalPassError: The graph does not allow what a pass asks for.
        UndecidedError: A choice needs data.
    """
    graph = model if isinstance(model, Graph) else lift(model, strict=False).graph
    steps = pipeline if isinstance(pipeline, Recipe) else parse_pipeline(pipeline)
    return run_pipeline(graph, steps)


def build(
    model: str | Path | Model,
    out: str | Path,
    *,
    target: str = "torch",
    search: bool = False,
    compile_for: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Write a package that runs without regraft: program, weights, tokenizer, card and checks. Return its folder.

    Attention to kept latents is written in both of its forms, and the program takes the absorbed one for single tokens.

    Args:
        model: As in `lift`; the package of a folder that `apply` wrote carries its recipe and its measured quality.
        out: The folder to write; it must not exist.
        target: ``torch``, or ``triton`` for fused kernels.
        search: Compile all tiles of kernels that none was searched for yet, for every target, and take the best.
        compile_for: Targets, such as ``sm_90``, for which kernels are put into the package compiled: none of them waits
            for a compiler there, if its Triton is of the same version.
        progress: Called with what is done, what there is to do, and what it is.

    Raises:
        MissingEmitterError: The target lacks an op of the model.
        TritonMissingError: ``search`` or ``compile_for``, and Triton is not installed.
        UnknownGpuError: ``compile_for`` names no target; it or ``search`` is given, and the package has no kernels.
        ShippingError: A kernel does not compile.
        OutputExistsError, DiskFullError: The folder cannot be written.
    """
    from regraft.codegen.kernels.kernel import TARGETS
    from regraft.codegen.kernels.tables import Tiles
    from regraft.codegen.package import emit
    from regraft.codegen.torch.forms import Forms
    from regraft.passes.fusion import fuse_decode
    from regraft.passes.fusion.prefill import fuse_prefill
    from regraft.passes.latent_forms import decoding_form

    if (compile_for or search) and target != "triton":
        raise UnknownGpuError(name=f"target {target}", targets=", ".join(TARGETS))
    subject = lift(model)
    lock = subject.files / "regraft.lock.json" if subject.files is not None else None
    step = decoding_form(subject.graph)
    fused = prefill = None
    if target == "triton":
        fused = fuse_decode(subject.graph if step is None else step)
        prefill = fuse_prefill(subject.graph)
    tiles = Tiles(subject.graph.outputs[0].tensor.dtype, search=search)
    return emit(
        Forms(subject.graph, step, fused, prefill, tiles, compile_for),
        subject.require_source(),
        Path(out),
        target=target,
        tokenizer_folder=subject.files,
        lock=lock if lock is not None and lock.is_file() else None,
        progress=progress,
    )


def twin(model: str | Path | Model, out: str | Path, *, seed: int = 0, packed: bool = False) -> Path:
    """Write the small twin of a model: the same structure, tiny dimensions, random weights. Return its folder.

    Args:
        model: As in `lift`.
        out: The folder to write; it must not exist.
        seed: Draws the weights.
        packed: Quantise the weights as the model's are published; otherwise they are float32.

    Raises:
        NotQuantizedError: ``packed``, and the model's config names no quantisation.
        OutputExistsError: ``out`` exists.
        RewrittenTwinError: The model has been rewritten, or is a graph without a config.
    """
    from regraft.frontends.twin import write_twin

    subject = lift(model, strict=False)
    folder = subject.folder
    if not folder.config or folder.config.get("model_type") == "regraft":
        raise RewrittenTwinError(config=folder.config_path, where=folder.config_path)
    allow = subject.allow_keys
    return write_twin(folder.config, Path(out), seed, path=folder.config_path, allow_keys=allow, packed=packed)
