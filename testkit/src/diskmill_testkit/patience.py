"""How hypothesis goes about the tests of the suites."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

PATIENT = settings(deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
"""A loaded machine is slow now and then: no test asserts a time, so hypothesis should not either. Without a database
runs are alike; a failing example prints how to reproduce it."""
