"""What must be settled before any test runs."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; compilation ahead of time has its own process

# a busy machine draws slowly, which says nothing of the code
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# a change is told by itself, not by the luck of a draw: `make fuzz` draws anew
settings.register_profile("regraft", calm, derandomize=True)
settings.register_profile("fuzz", calm, print_blob=True)
settings.load_profile("regraft")
