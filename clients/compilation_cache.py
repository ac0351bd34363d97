"""JAX's persistent compilation cache, shared with the server: see :mod:`fl_plugins.compilation_cache`."""

from fl_plugins.compilation_cache import default_directory, enable_compilation_cache

__all__ = ["default_directory", "enable_compilation_cache"]
