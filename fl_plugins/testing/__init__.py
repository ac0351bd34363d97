"""Tools for tests of apps and plugins, and for audits; nothing here is meant for real runs."""

from .grid import InProcessGrid

__all__ = ["InProcessGrid"]
