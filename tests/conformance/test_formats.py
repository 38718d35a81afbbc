"""The suites of the kit over every format driver that is installed, and the one of docs/."""

import formats  # noqa: F401  it tells the kit of them
from diskmill_testkit.formats import *  # noqa: F403
