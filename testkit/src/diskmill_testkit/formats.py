"""The suites for format drivers: ``from diskmill_testkit.formats import *`` takes all their tests."""

from __future__ import annotations

from .suites.conversions import *  # noqa: F403
from .suites.crashes import *  # noqa: F403
from .suites.failing_writes import *  # noqa: F403
from .suites.garbage import *  # noqa: F403
from .suites.images import *  # noqa: F403
from .suites.reading import *  # noqa: F403
