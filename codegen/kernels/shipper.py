"""The process that compiles what a package launches: its own calls, on tensors without data, and no GPU.

Triton is told that the target is there, and every launch only compiles; so what is compiled is what the package asks
for when it runs. It is a process of its own for the reasons that `compiler` is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.codegen.kernels.compiler import triton_target

NAME = "regraft_shipped"
KEPT = (".cubin", ".hsaco", ".json")  # of the files that Triton caches, what a launch needs
PROMPTS = (23, 32)  # lengths of a prompt; Triton distinguishes multiples of 16
TOP_K = (20, 50, 64)  # tokens to draw among; a kernel has room for a power of two of them


class AbsentDevice:
    """Stands in for a GPU's driver, of which compilation asks the target alone.

    Args:
        target: Triton's.
    """

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_device(self) -> int:
        """Return the device's number."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the stream's handle."""
        del device
        return 0

    def get_current_target(self) -> Any:
        """Return the target."""
        return self.target


def main() -> None:
    """Compile what standard input asks for, and print what was compiled."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers talk
    asked: dict[str, Any] = json.load(sys.stdin)
    triton = importlib.import_module("triton")
    stand_in(asked["target"])
    module = loaded(Path(asked["program"]), asked["target"])
    names: dict[str, str] = {}
    signatures: dict[str, list[str]] = {}

    def note(**given: Any) -> None:
        ours, theirs = module.compiled_names(given["fn"].jit_function, given["compile"])
        names[theirs] = ours
        signatures[ours] = list(given["compile"]["signature"].values())

    found: dict[str, str] = {}

    def listen(*, metadata: Mapping[str, Any], metadata_group: Mapping[str, str], **_: Any) -> None:
        for name, path in metadata_group.items():
            if Path(name).suffix in KEPT:
                found[f"{names[metadata['hash']]}/{name}"] = path

    triton.knobs.runtime.jit_cache_hook = note
    triton.knobs.compilation.listener = listen
    run(module, asked["config"], asked["tensors"], asked["contexts"])
    print(json.dumps({"files": found, "signatures": signatures}), file=answers, flush=True)


def stand_in(target: str) -> None:
    """Let Triton take a target to be there, and launches only compile."""
    importlib.import_module("triton").runtime.driver.set_active(AbsentDevice(triton_target(target)))
    jit = importlib.import_module("triton.runtime.jit")
    jit.KernelInterface.__getitem__ = lambda self, grid: functools.partial(self.run, grid=grid, warmup=True)


def loaded(program: Path, target: str) -> Any:
    """Return a package's module, whose kernels are launched as if for a target, wherever tensors are."""
    import torch

    spec = importlib.util.spec_from_file_location(NAME, program)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inside = vars(module)
    kernel_op = type(torch.library.custom_op(f"{module.SPACE}::none", _nothing, mutates_args=()))
    inside |= {
        name: vars(op)["_init_fn"] for name, op in inside.items() if isinstance(op, kernel_op)
    }  # not what traces it
    inside["on_kernels"] = lambda _: not inside["PLAIN"]
    inside["target"] = lambda _: target
    return module


def _nothing() -> None:
    pass


def run(
    module: Any, config: Mapping[str, Any], tensors: Mapping[str, tuple[str, Sequence[int]]], contexts: Sequence[int]
) -> None:
    """Make the calls of a package's self-check and of its decoder, for one sequence, on tensors without data."""
    import torch

    state = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, (dtype, shape) in tensors.items()
    }
    module.load_file = lambda *_, **__: state
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        Path(folder, "model.safetensors").touch()
        model = module.load(folder, "meta")
        module.trial(model)
        for context in contexts:
            cache = model.new_cache(1, context)
            for length in (*PROMPTS, *PROMPTS):  # first without earlier rows, then behind some
                if length < context:
                    model(torch.zeros(1, length, dtype=torch.int64, device="meta"), cache, last=1)
            for choice in choices(module):
                one = torch.ones(1, dtype=torch.int64, device="meta")
                model.run_step(one[:, None], cache.lengths, one, cache.layers, context, choice=choice)


def choices(module: Any) -> Iterator[Any]:
    """Yield how a token may be chosen, in all ways that differ in kernels."""
    import torch

    noise = torch.empty(1, device="meta")
    yield module.Choice(noise, 0.0, 0, 1.0)
    for top_k in TOP_K:
        yield module.Choice(noise, 1.0, top_k, 1.0)


if __name__ == "__main__":
    main()
