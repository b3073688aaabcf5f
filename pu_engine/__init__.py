"""The compression itself, as a library: teacher and images in, verified student out."""

from pu_engine.compression import compress

__all__ = ["compress"]
