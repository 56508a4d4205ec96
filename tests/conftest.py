"""What must be settled before any test runs."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; compilation ahead of time has its own process

# a busy machine draws slowly, which says nothing of the code
settings.register_profile("regraft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("regraft")
