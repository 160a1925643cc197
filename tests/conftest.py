"""Hypothesis profiles: `ci` (default) is derandomized, `thorough` explores with many random examples."""

import os

from hypothesis import HealthCheck, settings

_SLOW_GENERATION = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=30, suppress_health_check=_SLOW_GENERATION
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=_SLOW_GENERATION
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
