"""What must be settled before any test imports triton."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; compilation ahead of time has its own process
