from diskmill_testkit.filters import *  # noqa: F403

DRIVERS = ["watch"]
