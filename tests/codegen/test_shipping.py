"""Packages that bring their kernels compiled: a process that runs one compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import regraft
from regraft.codegen.kernels.ahead import triton_version
from regraft.codegen.kernels.shipping import contexts
from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.folder import builtin_names
from regraft.ir.errors.kernels import ShippingError, UnknownGpuError
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.prefill import fuse_prefill
from tests.codegen.programs import DECODERS, source_of
from tests.ir.models import decoder

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = """
import importlib, json, sys
from pathlib import Path
import triton
from regraft.codegen.kernels import shipper
folder, build = Path(sys.argv[1]), sys.argv[2]
shipper.stand_in("sm_90")
if build:  # of Triton, for another Python
    triton.runtime.cache.triton_key = lambda: build
launchers = []
triton.runtime.driver.active.launcher_cls = lambda source, _: launchers.append(tuple(source.signature.values()))
module = shipper.loaded(folder / "model.py", "sm_90")
hits = []
triton.knobs.compilation.listener = lambda **given: hits.append(given["cache_hit"])
config = json.loads((folder / "config.json").read_text())
shipper.run(module, config, json.loads(sys.stdin.read()), [1024])
assert len(set(launchers)) == len(launchers) and (len(launchers) > 5 or not any(hits))
print(json.dumps(hits))
"""


CALLS = """
import json, sys, tempfile
from pathlib import Path
from triton.runtime import jit
from benchmarks.gpu_subjects import subject, write_program
from regraft.codegen.kernels import shipper
from regraft.codegen.kernels.shipping import stored
from regraft.frontends.folder import builtin_names, open_model
from regraft.frontends.twin import twin_config
shipper.stand_in("sm_90")
names = []
jit.KernelInterface.__getitem__ = lambda self, grid: lambda *_, **__: names.append(self.fn.__name__)
for name in builtin_names():
    with tempfile.TemporaryDirectory() as folder:
        program = write_program(subject(name, twin_config(open_model(f"builtin:{name}").config)).graph, Path(folder))
        config = json.loads(Path(folder, "tensors.json").read_text())["config"]
        shipper.run(shipper.loaded(Path(folder, "model.py"), "sm_90"), config, stored(program.tensors), [1024, 2048])
    print(json.dumps([name, sorted(set(names))]))
    names.clear()
"""


def emitted(folder: Path, *gpus: str) -> Path:
    """Return the package of a small model, compiled for some targets."""
    graph = decoder(DECODERS["windows and full"])
    forms = Forms(graph, fused=fuse_decode(graph), prefill=fuse_prefill(graph), gpus=gpus)
    return emit(forms, source_of(graph), folder, target="triton")


def tensors(package: Path) -> dict[str, tuple[str, list[int]]]:
    from safetensors.torch import load_file

    state = load_file(package / "model.safetensors")
    return {name: (str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in state.items()}


def hits(package: Path, cache: Path, build: str = "") -> list[bool]:
    """Return of each kernel that a package asks for in a new process whether it is there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(package), build],
        input=json.dumps(tensors(package)),
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_package_that_brings_its_kernels_compiles_none(tmp_path: Path) -> None:
    package = emitted(tmp_path / "package", "sm_90")
    brought = sorted((package / "kernels" / triton_version() / "sm_90").iterdir())
    files = sorted(file for kernel in brought for file in kernel.iterdir())
    assert {file.suffix for file in files} == {".cubin", ".json"}
    assert str(tmp_path).encode() not in b"".join(file.read_bytes() for file in files)
    assert f"kernels/{triton_version()}/sm_90/{brought[0].name}/" in (package / "regraft.lock.json").read_text()
    assert "`kernels/` as machine code of sm_90, for" in (package / "README.md").read_text()
    for folder in (package, *package.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)  # it may be read alone
    for build in ("", "the same version, built for another Python"):
        found = hits(package, tmp_path / f"cache{len(build)}", build)
        assert 8 < len(found) <= len(brought)
        assert all(found)
    for folder in (package, *package.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    edited = package / "model.py"
    edited.write_text(f"# a line more\n{edited.read_text()}", encoding="utf-8")
    assert not any(hits(package, tmp_path / "edited"))


@pytest.mark.slow
def test_the_calls_of_every_known_model_need_no_data() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    launched = dict(map(json.loads, done.stdout.splitlines()))
    assert set(launched) == set(builtin_names())
    for name, kernels in launched.items():
        assert {"head_kernel", "head_logits_kernel", "head_sample_kernel"} <= set(kernels), name
        assert any("attention" in kernel for kernel in kernels), name


def test_caches_have_few_lengths() -> None:
    assert contexts(512) == [1024]
    assert contexts(3000) == [1024, 2048, 4096]
    assert contexts(1 << 20)[-1] == 1 << 17


def test_a_target_that_is_not_known_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownGpuError, match="kernels are not compiled for sm_9"):
        emitted(tmp_path / "package", "sm_90", "sm_9")
    assert not (tmp_path / "package").exists()


def test_kernels_are_not_compiled_or_searched_for_a_target_without(tmp_path: Path) -> None:
    source, out = EXAMPLES / "tiny-qwen3", tmp_path / "package"
    with pytest.raises(UnknownGpuError, match="kernels are not compiled for target torch"):
        regraft.build(source, out, target="torch", search=True)
    with pytest.raises(UnknownGpuError, match="kernels are not compiled for target torch"):
        regraft.build(source, out, target="torch", compile_for=["sm_90"])
    assert not out.exists()


def test_what_cannot_be_compiled_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ShippingError, match="compiling a package's kernels for sm_90: no reason given"):
        emitted(tmp_path / "package", "sm_90")
    assert not (tmp_path / "package").exists()
