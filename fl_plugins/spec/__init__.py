"""From the text in a run config, ``krum(num_byzantine=2)``, to a plugin; nothing is evaluated.

The grammar is Python's call syntax, read with :mod:`ast`::

    spec     = [owner ":"] name [ "(" [ argument { "," argument } ] ")" ]
    argument = value | name "=" value
    value    = number | string | True | False | None | "(" values ")" | "[" values "]" | spec

``krum`` equals ``krum()``. Hyphens and underscores are the same in names. A value that is a spec is a nested
plugin; which kind it is, the parameter's annotation says (:class:`fl_plugins.registry.PluginKind`). Every
argument is checked against the factory's signature and annotations before the factory is called.
"""

from ._building import build
from ._conversion import describe
from ._grammar import Spec, parse

__all__ = ["Spec", "build", "describe", "parse"]
