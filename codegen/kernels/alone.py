"""A file of kernels without a model, for tests, tile search and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from regraft.codegen.kernels.kernel import Kernel
from regraft.codegen.render import render


def kernel_file(kernels: Sequence[Kernel]) -> str:
    """Return the text of a Python file that holds kernels, each once, and what they share.

    Its custom ops stand in a namespace of the text's own, so that files with other constants can be loaded beside it.
    """
    texts = list(dict.fromkeys(kernel.text() for kernel in kernels))
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()[:16]
    return render("kernels/file.py.j2", space=f"regraft_{digest}", kernels=texts)
