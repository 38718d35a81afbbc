"""Storage and images in memory, which the kit has."""

from diskmill_testkit.twins import PAGE, Clustered, Content, MemoryDriver, MemoryStorage, memory

__all__ = ["PAGE", "Clustered", "Content", "MemoryDriver", "MemoryStorage", "memory"]
