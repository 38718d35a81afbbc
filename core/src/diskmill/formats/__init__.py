"""The format driver that comes with the core."""
