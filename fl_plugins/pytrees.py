"""JAX pytree ⇄ named arrays: the key of a leaf is its path in the tree.

Paths join dict keys, sequence indexes and attribute names with ``/``. A ``/`` or ``~`` inside a dict key is
escaped as in JSON Pointer (RFC 6901): ``~1`` and ``~0``, so different paths never share a key.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import StructureError
from .training import NamedArrays, PyTree


def flatten_named(tree: PyTree, prefix: str = "") -> NamedArrays:
    """Return the leaves of ``tree`` by path, each path preceded by ``prefix`` and ``/`` if there is one.

    Guarantees
    ----------
    Dicts that differ only in insertion order give the same keys in the same order. Leaves keep shape, dtype
    and bits; NumPy leaves are not copied. ``unflatten_named`` inverts it. ``None`` has no leaves.

    >>> sorted(flatten_named({"dense": [np.zeros(2), np.ones(3)]}, prefix="params"))
    ['params/dense/0', 'params/dense/1']

    Raises
    ------
    StructureError
        If two leaves have one path (a container with keys ``1`` and ``"1"``).
    """
    named: NamedArrays = {}
    for key, leaf in _leaves(tree, prefix)[0]:
        if key in named:
            raise StructureError(f"array {key!r}: two leaves of the tree have this path; rename one.")
        named[key] = np.asarray(leaf)
    return named


def unflatten_named(named: Mapping[str, NDArray[Any]], like_tree: PyTree, prefix: str = "") -> PyTree:
    """Return a tree of the structure of ``like_tree`` with the arrays of ``named`` as leaves.

    Only names decide which array goes where. ``named`` must have exactly the paths of ``like_tree``, with
    its shapes and dtypes.

    Raises
    ------
    StructureError
        Naming the first array that is missing, unknown (a renamed layer is both), or of another shape or
        dtype.
    """
    leaves, structure = _leaves(like_tree, prefix)
    wanted = dict(leaves)
    check_keys(named, wanted, owner="named arrays")
    for key, leaf in wanted.items():
        found = named[key]
        like = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if found.shape != like.shape or found.dtype != like.dtype:
            raise StructureError(
                f"array {key!r} is {found.dtype}{list(found.shape)} but the model's is "
                f"{like.dtype}{list(like.shape)}."
            )
    return structure.unflatten([named[key] for key, _ in leaves])


def check_keys(named: Mapping[str, Any], wanted: Collection[str], *, owner: str) -> None:
    """Check that ``named`` has the ``wanted`` keys and no other, in any order.

    Raises
    ------
    StructureError
        Naming ``owner``, the first missing and the first surplus key (a renamed array is both).
    """
    missing = [key for key in wanted if key not in named]
    surplus = sorted(named.keys() - set(wanted))
    if missing or surplus:
        faults = [f"array {key!r} is missing" for key in missing[:1]]
        faults += [f"array {key!r} is not in the model" for key in surplus[:1]]
        raise StructureError(f"{owner}: {' and '.join(faults)}; use the model's own keys.")


def _leaves(tree: PyTree, prefix: str) -> tuple[list[tuple[str, Any]], Any]:
    """Return ``(path, leaf)`` for every leaf, in JAX's order, and the tree's structure."""
    import jax.tree_util as tree_util  # jax takes a second to import; a server may never need it

    def text(entry: Any) -> str:
        for attribute in ("key", "idx", "name"):
            if hasattr(entry, attribute):
                return str(getattr(entry, attribute)).replace("~", "~0").replace("/", "~1")
        raise StructureError(f"path entry {entry!r} has no name; register the node type with keys.")

    leaves, structure = tree_util.tree_flatten_with_path(tree)
    start = [prefix] if prefix else []
    return [("/".join([*start, *map(text, path)]), leaf) for path, leaf in leaves], structure
