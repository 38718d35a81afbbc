from diskmill_testkit.formats import *  # noqa: F403

DRIVERS = ["lay"]
