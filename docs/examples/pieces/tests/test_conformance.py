from diskmill_testkit.sources import *  # noqa: F403
