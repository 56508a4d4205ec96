"""RG57x: kernels compiled ahead of time."""

from regraft.ir.errors.base import RegraftError


class TritonMissingError(RegraftError):
    """Kernels were to be compiled, and Triton is not installed."""

    code = "RG571"
    exit_code = 3
    message = "compiling kernels needs triton, which cannot be imported: {reason}"
    hint = "pip install 'regraft[triton]'; it compiles for every target on a machine without a GPU too"


class KernelCompileError(RegraftError):
    """A kernel could not be compiled for a target."""

    code = "RG572"
    exit_code = 70
    message = "{function} does not compile for {target} with {tile}: {reason}"
    hint = "this is a mistake in a kernel's template or a tile that does not fit; another tile may do"


class NoTileError(RegraftError):
    """None of a kernel's tiles can run on a target."""

    code = "RG573"
    exit_code = 3
    message = "{kernel}: none of its {count} tiles fits {target}"
    hint = "the target takes the plain form; a smaller tile is added in the kernel's `tiles()`"


class TuneDeviceError(RegraftError):
    """Tiles were to be timed on a device that runs no kernels."""

    code = "RG574"
    exit_code = 3
    message = "--tune times kernels on a GPU, and {device} runs none"
    hint = "give --device cuda on a machine with one; without it a package has the tiles that `build` knows"


class StaleProgramError(RegraftError):
    """A package's program does not have the kernels that are known of its graph."""

    code = "RG575"
    exit_code = 3
    message = "{program} has other kernels than this version writes for its graph, or none"
    hint = "build the package again with --target triton"


class UnknownGpuError(RegraftError):
    """Kernels were to be compiled for a target that they do not know."""

    code = "RG576"
    exit_code = 2
    message = "kernels are not compiled for {name}"
    hint = "targets of --compile-for: {targets}; it and --search go with --target triton"


class ShippingError(RegraftError):
    """The kernels of a package could not be compiled."""

    code = "RG577"
    exit_code = 70
    message = "compiling a package's kernels for {target}: {reason}"
    hint = "without --compile-for they are compiled where the package runs"
