"""``fl-plugins doctor``: is everything here that a run needs, and is it what it seems to be."""

import argparse
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fl_plugins.errors import PluginError
from fl_plugins.registry import (
    Entry,
    available,
    find_shadows,
    load,
    metadata_problems,
    own_metadata_is_stale,
    own_project,
)

from ._text import print_table

_CHECKED_PACKAGES = ("flwr", "jax", "flax", "optax", "numpy", "ray")
_DEFAULT_PORT = 39091
_PORT_VARIABLE = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
_CONNECT_TIMEOUT_S = 0.5


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``remedy`` says what to do."""

    verdict: Verdict
    subject: str
    detail: str
    remedy: str = ""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("doctor", help="check versions, devices, plugins and ports")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001  every subcommand takes them
    """Print what was found; 1 if something is wrong."""
    findings = [finding for check in CHECKS for finding in _examine(check)]
    rows = [
        (finding.verdict.value, finding.subject, "; ".join(filter(None, (finding.detail, finding.remedy))))
        for finding in findings
    ]
    print_table(("", "CHECK", "RESULT"), rows)
    wrong = sum(finding.verdict is Verdict.WRONG for finding in findings)
    print(
        f"\n{wrong} of {len(findings)} checks failed." if wrong else f"\nAll {len(findings)} checks passed."
    )
    return 1 if wrong else 0


def check_versions() -> Iterator[Finding]:
    """Compare Python and the packages that matter most with the ranges in our own metadata."""
    python_range, requirements = _declared()
    yield _in_range("python", platform.python_version(), python_range, "install a Python in that range")
    for package in _CHECKED_PACKAGES:
        requirement = requirements.get(package)
        try:
            found = version(package)
        except PackageNotFoundError:
            if requirement is None:
                yield Finding(Verdict.NOTE, package, "not installed (flwr run needs fl-plugins[simulation])")
            else:
                yield Finding(Verdict.WRONG, package, "not installed", f"pip install '{requirement}'")
            continue
        allowed = SpecifierSet() if requirement is None else requirement.specifier
        yield _in_range(package, found, allowed, f"pip install '{requirement}'")


def check_devices() -> Iterator[Finding]:
    """Ask JAX for its devices."""
    import jax

    devices = jax.devices()
    kinds = ", ".join(dict.fromkeys(device.device_kind for device in devices))
    yield Finding(Verdict.OK, "jax devices", f"{len(devices)} x {devices[0].platform} ({kinds})")


def check_flower() -> Iterator[Finding]:
    """Import the one door to flwr's non-public modules, which an incompatible flwr breaks."""
    import fl_plugins._flower as door

    yield Finding(Verdict.OK, "flwr internals", f"{Path(door.__file__).name} found all that it uses")


def check_shadowing() -> Iterator[Finding]:
    """Look at every plugin's package as a process that is started in this folder would find it."""
    here = os.getcwd()
    shadows = find_shadows([here, *(place for place in sys.path if place)])
    for shadow in shadows:
        yield Finding(
            Verdict.WRONG,
            "shadowing",
            f"{shadow.imported} hides {shadow.expected}",
            f"rename it, or do not start Python in {here}",
        )
    if not shadows:
        yield Finding(Verdict.OK, "shadowing", f"nothing in {here} hides a package with plugins")


def check_plugins() -> Iterator[Finding]:
    """Load every plugin, one by one, and look for metadata that nobody can use."""
    entries = available()
    broken = 0
    for entry in entries:
        try:
            _ = load(entry.kind, entry.qualified).parameters
        except PluginError as error:
            broken += 1
            remedy = ""
            if _is_stale(entry, error.__cause__):
                remedy = f"the metadata of {entry.owner} may be older than its code: reinstall it"
            yield Finding(
                Verdict.WRONG, f"{entry.kind.value} {entry.name}", " ".join(str(error).split()), remedy
            )
    yield Finding(Verdict.OK, "plugins", f"{len(entries) - broken} of {len(entries)} load")
    for problem in metadata_problems():
        yield Finding(Verdict.WRONG, "metadata", problem)
    if own_metadata_is_stale():
        detail = "the installed metadata of fl-plugins differs from its pyproject.toml, which is what counts"
        yield Finding(Verdict.NOTE, "metadata", detail, "pip install -e . again")
    names = [(entry.kind, entry.name) for entry in entries]
    for kind, name in dict.fromkeys(names):
        if names.count((kind, name)) > 1:
            owners = " and ".join(e.owner for e in entries if (e.kind, e.name) == (kind, name))
            yield Finding(Verdict.NOTE, f"{kind.value} {name}", f"owned by {owners}", f"write owner:{name}")


def _is_stale(entry: Entry, cause: BaseException | None) -> bool:
    """Whether an entry point names a module or an object that its package does not have."""
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        return f"{entry.module}.".startswith(f"{cause.name}.")
    return isinstance(cause, AttributeError) and entry.module in sys.modules


def check_port() -> Iterator[Finding]:
    """See whether something answers where ``flwr run`` expects its local SuperLink."""
    port = int(os.environ.get(_PORT_VARIABLE, _DEFAULT_PORT))
    try:
        socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        yield Finding(Verdict.OK, f"port {port}", "free: flwr run will start its own local SuperLink")
    else:
        yield Finding(
            Verdict.NOTE,
            f"port {port}",
            "something answers, and flwr run would use it whoever started it",
            f"set {_PORT_VARIABLE}, or use fl-plugins simulate, which starts its own",
        )


Check = Callable[[], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_versions,
    check_devices,
    check_flower,
    check_shadowing,
    check_plugins,
    check_port,
)


def _examine(check: Check) -> list[Finding]:
    """Run one check; one that raises is a finding, too."""
    try:
        return list(check())
    except Exception as error:  # whatever is wrong with an installation may show as any exception
        subject = check.__name__.removeprefix("check_")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(Verdict.WRONG, subject, reason, "reinstall fl-plugins with its pinned versions")]


def _declared() -> tuple[SpecifierSet, dict[str, Requirement]]:
    """Return the Python range and the requirements (extras left out) of the running copy."""
    project = own_project()
    if project is not None:
        python, lines = project["requires-python"], list(project["dependencies"])
    else:
        python, lines = metadata("fl-plugins")["Requires-Python"], requires("fl-plugins") or []
    requirements = [Requirement(line) for line in lines]
    kept = {r.name: r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
    return SpecifierSet(python), kept


def _in_range(subject: str, found: str, allowed: SpecifierSet, remedy: str) -> Finding:
    """Compare a version with its range."""
    if allowed.contains(found, prereleases=True):
        return Finding(Verdict.OK, subject, f"{found} ({allowed})" if str(allowed) else found)
    return Finding(Verdict.WRONG, subject, f"{found}, but {allowed} is needed", remedy)
