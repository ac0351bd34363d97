"""Where an imported package comes from, compared with where its distribution says it lies.

``strategies`` and ``clients`` are generic names, and a user's own folder of that name comes first on
``sys.path``. The comparison is made at the top-level package and before the import, so that the error is
the same whether the user's folder has the module or lacks it, and a stranger's code is not run.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from fl_plugins.errors import ShadowedPackageError

from ._entries import OWN_DISTRIBUTION, OWN_ROOT, Entry, entry_points, project_table
from ._kinds import normalize_owner

_MODULE_SUFFIXES = (".py", ".so", ".pyd")


@dataclass(frozen=True)
class Shadow:
    """A package that is imported from ``imported`` although its distribution has it at ``expected``."""

    package: str
    imported: Path
    expected: Path


def check_origin(entry: Entry) -> None:
    """Do nothing if the package of ``entry`` comes from its distribution, or nobody can tell.

    Raises
    ------
    ShadowedPackageError
        If another file hides it; the message names both.
    """
    shadow = find_shadow(entry)
    if shadow is not None:
        raise ShadowedPackageError(
            f"{entry.kind.value} {entry.name!r} of {entry.owner}: the package {shadow.package!r} should come "
            f"from {shadow.expected}, but {shadow.imported} hides it on sys.path; rename it, or "
            "start Python elsewhere."
        )


def find_shadows(search: Sequence[str]) -> list[Shadow]:
    """Return every package with plugins that a process whose ``sys.path`` is ``search`` would miss."""
    packages = {(entry.owner, entry.top_level): entry for entry in entry_points()}
    found = (find_shadow(entry, search) for entry in packages.values())
    return [shadow for shadow in found if shadow is not None]


def find_shadow(entry: Entry, search: Sequence[str] | None = None) -> Shadow | None:
    """Return what hides the top-level package of ``entry``, ``None`` if nothing (known) does.

    ``search`` looks along that path instead of at what this process has imported or would import.
    """
    package = entry.top_level
    expected = list(_expected(entry, package))
    found = _locations(_spec_of(package) if search is None else PathFinder.find_spec(package, search))
    if not expected or not found or set(expected) & set(found):
        return None
    owner = normalize_owner(entry.owner)
    if any(_belongs_to(owner, root) for place in found for root in (place.parent, place.parent.parent)):
        return None
    return Shadow(package, _file_of(found[0]), _file_of(expected[0]))


def _expected(entry: Entry, package: str) -> Iterator[Path]:
    """Yield the places (a folder, or a module's file) where ``package`` of the owner may lie."""
    if normalize_owner(entry.owner) == OWN_DISTRIBUTION:
        yield (OWN_ROOT / package).resolve()
    elif entry.distribution is not None:
        yield from _recorded(entry.distribution, package)
        for root in (*_pth_folders(entry.distribution), *_editable_roots(entry.distribution)):
            for place in (root / package, root / f"{package}.py"):
                if place.exists():
                    yield place.resolve()


def _recorded(distribution: Distribution, package: str) -> Iterator[Path]:
    """Yield where the list of installed files has ``package``."""
    for file in distribution.files or ():
        if file.parts[0] == package and len(file.parts) > 1:
            yield Path(str(distribution.locate_file(package))).resolve()
            return
        if (
            len(file.parts) == 1
            and file.stem.partition(".")[0] == package
            and file.suffix in _MODULE_SUFFIXES
        ):
            yield Path(str(distribution.locate_file(file.name))).resolve()
            return


def _pth_folders(distribution: Distribution) -> Iterator[Path]:
    """Yield the folders that the distribution's ``.pth`` files put on ``sys.path``."""
    for file in distribution.files or ():
        if len(file.parts) == 1 and file.suffix == ".pth":
            path = Path(str(distribution.locate_file(file)))
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError):
                continue
            for line in lines:
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    yield path.parent / line.strip()


def _editable_roots(distribution: Distribution) -> tuple[Path, ...]:
    """Return the usual roots of a project that is installed in place (``direct_url.json``, PEP 610)."""
    try:
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
        address = urlsplit(direct["url"] if direct["dir_info"]["editable"] else "")
    except (ValueError, KeyError, TypeError, OSError):
        return ()
    root = Path(url2pathname(unquote(address.path)))
    return (root, root / "src") if address.scheme == "file" else ()


def _spec_of(package: str) -> ModuleSpec | None:
    """Return how ``package`` was imported, or how it would be."""
    module = sys.modules.get(package)
    if module is not None:
        return module.__spec__
    try:
        return find_spec(package)
    except (ImportError, ValueError):
        return None


def _locations(spec: ModuleSpec | None) -> list[Path]:
    """Return the folders of a package, or the file of a module; empty if it has neither."""
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place).resolve() for place in spec.submodule_search_locations]
    return [Path(spec.origin).resolve()] if spec.has_location and spec.origin else []


def _belongs_to(owner: str, folder: Path) -> bool:
    """Whether ``folder`` is a source tree (or the inside of a FAB) of the project ``owner``.

    An app that is installed in place and sent as a FAB lies in two places, and both are the same project.
    """
    project = project_table(folder)
    return project is not None and normalize_owner(str(project.get("name"))) == owner


def _file_of(place: Path) -> Path:
    """Return the file to show for a package's folder."""
    return place / "__init__.py" if (place / "__init__.py").is_file() else place
