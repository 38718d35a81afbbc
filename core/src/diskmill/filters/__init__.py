"""The filter driver that comes with the core."""
