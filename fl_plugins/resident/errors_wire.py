"""An exception of the worker's, raised again in the client with the same class name and the same words.

What the server is told of an error is its class and its text, so it reads the same wherever the handler ran.
Only text travels: the class that is raised is made anew, below the built-in exception that was nearest to it
and, if the error was one of ours, below :class:`fl_plugins.errors.FLPluginsError`.
"""

import builtins
import traceback
from typing import Any

from ..errors import FLPluginsError


def describe(error: Exception) -> dict[str, Any]:
    """Return an exception as JSON."""
    kind = type(error)
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    return {
        "name": kind.__name__,
        "qualified": kind.__qualname__,
        "module": kind.__module__,
        "builtin": builtin.__name__,
        "ours": isinstance(error, FLPluginsError),
        "text": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def recreate(told: dict[str, Any]) -> Exception:
    """Return an exception that says what :func:`describe` was given."""
    base = getattr(builtins, str(told["builtin"]), Exception)
    if not (isinstance(base, type) and issubclass(base, Exception)):
        base = Exception
    text = str(told["text"])
    bases = (
        (base,) if not told["ours"] else (FLPluginsError,) if base is Exception else (FLPluginsError, base)
    )
    members = {
        "__module__": str(told["module"]),
        "__qualname__": str(told["qualified"]),
        "__init__": lambda _: None,  # not the base's, which may want other arguments
        "__str__": lambda _: text,
    }
    error = type(str(told["name"]), bases, members)()
    error.add_note(f"In the resident worker:\n{told['traceback']}")
    assert isinstance(error, Exception)
    return error
