"""The kit's suite of filters over our own; ``compress`` stands on images that compress, which those are not."""

import traits  # noqa: F401  it tells the kit of them
from diskmill.contract.drivers import FilterDriver
from diskmill_testkit.filters import *  # noqa: F403
from diskmill_testkit.machine import REGISTRY

DRIVERS = [driver.name for driver in REGISTRY.all(FilterDriver.group) if driver.name != "compress"]
