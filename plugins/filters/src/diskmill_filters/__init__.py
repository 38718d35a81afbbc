"""Filters: nodes that pass on what the nodes below them have, and change what they are for.

Names and options are QEMU's (``BlockdevOptions`` in its ``qapi/block-core.json``) where QEMU has the filter, else
nbdkit's.
"""
