"""The kit's suite of ciphers over our own."""

import traits  # noqa: F401  it tells the kit of them
from diskmill_testkit.ciphers import *  # noqa: F403
