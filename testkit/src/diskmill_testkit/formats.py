"""The suites for format drivers: ``from diskmill_testkit.formats import *`` takes all their tests."""

from __future__ import annotations

from .suites.conversions import *
from .suites.crashes import *
from .suites.failing_writes import *
from .suites.garbage import *
from .suites.images import *
from .suites.reading import *

__all__ = [name for name in globals() if name.startswith("test_")]
