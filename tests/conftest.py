"""Hypothesis profiles: `ci` (default) is derandomized, `thorough` explores with many random examples,
`mutation` is `ci` with fewer examples, for runs of the tests on thousands of broken versions.

Numerical libraries get one thread per process, unless the environment says otherwise: tests run in several
processes, and waiting threads that spin would take the others' cores.
"""

import os

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import HealthCheck, settings  # noqa: E402

_SLOW_GENERATION = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=30, suppress_health_check=_SLOW_GENERATION
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=_SLOW_GENERATION
)
settings.register_profile("mutation", parent=settings.get_profile("ci"), max_examples=12, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
