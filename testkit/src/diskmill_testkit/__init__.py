"""What a driver's tests need: the conformance suites, and the twins and workloads that they are made of.

A driver's repository takes a suite with two lines in a test module, and pytest finds the rest::

    from diskmill_testkit.formats import *

    DRIVERS = ["blk"]

``formats`` has the suites for format drivers (with garbage, failing writes and crashes), ``storages`` and ``sources``
those for protocols that are written and read, ``filters`` that for filters, ``ciphers`` that for ciphers. What a driver
does not declare (:mod:`diskmill.contract.drivers`) is not asked of it. What the suites
cannot find out by themselves is told with :func:`~diskmill_testkit.traits.describe`.
"""

from __future__ import annotations

from .traits import Sample, Traits, describe

__version__ = "1.0"
"""Its first number is that of the contract that it tests."""

__all__ = ["Sample", "Traits", "describe"]
