"""An aggregation rule for fl-plugins that is installed on its own; its entry points are in pyproject.toml."""

__version__ = "0.1.0"
