"""Starts a role as its written systemd unit or compose file would, without systemd and Docker.

The command, the environment, and what of the file system may be written are read from the written file and
brought about in a mount namespace: ``/opt/fl-plugins/node`` or ``/deployment`` is its folder, read-only
like everything else but its ``state/`` and ``/tmp``. What the files say beyond that (users, capabilities,
restarts) is not: the interpreter of these tests belongs to whoever runs them.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from fl_plugins.deployment.layout import Role

_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]

_WRAPPER = """#!/bin/sh
exec {namespace} sh -s -- "$@" <<'INSIDE'
set -eu
root={root}
mount -t tmpfs tmpfs "$root"
for entry in /*; do
    if [ "$entry" = /opt ]; then continue
    elif [ -L "$entry" ]; then cp -P "$entry" "$root"
    elif [ "$entry" = /tmp ]; then mkdir -m 1777 "$root/tmp"; mount --bind /tmp "$root/tmp"
    elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -p "$root{home}" "$root/opt/fl-plugins"
ln -s {environment_folder} "$root/opt/fl-plugins/venv"
mount --bind {folder} "$root{home}"
mount --bind {folder}/state "$root{home}/state"
for point in $(awk '{{print $5}}' /proc/self/mountinfo | sort -u); do
    case ${{point#"$root"}} in
        "$point"|/proc*|/sys*|/dev*|/tmp|{home}/state) continue ;;
    esac
    mount -o remount,bind,ro "$point"
done
for place in / {home}; do
    if touch "$root$place/written" 2>/dev/null; then echo "$place can be written" >&2; exit 1; fi
done
exec chroot "$root" env -i {environment} {command} "$@" </dev/null
INSIDE
"""


@dataclass(frozen=True)
class Written:
    """What a file says of how a role is started."""

    home: str
    command: str
    environment: dict[str, str]


def can_be_run() -> bool:
    """Whether this system gives us mount namespaces, and ``/opt`` is not where this interpreter is."""
    if sys.platform != "linux" or shutil.which("unshare") is None or sys.base_prefix.startswith("/opt/"):
        return False
    return subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "x", "/opt"], check=False).returncode == 0


def unit(role: Role) -> Written:
    """Read the role's systemd unit."""
    (path,) = role.folder.glob("*.service")
    given = re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)
    (command,) = [value for key, value in given if key == "ExecStart"]
    variables = dict(value.split("=", 1) for key, value in given if key == "Environment")
    home = command.removesuffix("/start.sh")
    assert ("ProtectSystem", "strict") in given
    assert ("ReadWritePaths", f"{home}/state") in given
    return Written(home, command, {"HOME": "/home/flower", **variables})


def container(role: Role) -> Written:
    """Read the role's compose file; the image has fl-plugins' commands on its own PATH."""
    (service,) = yaml.safe_load((role.folder / "docker-compose.yml").read_text())["services"].values()
    (command,) = service["command"]
    assert service["read_only"] is True
    assert service["volumes"] == ["./:/deployment:ro", "./state:/deployment/state"]
    commands = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return Written("/deployment", command, {"PATH": commands, **service["environment"]})


def install(role: Role, written: Written, to: Path) -> None:
    """Copy the role's folder to ``to``, as an operator does, and let it be started there from now on."""
    shutil.copytree(role.folder, to, symlinks=True)
    root = to.with_name(f"{to.name}.root")
    root.mkdir()
    script = _WRAPPER.format(
        namespace=" ".join(_NAMESPACE),
        root=shlex.quote(str(root)),
        home=written.home,
        folder=shlex.quote(str(to)),
        environment_folder=shlex.quote(sys.prefix),
        environment=" ".join(shlex.quote(f"{key}={value}") for key, value in written.environment.items()),
        command=written.command,
    )
    role.start_script.write_text(script)
