"""Tools for tests of apps and plugins; nothing here is meant for real runs."""

from .grid import InProcessGrid

__all__ = ["InProcessGrid"]
