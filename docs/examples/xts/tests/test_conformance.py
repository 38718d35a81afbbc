from diskmill_testkit.ciphers import *  # noqa: F403

DRIVERS = ["xts"]
