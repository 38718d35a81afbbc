"""Zeros: a stretch of them to write, and whether a buffer holds nothing else."""

from ..engine.zeros import ZEROS, is_zero

__all__ = ["ZEROS", "is_zero"]
