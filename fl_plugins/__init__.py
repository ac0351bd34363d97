"""The ground floor of fl-plugins: what server and clients share, and the pure mathematics.

``strategies`` is the server's wing and ``clients`` the clients'; neither is imported from here. Plugins
are reached by name through :mod:`fl_plugins.registry`. The map of the house is ``docs/architecture.md``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fl-plugins")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
